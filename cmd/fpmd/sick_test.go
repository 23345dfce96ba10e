package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fpmd/manager"
)

// sickApp is ill in the way that SICK says.
const sickApp = `
import os, signal, time
sick = os.environ["SICK"]
if sick == "start": raise RuntimeError("sick at the start")
if sick == "term": signal.signal(signal.SIGTERM, signal.SIG_IGN)
kept = []
def bomb():
    while True:
        try: os.fork()
        except OSError: time.sleep(0.001)
def application(environ, start_response):
    if sick == "request": os._exit(3)
    if sick == "memory": kept.append(b"x" * (8 << 20))
    if sick == "fork": bomb()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
`

// sickPools are one of each illness, with what an operator would give them.
func sickPools(dir string) string {
	var b strings.Builder
	for _, p := range []struct{ sick, user, more string }{
		{"start", "nobody", ""},
		{"request", "nobody", ""},
		{"memory", "nobody", "max_memory_hard = \"64MiB\""},
		// nice: 31 processes that do nothing but fork take what they get of the processor.
		{"fork", "games", "rlimit_nproc = 32\nnice = 19\nrequest_timeout = \"2s\""},
		{"term", "nobody", "stop_timeout = \"500ms\""},
	} {
		fmt.Fprintf(&b, "[pool.%s]\nlisten = %q\nwsgi = \"sick:application\"\ndirectory = %q\npython = %q\nuser = %q\nenv = { SICK = %q }\nworkers = 1\n%s\n",
			p.sick, filepath.Join(dir, p.sick+".sock"), dir, interpreter, p.user, p.sick, p.more)
	}
	return b.String()
}

// twinServer answers as the healthy pool does, in as many processes, and nobody manages it: how long it takes beside the sick
// pools is what this machine's scheduler makes of anything that runs beside them.
const twinServer = `
import os, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(512)
def record(kind, content): return struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content
answer = record(6, b"Content-Type: text/plain\r\n\r\nhello") + record(6, b"") + record(3, bytes(8))
os.fork()
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(answer)
    c.close()
`

// startTwin starts a twinServer, which ends with the test.
func startTwin(t *testing.T, dir string) (sock string) {
	t.Helper()
	sock = filepath.Join(dir, "twin.sock")
	cmd := exec.Command(interpreter, "-c", twinServer, sock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, 2*len("ready\n"))); err != nil {
		t.Fatalf("the twin does not start: %v", err)
	}
	return sock
}

// A health is how a pool, or a twin, did for a time.
type health struct {
	Median, P99 time.Duration
	Asked       int
	Failed      []string
	cpu         float64 // of the supervisor, in cores
}

// sickRate is how often the healthy pool is asked, in a second.
const sickRate = 100

// examine asks d's pool app and its twin in turn, steadily for so long, whether or not they have answered before. Who asks is a
// process of its own and goes before all others: what it waits for is them, and never a processor for itself.
func examine(t *testing.T, d *process, twin string, length time.Duration) (pool, other health) {
	t.Helper()
	cmd := exec.Command(os.Args[0], d.sock(), twin)
	cmd.Env = append(os.Environ(), examinerEnv+"="+length.String())
	cmd.Stderr = os.Stderr
	before, began := cpuTime(t, d.cmd.Process.Pid), time.Now()
	out, err := cmd.Output()
	cpu := (cpuTime(t, d.cmd.Process.Pid) - before).Seconds() / time.Since(began).Seconds()
	var told [2]health
	if err == nil {
		err = json.Unmarshal(out, &told)
	}
	if err != nil {
		t.Fatalf("who asks the healthy pool: %v: %s", err, out)
	}
	told[0].cpu = cpu
	return told[0], told[1]
}

// examinerEnv makes the test binary an examiner: its value is for how long.
const examinerEnv = "FPMD_TEST_EXAMINE"

