package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// stormLength is how long a storm lasts: 10 s, or what make soak says.
func stormLength(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("FPMD_STORM")
	if s == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("FPMD_STORM: %v", err)
	}
	return d
}

// workersOf lists the processes of a daemon that have started to be Python.
func workersOf(d *process) (pids []int) {
	for _, pid := range children(d.cmd.Process.Pid) {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.HasPrefix(string(name), "python") && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// In a storm of kills, two a second with all slots busy, each costs the
// request that its worker had begun, with a 502 that names the outcome, and
// nothing else; the pool is whole again afterwards, and nothing is left behind.
func TestStormOfDeaths(t *testing.T) {
	t.Parallel()
	const workers, clients = 4, 16
	dir := appDir(t)
	// It is quick, so that requests are sent behind others.
	write(t, filepath.Join(dir, "app.py"), `
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
`)
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = %d", workers)))
	pid := d.cmd.Process.Pid
	url := d.nginx("")
	get(t, url+"/")
	d.wait("all workers", func() bool { return len(workersOf(d)) == workers })
	files := openFiles(t, pid)

	l := startLoad(t, clients, func(ctx context.Context) (int, string, error) {
		resp, body, err := fetch(ctx, "GET", url+"/", nil)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, resp.Header.Get("Fpmd-Outcome") + body, nil
	})
	d.wait("load", func() bool { return l.total("") > 100 })
	kills := 0
	var last time.Time
	for end := time.Now().Add(stormLength(t)); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if pids := workersOf(d); len(pids) > 0 && syscall.Kill(pids[rand.N(len(pids))], syscall.SIGKILL) == nil {
			kills++
			last = time.Now()
		}
	}
	d.wait("a worker in the place of each", func() bool { // or in that of one that was killed before it was ready
		log := d.log.String()
		return strings.Count(log, "msg=\"worker ready\"")+strings.Count(log, "msg=\"worker did not start\"") >= workers+kills
	})
	d.wait("all workers", func() bool { return len(workersOf(d)) == workers })
	t.Logf("%d kills, %d answers; whole again at most %v after the last", kills, l.total(""), time.Since(last).Round(time.Millisecond))
	before := l.total("")
	d.wait("load after it", func() bool { return l.total("") > before+100 })
	_, failed := l.stop()
	if len(failed) > kills {
		t.Errorf("%d kills have cost %d requests", kills, len(failed))
	}
	for _, f := range failed {
		if !strings.HasPrefix(f, "502 worker_died") {
			t.Errorf("a request ended with %q", f)
		}
	}
	if kills == 0 {
		t.Error("nobody was killed")
	}
	d.wait("all files closed but nginx's kept connections", func() bool { return openFiles(t, pid) <= files+clients })
}

// In a storm of reloads, good ones, ones of code that does not come up and ones of a broken
// configuration, with kept connections and requests with and without a body, not one request
// fails; each good one's code answers, and each bad one is told to whoever has asked for it.
func TestStormOfReloads(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	const code = `
import time
def application(environ, start_response):
    body = environ["wsgi.input"].read()
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s" + body[:0]]
`
	write(t, app, fmt.Sprintf(code, "v0"))
	config := wsgiPool(dir, "workers = 2")
	d := serve(t, dir, config)
	url := d.nginx("")
	var n atomic.Int64
	l := startLoad(t, 8, func(ctx context.Context) (int, string, error) {
		method, body := "GET", io.Reader(nil)
		if n.Add(1)%3 == 0 {
			method, body = "POST", strings.NewReader(strings.Repeat("x", 100_000))
		}
		resp, got, err := fetch(ctx, method, url+"/", body)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, got, nil
	})
	d.wait("answers of v0", func() bool { return l.total("v0") > 10 })
	good, broken := 0, 0
	for end := time.Now().Add(stormLength(t)); time.Now().Before(end) || broken < 2; {
		switch i := good + broken; i % 6 {
		case 2:
			write(t, app, "import no_such_module_anywhere\n")
			if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, "no_such_module_anywhere") {
				t.Errorf("a reload of code that does not import: exit code %d, %s", code, said)
			}
			broken++
		case 5:
			write(t, filepath.Join(dir, "fpmd.toml"), config+"wrokers = 3\n")
			if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, "wrokers") {
				t.Errorf("a reload of a broken configuration: exit code %d, %s", code, said)
			}
			write(t, filepath.Join(dir, "fpmd.toml"), config)
			broken++
		default:
			good++
			v := fmt.Sprintf("v%d", good)
			write(t, app, fmt.Sprintf(code, v))
			if said, code := d.told("reload"); code != 0 {
				t.Errorf("a good reload: exit code %d, %s", code, said)
			}
			d.wait("answers of "+v, func() bool { return l.total(v) > 10 })
		}
	}
	_, failed := l.stop()
	t.Logf("%d good reloads and %d broken ones, %d answers", good, broken, l.total(""))
	if len(failed) > 0 {
		t.Error(summary(failed))
	}
}

// While a pool is reloaded, one time after the other, requests take little longer than before: of
// a load of 30 % of what its workers can do, 99 % are answered within three times as long, and 50 ms. Times are of the
// machine as well: both kinds of time take turns, and are held against the limit where FPMD_FIGURES is set, and
// only told else. No request fails in any case.
func TestStormOfReloadsLatency(t *testing.T) {
	const workers, rate = 4, 60 // of 200 a second
	dir := sleepDir(t)
	d := serveWith(t, buildFpmd(t, dir), dir, wsgiPool(dir, fmt.Sprintf("workers = %d", workers)))
	c := newCrowdOf(d.nginx(""), patience)
	length := stormLength(t)
	turn := min(5*time.Second, length/4)
	reloads := 0
	for i := range int(length / (2 * turn)) {
		c.comeFor(turn, rate, fmt.Sprintf("quiet.%d.", i))
		over := make(chan struct{})
		done := make(chan struct{})
		go func() { // ends when the turn is over
			defer close(done)
			for {
				select {
				case <-over:
					return
				default:
				}
				if said, code := d.told("reload"); code != 0 {
					t.Errorf("exit code %d, %s", code, said)
				}
				reloads++
			}
		}()
		c.comeFor(turn, rate, fmt.Sprintf("reloads.%d.", i))
		close(over)
		<-done
	}
	c.wg.Wait()
	var quiet, during []time.Duration
	for id, took := range c.answered {
		if strings.HasPrefix(id, "quiet") {
			quiet = append(quiet, took)
		} else {
			during = append(during, took)
		}
	}
	before, p99 := quantile(quiet, 0.99), quantile(during, 0.99)
	t.Logf("%d reloads; %d answers, 99 %% of them within %v between the reloads, and within %v during them (half: %v, %v)",
		reloads, len(c.answered), before.Round(time.Millisecond), p99.Round(time.Millisecond),
		quantile(quiet, 0.5).Round(time.Millisecond), quantile(during, 0.5).Round(time.Millisecond))
	if len(c.refused) > 0 || c.left > 0 || len(c.failed) > 0 {
		t.Errorf("%d were refused, %d left, %s", len(c.refused), c.left, summary(c.failed))
	}
	if os.Getenv("FPMD_FIGURES") != "" && p99 >= 3*before+50*time.Millisecond {
		t.Errorf("99 %% within %v, want three times %v and 50 ms", p99, before)
	}
}
