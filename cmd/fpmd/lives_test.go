package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tellCounts answers, on a Unix socket, how many goroutines this process has and
// how many KiB of its heap are in use, for as long as it runs.
func tellCounts(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			continue // no descriptor is left
		}
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprint(c, runtime.NumGoroutine(), m.HeapAlloc>>10)
		c.Close()
	}
}

// counts is what an fpmd has of all that may leak.
type counts struct {
	goroutines, files, processes, heapKiB int
	folder                                string // what is in runtime_dir
}

func count(t *testing.T, d *process) (n counts) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(d.dir, "counts"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fscan(c, &n.goroutines, &n.heapKiB); err != nil {
		t.Fatal(err)
	}
	pid := d.cmd.Process.Pid
	n.files, n.processes = openFiles(t, pid), len(children(pid))
	run := filepath.Join(d.dir, "run")
	var names []string
	err = filepath.WalkDir(run, func(path string, _ os.DirEntry, err error) error {
		name, _ := filepath.Rel(run, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.folder = strings.Join(names, " ")
	return n
}

// Thousands of lives leave nothing behind: workers that are killed, that end, that do not
// come up, that a reload replaces, and clients that come, leave, and break off.
func TestLivesLeaveNothing(t *testing.T) {
	t.Parallel()
	const workers = 6
	events := 300 // or what make soak says
	if s := os.Getenv("FPMD_LIVES"); s != "" {
		var err error
		if events, err = strconv.Atoi(s); err != nil {
			t.Fatal("FPMD_LIVES:", err)
		}
	}
	dir := appDir(t)
	program := filepath.Join(dir, "app")
	if out, err := exec.Command("go", "build", "-o", program, "../../examples/go-application").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "app.py"), bigApp)
	who := ""
	if os.Getuid() == 0 {
		who = "\nuser = \"nobody\""
	}
	python := fmt.Sprintf("\n[pool.python]\nlisten = %q\nwsgi = \"app:application\"\ndirectory = %q\npython = %q\nworkers = 1%s\n",
		filepath.Join(dir, "python.sock"), dir, interpreter, who)
	command := fmt.Sprintf("command = [%q]", program)
	good := poolConfig(dir, fmt.Sprintf("%s\nworkers = %d", command, workers)) + python
	config := filepath.Join(dir, "fpmd.toml")
	d := prepare(t, os.Args[0], dir, good)
	d.cmd.Env = append(d.cmd.Env, "FPMD_TEST_COUNTS="+filepath.Join(dir, "counts"))
	d.start()
	d.waitWorkers(good)
	pid := d.cmd.Process.Pid
	lines := d.log.Count
	happened := func() int {
		return lines("msg=\"worker ready\"") + lines("msg=\"worker gone\"") + lines("msg=\"worker did not start\"")
	}
	reload := func(config, text, says string) {
		write(t, filepath.Join(dir, "fpmd.toml"), text)
		n := lines(says)
		d.signal(syscall.SIGHUP)
		d.waitLogTimes(says, n+1)
	}
	ask := func(breakOff int) { // after so many bytes; or behind the request
		c, err := net.Dial("unix", d.sock())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		request := fcgiRequest("/")
		c.Write(request[:min(breakOff, len(request))])
		if breakOff > len(request)+10 {
			io.Copy(io.Discard, c)
		}
	}
	kill := func() { // or tell to end
		if pids := children(pid); len(pids) > 0 {
			syscall.Kill(pids[rand.N(len(pids))], []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSEGV}[rand.N(3)])
		}
	}
	steps := []func(){
		kill, kill, kill, // more often than a reload, which takes a second
		func() { reload(config, good, "msg=reloaded") },
		func() { reload(config, good+"nonsense = 1\n", `msg="reload refused"`) },
		func() {
			reload(config, strings.Replace(good, command, `command = ["/bin/false"]`, 1), `msg="reload failed"`)
		},
		func() {
			for range 20 {
				ask(rand.N(len(fcgiRequest("/")) + 100))
			}
		},
		func() {
			for range 20 {
				ask(1000)
			}
		},
	}
	settle := func() {
		t.Helper()
		reload(config, good, "msg=reloaded") // whatever has happened, this is whole
		d.wait("all workers, and no others", func() bool { return len(children(pid)) == workers+1 })
		for range 100 {
			ask(1000)
		}
	}
	for range 30 { // what is made once, is made now
		steps[rand.N(len(steps))]()
	}
	settle()
	first, began := count(t, d), happened()
	for happened()-began < events {
		steps[rand.N(len(steps))]()
	}
	settle()
	var last counts
	defer func() { t.Logf("%d events: %+v before, %+v behind", happened()-began, first, last) }()
	d.wait("what it had before, and at most 1 MiB more of the heap", func() bool { // what connections hold that have just ended goes as well
		last = count(t, d)
		return last.goroutines <= first.goroutines+workers && last.files <= first.files && last.processes == first.processes &&
			last.folder == first.folder && last.heapKiB <= first.heapKiB+1024
	})
}