// examiner is examine's other process: it asks socks in turn, for so long, and tells of each.
func examiner(long string, socks []string) error {
	length, err := time.ParseDuration(long)
	if err == nil {
		// No work of its own is in the way of who answers: it has one processor of the two, and no garbage to collect.
		runtime.GOMAXPROCS(1)
		debug.SetGCPercent(-1)
		err = goFirst()
	}
	if err != nil {
		return err
	}
	var mu sync.Mutex
	all, took := make([]health, len(socks)), make([][]time.Duration, len(socks))
	var wg sync.WaitGroup
	due := time.Now()
	for end, n := due.Add(length), 0; due.Before(end); n++ {
		time.Sleep(time.Until(due))
		wg.Go(func() { // ends with the answer, or after patience
			i := n % len(socks)
			began := time.Now()
			answer, err := askOnce(socks[i])
			after := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			took[i] = append(took[i], after)
			if err != nil || !strings.HasSuffix(answer, "hello") {
				all[i].Failed = append(all[i].Failed, fmt.Sprintf("%q, %v", answer, err))
			}
		})
		due = due.Add(time.Second / time.Duration(sickRate*len(socks)))
	}
	wg.Wait()
	for i, t := range took {
		slices.Sort(t)
		all[i].Asked, all[i].Median, all[i].P99 = len(t), t[len(t)/2], t[len(t)*99/100]
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

// goFirst puts all threads of this process before all others, fpmd's own, where it may.
func goFirst() error {
	first := manager.Foremost
	first.Priority++
	watcher, err := monitor()
	if err == nil {
		err = putThreads(first, watcher)
	}
	if errors.Is(err, unix.EPERM) { // a container without CAP_SYS_NICE
		return nil
	}
	return err
}

// cpuTime is what a process, without those that it has started, has had of the processors.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * time.Second / 100 // USER_HZ, on every architecture that Go has
}

// irritate has every sick pool show what it has, until ctx ends: each is asked, and the one that
// ignores TERM is reloaded.
func irritate(ctx context.Context, d *process) *sync.WaitGroup {
	var wg sync.WaitGroup
	repeat := func(every time.Duration, do func()) {
		wg.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				do()
				select {
				case <-ctx.Done():
				case <-time.After(every):
				}
			}
		})
	}
	for _, sick := range []string{"start", "request", "memory", "fork", "term"} {
		sock := filepath.Join(d.dir, sick+".sock")
		repeat(100*time.Millisecond, func() { _, _ = askOnce(sock) }) // an error is what it is asked for
	}
	repeat(time.Second, func() { d.told("reload", "term") })
	return &wg
}

// mostStarts is how often a worker can be started in so long when every start fails: at once, and
// after 0.1 s, 0.2 s and so on up to 30 s, each up to a quarter less.
func mostStarts(length time.Duration) int {
	n := 1
	for wait, at := 0.1, 0.0; at < length.Seconds(); wait = math.Min(2*wait, 30) {
		at += 0.75 * wait
		n++
	}
	return n
}

