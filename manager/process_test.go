package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A worker that is ready can be dialled as often as it said it has slots, and
// shares its page.
func TestReadyWorkerIsDialled(t *testing.T) {
	l := shell(t, "")
	l.argv = []string{"/proc/self/exe"} // ours, in a folder that nobody may enter
	l.env = append(l.env, testAs+"=echo worker")
	p := startWorker(t, l)
	if p.slots != 2 {
		t.Errorf("%d slots, want 2", p.slots)
	}
	if p.page.Begun(0, 1) {
		t.Error("the page says that exchange 1 has begun")
	}
	for range p.slots {
		conn, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got := make([]byte, 5)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v", got, err)
		}
	}
	p.kill()
	<-p.done()
	if conn, err := p.dial(); err == nil {
		conn.Close()
		t.Error("a dead worker was dialled")
	}
}

// A path longer than a socket's may be is no obstacle.
func TestLongSocketFolder(t *testing.T) {
	l := shell(t, ready+"exec sleep 1000")
	l.pool = strings.Repeat("a/long pool", 20)
	l.socketDir = filepath.Join(l.socketDir, strings.Repeat("d", 200))
	if err := os.Mkdir(l.socketDir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := startWorker(t, l)
	conn, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// A full backlog is an error at once, not a wait.
func TestDialDoesNotWait(t *testing.T) {
	p := startWorker(t, shell(t, ready+"exec sleep 1000"))
	for i := range 4 * listenBacklog {
		conn, err := p.dial()
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close()
	}
	t.Error("the backlog has no end")
}

// Whatever keeps a worker from being ready is said, with what it printed, and
// leaves nothing behind.
func TestNotReady(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		change func(*launch)
		want   []string
	}{
		{"says nothing", "exec sleep 1000", func(l *launch) { l.startTimeout = 300 * time.Millisecond }, []string{"not ready within start_timeout = 300ms"}},
		{"exits", "echo to stdout; echo to stderr >&2; exit 3", nil, []string{`worker 3 of pool blog (["sh" "-c" "`, "exited with status 3 before it was ready", "\n\tto stdout", "\n\tto stderr"}},
		{"exits with 0", "exit 0", nil, []string{"exited with status 0 before it was ready"}},
		{"crashes", "kill -SEGV $$", nil, []string{"killed by SIGSEGV"}},
		{"exits while a daemon holds its pipes", "setsid sleep 1000 & echo $!; exit 4", nil, []string{"exited with status 4"}},
		{"closes its handshake", "exec 5>&-; exec sleep 1000", nil, []string{"closed its handshake descriptor without a line"}},
		{"another version", "echo '1|2|unix|1|exchange' >&5; exec sleep 1000", nil, []string{`handshake "1|2|unix|1|exchange": incompatible API version`}},
		{"another core version", "echo '2|1|unix|1|exchange' >&5; exec sleep 1000", nil, []string{"incompatible core API version"}},
		{"another network", "echo '1|1|tcp|1|exchange' >&5; exec sleep 1000", nil, []string{`network "tcp", want unix`}},
		{"another protocol", "echo '1|1|unix|1|grpc' >&5; exec sleep 1000", nil, []string{`unsupported plugin protocol "grpc"`}},
		{"no slot", "echo '1|1|unix|0|exchange' >&5; exec sleep 1000", nil, []string{`"0" slots, want 1 to 256`}},
		{"too many slots", "echo '1|1|unix|257|exchange' >&5; exec sleep 1000", nil, []string{`"257" slots`}},
		{"an address for slots", "echo '1|1|unix|/tmp/s|exchange' >&5; exec sleep 1000", nil, []string{`"/tmp/s" slots`}},
		{"other slots than threads", ready + "exec sleep 1000", func(l *launch) { l.threads = 2 }, []string{"1 slots, want 2"}},
		{"garbage", "echo hello >&5; exec sleep 1000", nil, []string{`handshake "hello": 1 fields`}},
		{"empty line", "echo >&5; exec sleep 1000", nil, []string{`handshake ""`}},
		{"a certificate", "echo '1|1|unix|1|exchange|MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0123456789' >&5; exec sleep 1000", nil, []string{"6 fields"}},
		{"no newline", "printf '1|1|unix|1|exchange' >&5; exit 0", nil, []string{"no newline at its end"}},
		{"a line without end", "exec cat /dev/zero >&5", nil, []string{"no newline within 256 bytes"}},
		{"no such program", "", func(l *launch) { l.argv = []string{"no-such-program"}; l.env = []string{"PATH=/bin:/opt/x"} }, []string{"no-such-program: not found on PATH=/bin:/opt/x"}},
		{"no such file", "", func(l *launch) { l.argv = []string{"/no/such/program"} }, []string{"/no/such/program", "no such file"}},
		{"no program", "", func(l *launch) { l.argv = nil }, []string{"no program to run"}},
		{"no such folder", "", func(l *launch) { l.dir = "/no/such/folder" }, []string{"chdir /no/such/folder: no such file or directory, as u", "in /no/such/folder"}},
		{"a folder that is closed", "", func(l *launch) { l.dir = closedFolder(t) }, []string{"permission denied, as u"}},
		{"no interpreter", "", func(l *launch) { l.argv = []string{scriptWithoutInterpreter(t)}; l.dir = "/" }, []string{"the interpreter that it names is not"}},
		{"no folder for sockets", "", func(l *launch) { l.socketDir = "/no/such/folder" }, []string{"/no/such/folder", "no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := shell(t, tt.script)
			dir := l.socketDir
			if tt.change != nil {
				tt.change(&l)
			}
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			before := ourDescriptors(t)
			p, err := start(t.Context(), l)
			if err == nil {
				p.kill()
				t.Fatal("ready")
			}
			var e *startError
			if !errors.As(err, &e) {
				t.Errorf("%T, want a *startError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v\nwithout %q", err, want)
				}
			}
			killStrays(t, e.lines)
			wantEmpty(t, dir)
			wantEmpty(t, tmp)
			wantNoChildren(t)
			wantDescriptors(t, before)
		})
	}
}