// Beside a pool that crashes at its start, one that crashes on every request, one that eats memory, one that
// fork-bombs within its limit and one that ignores TERM, a healthy pool has every request answered and keeps its
// workers; the sick ones are started no more often than backoff says, and cost the supervisor less than 5 % of a
// processor. How long the healthy pool takes, beside them and alone in the same run, is printed, and judged where
// FPMD_FIGURES is set: the median within 25 %, the 99th percentile within 2 times. Beside it is printed what the percentile is for
// processes that nobody manages and that answer the same at the same time: it tells how much of it is the machine's.
func TestStormOfSickPools(t *testing.T) {
	needRoot(t, "has pools of several users")
	dir := appDir(t)
	binary := buildFpmd(t, dir)
	const rounds = 3
	length := max(stormLength(t)/(2*rounds), 2*time.Second)
	// The healthy pool is the one that must not wait; and so it is told.
	foremost := "scheduling = \"rr\"\n"
	if !mayRealTime() {
		foremost = ""
		t.Log("without CAP_SYS_NICE the healthy pool can't go before others")
	}
	twin := startTwin(t, dir)
	var alone, twinAlone health
	var medians, p99s, cpus, twins []float64
	for n := range 2 * rounds { // in turn, so that both have the same machine
		sick := n%2 == 1
		at := filepath.Join(dir, fmt.Sprint(n))
		write(t, filepath.Join(at, "app.py"), helloApp)
		write(t, filepath.Join(at, "sick.py"), sickApp)
		config := wsgiPool(at, "workers = 2\n"+foremost)
		if sick {
			config += sickPools(at)
		}
		d := launchBinary(t, binary, at, config)
		began := time.Now()
		d.waitLogTimes("msg=\"worker ready\" pool=app", 2)
		ctx, cancel := context.WithCancel(t.Context())
		var irritated *sync.WaitGroup
		if sick {
			irritated = irritate(ctx, d)
			for _, sign := range []string{
				"msg=\"worker did not start\" pool=start", "msg=\"worker gone\" pool=request",
				"msg=\"request timed out\" pool=fork", "msg=\"worker takes too much memory\" pool=memory",
			} {
				d.waitLog(sign)
			}
			d.wait("worker of the pool that ignores TERM, killed", func() bool {
				return slices.ContainsFunc(strings.Split(d.log.String(), "\n"), func(line string) bool {
					return strings.Contains(line, "msg=\"worker gone\" pool=term") && strings.Contains(line, "SIGKILL")
				})
			})
		}
		h, other := examine(t, d, twin, length)
		if sick {
			state := func(name string) string {
				pools := d.status().Pools
				return pools[slices.IndexFunc(pools, func(p manager.PoolStatus) bool { return p.Name == name })].State
			}
			d.wait("pool that is failing because it crashes at its start", func() bool { return state("start") == "failing" })
			if got := state("app"); got != "serving" {
				t.Errorf("the healthy pool is %s", got)
			}
			lived, log := time.Since(began), d.log.String()
			most := mostStarts(lived)
			if n := strings.Count(log, "msg=\"worker did not start\" pool=start"); n > most {
				t.Errorf("of the pool that crashes at its start %d workers were started within %v, want at most %d", n, lived, most)
			}
			most += int(lived.Seconds()) // who lives for a second before he is asked has done well
			if n := strings.Count(log, "msg=\"worker ready\" pool=request"); n > most {
				t.Errorf("of the pool that crashes on every request %d workers were started within %v, want at most %d", n, lived, most)
			}
			cancel()
			irritated.Wait()
			medians = append(medians, float64(h.Median)/float64(alone.Median))
			p99s = append(p99s, float64(h.P99)/float64(alone.P99))
			twins = append(twins, float64(other.P99)/float64(twinAlone.P99))
			cpus = append(cpus, h.cpu-alone.cpu)
		}
		cancel()
		for who, h := range map[string]health{"the healthy pool": h, "its twin": other} {
			if len(h.Failed) > 0 {
				t.Errorf("of %d requests to %s %s", h.Asked, who, summary(h.Failed))
			}
		}
		d.signal(syscall.SIGINT)
		d.waitExit()
		if n := strings.Count(d.log.String(), "level=ERROR msg=\"worker gone\" pool=app"); n > 0 {
			t.Errorf("%d workers of the healthy pool have died", n)
		}
		t.Logf("%s: %d requests, median %v, 99 of 100 within %v, supervisor %.1f %% of a processor; twin: %v, %v",
			map[bool]string{false: "alone", true: "with the sick"}[sick], h.Asked, h.Median, h.P99, 100*h.cpu, other.Median, other.P99)
		if !sick {
			alone, twinAlone = h, other
		}
	}
	middle := func(of []float64) float64 { slices.Sort(of); return of[len(of)/2] }
	median, p99, cpu, twinP99 := middle(medians), middle(p99s), middle(cpus), middle(twins)
	t.Logf("with the sick, times what it is alone: median %.2f of %.2f, 99th percentile %.2f of %.2f, of the twin %.2f of %.2f; supervisor %.1f %% of a processor more",
		median, medians, p99, p99s, twinP99, twins, 100*cpu)
	if cpu > 0.05 {
		t.Errorf("the sick pools cost the supervisor %.1f %% of a processor, want less than 5 %%", 100*cpu)
	}
	if os.Getenv("FPMD_FIGURES") != "" && (median > 1.25 || p99 > 2) {
		t.Errorf("the healthy pool takes %.2f times as long with the sick ones in the median, and %.2f times in the 99th percentile; want 1.25 and 2", median, p99)
	}
}