// Nothing is started for a context that has ended, and a start that waits ends
// with its context.
func TestStartEndsWithItsContext(t *testing.T) {
	records := make(chan printed, 10)
	l := shell(t, "echo $$; exec sleep 1000")
	l.logger = logInto(records)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := start(ctx, l)
		failed <- err
	}()
	w := watchPid(t, nextPid(t, records))
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it to be context.Canceled", err)
	}
	w.awaitEnd(t)
	if _, err := start(ctx, l); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it to be context.Canceled", err)
	}
	if len(records) != 0 {
		t.Error("a worker was started for a context that has ended")
	}
	wantEmpty(t, l.socketDir)
	wantNoChildren(t)
}

// A context that ends after the start does not touch the worker.
func TestReadyWorkerOutlivesItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := start(ctx, shell(t, "trap 'exit 7' TERM; "+ready+"while :; do sleep 0.01; done"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.page.Close()
	cancel()
	p.stop(time.Minute, func() { t.Error("it ended at TERM, and counts as late") })
	<-p.done()
	if got := p.exit().String(); got != "exited with status 7" {
		t.Errorf("it %s; want status 7, of its own", got)
	}
}

// A worker's death is noticed without asking, and takes what it started along,
// also when it has closed its lifeline.
func TestDeathTakesTheGroupAlong(t *testing.T) {
	records := make(chan printed, 10)
	l := shell(t, "exec 6<&-; sleep 1000 & echo $!; "+ready+"wait")
	l.logger = logInto(records)
	p := startWorker(t, l)
	child := watchPid(t, nextPid(t, records))
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done()
	child.awaitEnd(t)
	if want := (exitStatus{code: -1, signal: unix.SIGKILL}); p.exit() != want {
		t.Errorf("it %v, want %v", p.exit(), want)
	}
	p.kill() // of what may be somebody else's number by now: does nothing
}

// SIGTERM is asked for first, and not waited for longer than the grace.
func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		grace  time.Duration
		want   string
	}{
		{"ends itself", "trap 'exit 0' TERM; " + ready + "while :; do sleep 0.01; done", time.Minute, "exited with status 0"},
		{"knows no TERM", ready + "exec sleep 1000", time.Minute, "killed by SIGTERM"},
		{"ignores TERM", "trap '' TERM; " + ready + "exec sleep 1000", 50 * time.Millisecond, "killed by SIGKILL"},
		{"is stopped", "(kill -STOP $$; until grep -q 'State:.T' /proc/$$/status; do :; done; " + ready + ") & wait", 50 * time.Millisecond, "killed by SIGKILL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startWorker(t, shell(t, tt.script))
			var late atomic.Bool
			p.stop(tt.grace, func() { late.Store(true) })
			<-p.done()
			if killed := tt.want == "killed by SIGKILL"; late.Load() != killed {
				t.Errorf("late: %v, killed: %v", late.Load(), killed)
			}
			if got := p.exit().String(); got != tt.want {
				t.Errorf("it %s, want %s", got, tt.want)
			}
		})
	}
}

func TestExitStatusReadsWell(t *testing.T) {
	for _, tt := range []struct {
		status exitStatus
		want   string
	}{
		{exitStatus{code: 3}, "exited with status 3"},
		{exitStatus{code: -1, signal: unix.SIGSEGV, core: true}, "killed by SIGSEGV (core dumped)"},
		{exitStatus{code: -1, signal: unix.SIGKILL}, "killed by SIGKILL"},
		{exitStatus{code: -1, signal: 40}, "killed by signal 40"},
	} {
		if got := tt.status.String(); got != tt.want {
			t.Errorf("%#v reads %q, want %q", tt.status, got, tt.want)
		}
	}
}

// A worker has the descriptors of PROTOCOL.md and no other, also when somebody
// made us inherit one that is not close-on-exec.
func TestDescriptorsOfAWorker(t *testing.T) {
	leak, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	host, err := unix.MemfdCreate("host", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	hostFile := os.NewFile(uintptr(host), "host")
	defer hostFile.Close()

	want := map[int]string{
		0: "/dev/null", 1: "pipe", 2: "pipe",
		3: "socket", 4: "/memfd:fpmd-page (deleted)", 5: "pipe", 6: "pipe",
	}
	for _, tt := range []struct {
		name string
		host *os.File
	}{{"without a host", nil}, {"with a host", hostFile}} {
		t.Run(tt.name, func(t *testing.T) {
			l := shell(t, "echo '1|1|unix|1|exchange' >&5; exec sleep 1000")
			l.host = tt.host
			want := maps.Clone(want)
			if tt.host != nil {
				want[7] = "/memfd:host (deleted)"
			}
			p := startWorker(t, l)
			await(t, "the shell has become sleep", func() bool { return procStatus(t, p.pid)["Name"] == "sleep" })
			// What leaked stays; what the loader of sleep has open does not.
			await(t, fmt.Sprintf("it has %v open and nothing else", want), func() bool { return maps.Equal(descriptors(t, p.pid), want) })
		})
	}
}

// A worker is who its recipe says, with no way back, in its own process group,
// with no signal ignored or blocked, whatever we ignore.
func TestIdentityOfAWorker(t *testing.T) {
	signal.Ignore(unix.SIGHUP, unix.SIGTTOU, unix.SIGUSR2)
	defer signal.Reset(unix.SIGHUP, unix.SIGTTOU, unix.SIGUSR2)
	l := shell(t, ready+"exec sleep 1000")
	p := startWorker(t, l)
	// The shell changes signals for its own use, and puts them back for sleep.
	await(t, "the shell has become sleep", func() bool { return procStatus(t, p.pid)["Name"] == "sleep" })

	self := procStatus(t, os.Getpid())
	want := map[string]string{
		"Uid": self["Uid"], "Gid": self["Gid"], "Groups": self["Groups"], "CapPrm": self["CapPrm"],
		"Umask": "0027", "NoNewPrivs": "1",
		"SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
	}
	if l.cred != nil {
		maps.Copy(want, map[string]string{
			"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "4242 4243",
			"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		})
	}
	got := procStatus(t, p.pid)
	for field, value := range want {
		if got[field] != value {
			t.Errorf("%s: %s, want %s", field, got[field], value)
		}
	}
	if pgid, err := unix.Getpgid(p.pid); pgid != p.pid || err != nil {
		t.Errorf("process group %d, %v; want its own, %d", pgid, err, p.pid)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid)); cwd != "/" || err != nil {
		t.Errorf("working directory %s, %v", cwd, err)
	}
}

// A program that was allowed to can gain privileges.
func TestNewPrivs(t *testing.T) {
	l := shell(t, ready+"exec sleep 1000")
	l.newPrivs = true
	if got := procStatus(t, startWorker(t, l).pid)["NoNewPrivs"]; got != "0" {
		t.Errorf("NoNewPrivs: %s, want 0", got)
	}
}

// The environment is the pool's and PROTOCOL.md's, byte for byte, and nothing
// of ours.
func TestEnvironmentOfAWorker(t *testing.T) {
	t.Setenv("SECRET_OF_THE_SUPERVISOR", "1")
	l := shell(t, "")
	l.argv = []string{"/proc/self/exe"}
	l.env = []string{testAs + "=echo worker", "LATIN=\xe9t\xe9", "EMPTY=", "FPMD_PAGE_FD=99", "FPMD_HOST_FD=98", "FPMD_OWN=stays"}
	l.debug = true
	l.threads = 2
	p := startWorker(t, l)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		testAs + "=echo worker", "LATIN=\xe9t\xe9", "EMPTY=", "FPMD_OWN=stays",
		"FPMD_WORKER=0f7c4d6a-fcb1-4e0f-9d27-exchange", "FPMD_PROTOCOL_VERSIONS=1",
		"FPMD_LISTEN_FD=3", "FPMD_PAGE_FD=4", "FPMD_HANDSHAKE_FD=5", "FPMD_LIFELINE_FD=6",
		"FPMD_THREADS=2", "FPMD_POOL=blog", "FPMD_WORKER_ID=3", "FPMD_DEBUG=1",
	}
	if got := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Lines are logged with who printed them where, long ones split.
func TestLinesOfAWorker(t *testing.T) {
	records := make(chan printed, 10)
	l := shell(t, `printf 'one\r\n\ntwo'; sleep 0.01; printf ' halves\n'; `+ready+`printf '%20000d\n' 0 >&2; printf unfinished; exit 5`)
	l.logger = logInto(records)
	p := startWorker(t, l)
	<-p.done()
	close(records)
	got := map[string][]string{}
	for r := range records {
		got[r.Stream] = append(got[r.Stream], strings.TrimLeft(r.Msg, " "))
		if r.Worker != 3 || r.Pid != p.pid || len(r.Msg) > maxLine {
			t.Errorf("worker %d, pid %d, %d bytes", r.Worker, r.Pid, len(r.Msg))
		}
	}
	if want := []string{"one", "two halves", "unfinished"}; !slices.Equal(got["stdout"], want) {
		t.Errorf("stdout %q, want %q", got["stdout"], want)
	}
	if want := []string{"", "0"}; !slices.Equal(got["stderr"], want) {
		t.Errorf("stderr %q, want %q", got["stderr"], want)
	}
}

// A line of 100 MiB holds neither the worker nor our memory.
func TestLineOf100MiB(t *testing.T) {
	l := shell(t, "head -c 104857600 /dev/zero | tr '\\0' x; echo; "+ready+"echo end; exit 0")
	longest, total := 0, 0
	l.logger = slog.New(handlerFunc(func(r slog.Record) {
		longest, total = max(longest, len(r.Message)), total+len(r.Message)
	}))
	p := startWorker(t, l)
	<-p.done()
	if longest != maxLine || total != 100<<20+len("end") {
		t.Errorf("%d bytes, the longest line %d; want %d and %d", total, longest, 100<<20+3, maxLine)
	}
	last := p.tail()
	if n := len(strings.Join(last, "")); n > tailBytes || last[len(last)-1] != "end" {
		t.Errorf("the tail is %d bytes and ends with %.20q", n, last[len(last)-1])
	}
}

// Of what a worker printed, its end is put down to no more than a line, that says why,
// and to none where there can be no connection.
func TestLastWords(t *testing.T) {
	died := time.Now()
	goTrace := []string{"listening", "panic: no database", "", "goroutine 1 [running]:", "main.main()", "\t/srv/main.go:9 +0x25", "exit status 2"}
	for _, tt := range []struct {
		name    string
		printed []string
		before  time.Duration // its end
		status  exitStatus
		want    string
	}{
		{"a traceback", []string{"Traceback", "ValueError: x"}, 0, exitStatus{code: 1}, "ValueError: x"},
		{"a panic", goTrace, 0, exitStatus{code: 2}, "panic: no database"},
		{"a fatal error", []string{"fatal error: all goroutines are asleep", "trace"}, 0, exitStatus{code: 2}, "fatal error: all goroutines are asleep"},
		{"it ended itself by a signal", []string{"assert failed"}, 0, exitStatus{code: -1, signal: unix.SIGABRT}, "assert failed"},
		{"killed", []string{"served /"}, 0, exitStatus{code: -1, signal: unix.SIGKILL}, ""},
		{"told to end", []string{"served /"}, 0, exitStatus{code: -1, signal: unix.SIGTERM}, ""},
		{"long ago", []string{"loaded"}, 2 * lastWordsTime, exitStatus{code: 1}, ""},
		{"nothing", nil, 0, exitStatus{code: 1}, ""},
		{"read after its end", []string{"fatal"}, -time.Millisecond, exitStatus{code: 1}, "fatal"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &process{output: &output{}, status: tt.status, ended: died}
			for _, line := range tt.printed {
				p.output.add(line)
			}
			p.output.at = died.Add(-tt.before)
			if got := p.lastWords(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The tail is the end of what was printed, within its limits.
func TestTail(t *testing.T) {
	var o output
	for i := range 100 {
		o.add(fmt.Sprint(i))
	}
	if got, _ := o.tail(); len(got) != tailLines || got[0] != "60" || got[39] != "99" {
		t.Errorf("got %q", got)
	}
	o.add(strings.Repeat("x", 3*tailBytes))
	if got, _ := o.tail(); len(got) != 1 || len(got[0]) != tailBytes {
		t.Errorf("%d lines", len(got))
	}
}

// A descendant that keeps the worker's streams open, and even goes on
// printing, does not keep its end from being seen.
func TestDescendantHoldsTheStreams(t *testing.T) {
	first, flowing := make(chan printed, 1), make(chan struct{})
	lines := 0
	l := shell(t, "setsid sh -c 'echo $$; exec yes' 2>&1 & "+ready+"wait")
	l.logger = slog.New(handlerFunc(func(r slog.Record) {
		switch lines++; lines {
		case 1:
			first <- printed{Msg: r.Message}
		case 1000:
			close(flowing)
		}
	}))
	p := startWorker(t, l)
	yes := watchPid(t, nextPid(t, first))
	<-flowing
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done()
	yes.awaitEnd(t) // of SIGPIPE
}

// A log that blocks does not keep a worker's end from being seen.
func TestBlockedLog(t *testing.T) {
	blocked := make(chan struct{})
	l := shell(t, "echo line; "+ready+"exit 0")
	l.logger = slog.New(handlerFunc(func(slog.Record) { <-blocked }))
	p := startWorker(t, l)
	<-p.done()
	close(blocked)
	if got := p.tail(); !slices.Equal(got, []string{"line"}) {
		t.Errorf("the tail is %q", got)
	}
}

// When the supervisor is killed its workers die, and what they started, also
// inside of C code that never returns.
func TestSupervisorsDeathIsItsWorkers(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), testAs+"=supervisor", "SOCKET_DIR="+shell(t, "").socketDir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var worker, child int
	if _, err := fmt.Fscan(stdout, &worker, &child); err != nil {
		t.Fatalf("the supervisor has not said what it started: %v, %v", err, cmd.Wait())
	}
	processes := []watched{watchPid(t, worker), watchPid(t, child)}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, w := range processes {
		w.awaitEnd(t)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the supervisor was not killed")
	}
}

// testSupervisor starts a worker that is busy for ever, and says its number
// and its child's.
func testSupervisor() int {
	records := make(chan printed, 10)
	p, err := start(context.Background(), launch{
		pool: "stuck", id: 1,
		argv: []string{"python3", "-c", `
import os, subprocess
print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
os.write(5, b"1|1|unix|1|exchange\n")
sum(range(10 ** 15))
`},
		env:          os.Environ(),
		socketDir:    os.Getenv("SOCKET_DIR"),
		startTimeout: time.Minute,
		logger:       logInto(records),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.pid, (<-records).Msg)
	<-p.done() // it does not end before we do
	return 1
}

// Fifty workers come and go, ready or not, and leave no descriptor, folder or socket.
func TestNothingIsLeftBehind(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	l := shell(t, ready+"exec sleep 1000")
	broken := l
	broken.argv = []string{"false"}
	before := ourDescriptors(t)
	for i := range 50 {
		if i%5 == 0 {
			if _, err := start(t.Context(), broken); err == nil {
				t.Fatal("false is ready")
			}
			continue
		}
		p, err := start(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		p.kill()
		<-p.done()
		if err := p.page.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantDescriptors(t, before)
	wantEmpty(t, l.socketDir)
	wantEmpty(t, tmp)
	wantNoChildren(t)
}

// A supervisor that dies before its worker's lifeline is armed is noticed too.
func TestSupervisorDiesDuringTheLaunch(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	recipe, err := shell(t, "exec sleep 1000").recipe(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer recipe.Close()
	lifeline, w, err := os.Pipe()
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	defer lifeline.Close()
	said, refusal, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()

	cmd := exec.Command("/proc/self/exe", "exec-worker")
	cmd.ExtraFiles = []*os.File{null, null, null, lifeline, null, recipe, refusal}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Run()
	refusal.Close()
	b, rerr := io.ReadAll(said)
	if cmd.ProcessState.ExitCode() != 126 || !strings.Contains(string(b), "the supervisor is gone") {
		t.Errorf("%v; it said %q, %v", err, b, rerr)
	}
}

// Nobody but fpmd can start exec-worker.
func TestExecWorkerByHand(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "exec-worker")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 64 || !strings.Contains(string(out), "does nothing by hand") {
		t.Errorf("%v, %s", err, out)
	}
}

// handlerFunc is a log that gives every record to a function, unguarded: for
// workers that print on one stream.
type handlerFunc func(slog.Record)

func (handlerFunc) Enabled(context.Context, slog.Level) bool { return true }

func (h handlerFunc) Handle(_ context.Context, r slog.Record) error {
	h(r)
	return nil
}

func (h handlerFunc) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h handlerFunc) WithGroup(string) slog.Handler { return h }

// closedFolder is a folder that a worker of shell may not enter.
func closedFolder(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

// scriptWithoutInterpreter is a program that a worker of shell may read, as it
// is in no folder of ours.
func scriptWithoutInterpreter(t *testing.T) string {
	f, err := os.CreateTemp("/tmp", "fpmd-script")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	_, werr := f.WriteString("#!/no/such/python\n")
	if err := errors.Join(werr, f.Chmod(0o755), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// killStrays ends the processes that a test's worker has left on purpose, and
// whose numbers it printed.
func killStrays(t *testing.T, lines []string) {
	t.Helper()
	for _, line := range lines {
		var pid int
		if n, _ := fmt.Sscanf(line, "%d", &pid); n == 1 && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// wantNoChildren says which workers are still known.
func wantNoChildren(t *testing.T) {
	t.Helper()
	ourChildren.mu.Lock()
	defer ourChildren.mu.Unlock()
	for pid := range ourChildren.pids {
		t.Errorf("process %d is left", pid)
	}
}

// ourDescriptors counts the descriptors of this process by what they are open on.
func ourDescriptors(t *testing.T) map[string]int {
	t.Helper()
	// The runtime opens its own with the first pipe.
	r, w, err := os.Pipe()
	if err := errors.Join(err, r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, target := range descriptors(t, os.Getpid()) {
		counts[target]++
	}
	return counts
}

func wantDescriptors(t *testing.T, want map[string]int) {
	t.Helper()
	// go-plugin's goroutines, and with them the last pipe, end a moment later.
	await(t, fmt.Sprintf("the descriptors are %v again", want), func() bool {
		return maps.Equal(ourDescriptors(t), want)
	})
}

// The host that all workers read can be changed by none of them.
func TestHostIsSealed(t *testing.T) {
	f, err := sealedMemfd("fpmd-host", []byte("host"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := os.OpenFile(fdPath(int(f.Fd())), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_, err = again.WriteAt([]byte("x"), 0)
	for what, err := range map[string]error{"write": err, "shrink": again.Truncate(0), "grow": again.Truncate(100)} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
}
