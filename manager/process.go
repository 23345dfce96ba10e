package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"fpmd/protocol"
)

// A launch is the recipe for one worker process.
type launch struct {
	pool         string
	id           int           // of the worker, unique in the supervisor's life
	argv         []string      // argv[0] is looked up on env's PATH
	chroot       string        // what is / for it; "": our own
	dir          string        // working directory; "": the supervisor's
	env          []string      // the application's, complete; the FPMD_* variables are added to it
	cred         *Credential   // nil: stay who we are, capabilities included
	policy       *Policy       // what the worker is put under; nil: it is under what we are
	timerSlack   int64         // of the worker, in ns; 0: as it comes
	newPrivs     bool          // let setuid programs and file capabilities give privileges
	umask        int           // of the worker
	limits       Limits        // of the worker
	groups       *groupTree    // where it gets a control group of its own; nil: nowhere
	group        GroupLimits   // of that
	threads      int           // exchanges at once; 0: the worker decides
	debug        bool          // the pool's
	host         *os.File      // what FPMD_HOST_FD names, or nil; its offset is shared by all who get it
	socketDir    string        // folder of mode 0700, where the worker's socket is bound
	startTimeout time.Duration // from launch to ready
	stopTimeout  time.Duration // what whoever owns the process gives to stop
	logger       *slog.Logger  // gets the lines that the worker prints
	spawned      func(pid int) // unless nil, is called when there is a process
}

// String says which worker it is about, what runs, as whom and where.
func (l *launch) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "worker %d of pool %s (%q as %s", l.id, l.pool, l.argv, userName(l.cred))
	if l.dir != "" {
		fmt.Fprintf(&b, " in %s", l.dir)
	}
	if l.chroot != "" {
		fmt.Fprintf(&b, " of %s", l.chroot)
	}
	b.WriteByte(')')
	return b.String()
}

// userName names whom a worker with cred runs as, in words.
func userName(cred *Credential) string {
	if cred == nil || cred.Name == "" {
		return "uid " + bareUser(cred)
	}
	return "user " + cred.Name
}

// bareUser is his name, or his number.
func bareUser(cred *Credential) string {
	switch {
	case cred == nil:
		return strconv.Itoa(os.Geteuid())
	case cred.Name == "":
		return strconv.FormatUint(uint64(cred.UID), 10)
	}
	return cred.Name
}

// A process is one worker process that was ready when start returned it. All
// methods may be called by any goroutine, at any time.
type process struct {
	pid   int
	slots int // exchanges it takes at once, 1 to protocol.MaxSlots

	// page outlives the process: what had begun is asked when it is dead.
	// Whoever owns the process closes the page when nobody asks any more.
	page *protocol.Page

	launch    launch
	group     *group   // its control group, or nil
	pidfd     *os.File // readable once the process has ended
	socket    *os.File // O_PATH: the only way to the worker's socket, which has no name any more
	lifeline  *os.File // write end: its closing, and so our death, kills the process group
	handshake *handshake
	refusal   *refusal // what exec-worker had to say
	output    *output
	gone      chan struct{}

	mu     sync.Mutex // guards what follows; signals are sent under it, so that none hits a stranger
	reaped bool
	sent   syscall.Signal // the last one that was sent to it before it had ended; 0: none
	ended  time.Time      // when it had; zero: it has not

	status exitStatus // written before gone is closed
}

// start launches a worker and waits until it is ready, which is when its
// handshake was read. An error is a *startError; nothing of the worker is left
// behind then, also when ctx has ended. Once start has returned, ctx has no
// say.
func start(ctx context.Context, l launch) (*process, error) {
	var p *process
	unwatch := func() bool { return true }
	r := &workerRunner{begin: func(env []string) (*process, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var err error
		if p, err = l.run(env); err == nil {
			unwatch = context.AfterFunc(ctx, p.kill)
			if l.spawned != nil {
				l.spawned(p.pid)
			}
		}
		return p, err
	}}
	// The client is given up once it has started: its Kill would want to speak
	// gRPC to the worker, and waits for two seconds whatever the pool says.
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  protocol.Version,
			MagicCookieKey:   protocol.MagicCookieKey,
			MagicCookieValue: protocol.MagicCookieValue,
		},
		Plugins:          plugin.PluginSet{}, // not nil, or the version would not count
		AllowedProtocols: []plugin.Protocol{"exchange"},
		RunnerFunc:       r.prepare,
		StartTimeout:     l.startTimeout,
		SkipHostEnv:      true, // the environment is the pool's, and complete
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: l.socketDir},
		// It logs every end of a process as an error and without its pool;
		// whoever owns the process says it once, with the reason.
		Logger: hclog.NewNullLogger(),
	})
	_, err := client.Start()
	unwatch()
	if p == nil {
		return nil, &startError{launch: l, cause: err}
	}
	if cause := p.whyNotReady(ctx, err); cause != nil {
		p.kill()
		<-p.gone
		lines := p.tail()
		if p.lackedThreads() { // they are of no use to an operator, and the cause has said it
			lines = []string{p.output.first()}
		}
		return nil, &startError{launch: l, cause: errors.Join(cause, p.page.Close()), lines: lines}
	}
	p.handshake.Close()
	return p, nil
}

// whyNotReady turns what go-plugin says of a launch into the reason that an
// operator can act on. Nil: the worker is ready.
func (p *process) whyNotReady(ctx context.Context, err error) error {
	line, herr := p.handshake.result()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("given up before it was ready: %w", context.Cause(ctx))
	case err == nil:
		return nil
	case herr != nil:
		return herr
	case line != "":
		return fmt.Errorf("handshake %q: %w", line, err)
	}
	select {
	case <-p.gone:
		if said := p.refusal.String(); said != "" {
			return errors.New(said)
		}
		err := fmt.Errorf("%v before it was ready", p.status)
		if p.lackedThreads() {
			err = fmt.Errorf("%w: %w", err, explainLimit(unix.EAGAIN, userName(p.launch.cred), p.launch.limits.Nproc))
		}
		return err
	default:
	}
	if p.handshake.over() {
		return errors.New("closed its handshake descriptor without a line")
	}
	return fmt.Errorf("not ready within start_timeout = %v", p.launch.startTimeout)
}

// lackedThreads reports whether the process ended because a Go runtime, that of
// exec-worker first of all, could not make a thread. It can't be caught, only
// read: it is the first of pages of traces.
func (p *process) lackedThreads() bool {
	first := p.output.first()
	return strings.Contains(first, "failed to create new OS thread") || strings.Contains(first, "pthread_create failed")
}

// A startError says why a worker did not become ready, with what it printed.
type startError struct {
	launch launch
	cause  error    // why it is not ready
	lines  []string // the last that it printed
}

func (e *startError) Error() string {
	s := e.launch.String() + ": " + e.cause.Error()
	if len(e.lines) > 0 {
		s += "; its last lines:\n\t" + strings.Join(e.lines, "\n\t")
	}
	return s
}

func (e *startError) Unwrap() error { return e.cause }

// notStarted is err as the fields of a line. What the worker printed has lines of its own
// in the log, and is not said again but for the one that says most.
func notStarted(err error) []any {
	var e *startError
	if !errors.As(err, &e) {
		return []any{"cause", err}
	}
	fields := []any{"worker", e.launch.id, "cause", e.cause}
	if len(e.lines) > 0 {
		fields = append(fields, "last", telling(e.lines))
	}
	return append(fields, "command", e.launch.argv, "user", bareUser(e.launch.cred), "directory", e.launch.dir)
}

// telling is the line that says most of why a process ended: of what a Go program prints
// then that is the first, of all others the last.
func telling(lines []string) string {
	for _, l := range slices.Backward(lines) {
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			return l
		}
	}
	return lines[len(lines)-1]
}

// dial connects to the worker's socket. It does not wait: where the worker's
// backlog is full, that is the error.
func (p *process) dial() (*net.UnixConn, error) {
	raw, err := p.socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("dial worker %d of pool %s: %w", p.launch.id, p.launch.pool, err)
	}
	var conn *net.UnixConn
	var derr error
	// Under Control the descriptor can't be closed, and its number not given
	// to another file, while its name is in use.
	err = raw.Control(func(fd uintptr) {
		conn, derr = net.DialUnix("unix", nil, &net.UnixAddr{Name: fdPath(int(fd)), Net: "unix"})
	})
	if err := errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("dial worker %d of pool %s: %w", p.launch.id, p.launch.pool, err)
	}
	return conn, nil
}

// done is closed once the process has ended, its process group and its control group were killed, its
// last output read, and its exit status taken.
func (p *process) done() <-chan struct{} { return p.gone }

// exit says how the process ended. Valid once done is closed.
func (p *process) exit() exitStatus { return p.status }

// tail returns the last lines that the process printed, oldest first.
func (p *process) tail() []string {
	lines, _ := p.output.tail()
	return lines
}

// lastWords is what the process printed on its end that says most, or "" where that
// would have nothing to do with its end: it was long ago, or somebody killed it. Valid once
// done is closed.
func (p *process) lastWords() string {
	lines := p.lastLines()
	if len(lines) == 0 || p.status.fromOutside() {
		return ""
	}
	return telling(lines)
}

// lastLines is what the process printed on its end, the oldest line first. Valid once done is closed.
func (p *process) lastLines() []string {
	lines, at := p.output.tail()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(lines) == 0 || p.ended.Sub(at) > lastWordsTime {
		return nil
	}
	return lines
}

// sentBefore names the last signal that we had sent the process before it ended, or is "". Valid once
// done is closed.
func (p *process) sentBefore() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent == 0 {
		return ""
	}
	return unix.SignalName(p.sent)
}

// lastWordsTime is how long before its end a process may have printed why it ends.
const lastWordsTime = time.Second

// stop asks the process to end with SIGTERM. When it has not ended after grace, it calls late and
// kills its process group. It waits for neither.
func (p *process) stop(grace time.Duration, late func()) {
	p.signal(p.pid, unix.SIGTERM)
	time.AfterFunc(grace, func() {
		if !p.isReaped() {
			late()
			p.kill()
		}
	})
}

// kill kills the process and all that it started in its process group, now.
func (p *process) kill() { p.signal(-p.pid, unix.SIGKILL) }

// isReaped reports whether the process is no more: whose its number is now is not known.
func (p *process) isReaped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaped
}

func (p *process) signal(target int, sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		// Its only error is that nobody is left to be signalled.
		_ = unix.Kill(target, sig)
		if p.ended.IsZero() {
			p.sent = sig
		}
	}
}

// watch waits for the process to end and settles what it leaves. It is the
// process's one goroutine besides those that read its output, and its last
// act is to close gone.
func (p *process) watch() {
	// Sleep in the poller, not on a thread. Waitid would tell if the kernel
	// could not poll a pidfd: it would then wait itself.
	if raw, err := p.pidfd.SyscallConn(); err == nil {
		_ = raw.Read(func(fd uintptr) bool {
			var info unix.Siginfo
			err := unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
			return err != nil && !errors.Is(err, unix.EINTR) || info.Signo != 0
		})
	}
	for errors.Is(unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}

	p.mu.Lock()
	p.ended = time.Now()
	p.mu.Unlock()
	// The process is a zombie now. Until it is reaped its number is its own,
	// and so is that of its process group: no stranger can be hit.
	p.kill()
	p.group.kill()
	p.handshake.Close() // a descendant may hold the other end
	p.output.drain()

	p.mu.Lock()
	p.status = exitStatusOf(ourChildren.reap(p.pid))
	p.status.met = p.group.met()
	p.reaped = true
	p.mu.Unlock()

	p.refusal.wait()
	p.lifeline.Close()
	p.socket.Close()
	p.pidfd.Close()
	p.group.close()
	close(p.gone)
}

// An exitStatus is how a process ended.
type exitStatus struct {
	code   int            // of exit(2); -1 when a signal ended it
	signal syscall.Signal // 0 when it exited
	core   bool           // the signal left a core file
	met    string         // the limits of its control group that it has met; "": none
}

func exitStatusOf(ws syscall.WaitStatus) exitStatus {
	if ws.Signaled() {
		return exitStatus{code: -1, signal: ws.Signal(), core: ws.CoreDump()}
	}
	return exitStatus{code: ws.ExitStatus()}
}

// fromOutside reports whether a signal ended it that a process does not bring upon itself.
func (s exitStatus) fromOutside() bool {
	own := []syscall.Signal{0, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV, unix.SIGSYS, unix.SIGTRAP}
	return !slices.Contains(own, s.signal)
}

// String reads after the name of a process: `killed by SIGSEGV (core dumped)`.
func (s exitStatus) String() string {
	if s.met != "" {
		met := s.met
		s.met = ""
		return s.String() + ", " + met
	}
	if s.signal == 0 {
		return fmt.Sprintf("exited with status %d", s.code)
	}
	name := unix.SignalName(s.signal)
	if name == "" {
		name = fmt.Sprintf("signal %d", int(s.signal))
	}
	if s.core {
		name += " (core dumped)"
	}
	return "killed by " + name
}

// A workerRunner is how go-plugin sees a launch: it says when to start, reads
// the handshake as if it were the worker's stdout, and asks where the worker
// listens. Everything else is kept from it.
type workerRunner struct {
	begin   func(env []string) (*process, error)
	env     []string // the FPMD_* variables that go-plugin decides
	process *process // nil until Start
}

// prepare is go-plugin's RunnerFunc.
func (r *workerRunner) prepare(_ hclog.Logger, cmd *exec.Cmd, tmpDir string) (runner.Runner, error) {
	// Made for sockets that plugins make themselves, for each launch, and
	// removed by nobody but Kill.
	if err := os.Remove(tmpDir); err != nil {
		return nil, err
	}
	for _, kv := range cmd.Env {
		switch name, value, _ := strings.Cut(kv, "="); name {
		case protocol.MagicCookieKey:
			r.env = append(r.env, kv)
		case "PLUGIN_PROTOCOL_VERSIONS":
			r.env = append(r.env, protocol.EnvVersions+"="+value)
		}
	}
	return r, nil
}

// Start launches the process. go-plugin's context is not start's, and ends
// with its own Start.
func (r *workerRunner) Start(context.Context) (err error) {
	r.process, err = r.begin(r.env)
	return err
}

// Stdout is what go-plugin reads the handshake from.
func (r *workerRunner) Stdout() io.ReadCloser { return r.process.handshake }

// Stderr is empty: go-plugin would parse the application's lines for levels.
func (r *workerRunner) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// PluginToHost finds the number of slots where go-plugin looks for an address.
func (r *workerRunner) PluginToHost(network, slots string) (string, string, error) {
	threads := r.process.launch.threads
	n, err := strconv.ParseUint(slots, 10, 16)
	switch {
	case network != "unix":
		return "", "", fmt.Errorf("network %q, want unix", network)
	case err != nil || n < 1 || n > protocol.MaxSlots:
		return "", "", fmt.Errorf("%q slots, want 1 to %d", slots, protocol.MaxSlots)
	case threads != 0 && int(n) != threads:
		return "", "", fmt.Errorf("%d slots, want %d as %s says", n, threads, protocol.EnvThreads)
	}
	r.process.slots = int(n)
	return network, r.process.socket.Name(), nil
}

// HostToPlugin is asked by nobody.
func (r *workerRunner) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// Wait waits for the process's end.
func (r *workerRunner) Wait(context.Context) error {
	<-r.process.gone
	return nil
}

// Kill does nothing: start kills, after it has seen how things stand.
func (r *workerRunner) Kill(context.Context) error { return nil }

// Diagnose adds nothing: start knows better what to tell whom.
func (r *workerRunner) Diagnose(context.Context) string { return "" }

// Name and ID go into log lines that nobody sees.
func (r *workerRunner) Name() string { return r.process.launch.pool }

// ID is the process's number.
func (r *workerRunner) ID() string { return strconv.Itoa(r.process.pid) }

// A handshake is the pipe that a worker writes its one line to, made safe for
// go-plugin to read: it gets a line of exactly five fields, or nothing.
type handshake struct {
	pipe *os.File
	gone <-chan struct{} // the process's

	read  sync.Once
	ready bytes.Reader // what go-plugin gets

	mu    sync.Mutex // guards the outcome
	line  string
	err   error
	ended bool
}

// Read reads the line first, when it is called first.
func (h *handshake) Read(b []byte) (int, error) {
	h.read.Do(h.readLine)
	return h.ready.Read(b)
}

// Close ends a Read that waits.
func (h *handshake) Close() error { return h.pipe.Close() }

func (h *handshake) readLine() {
	line, err := h.untilNewline()
	none := errors.Is(err, io.EOF)
	if none {
		// Most likely the process is ending, and how it ends says more than
		// that its pipe is closed. If it isn't, a second is not missed.
		err = nil
		select {
		case <-h.gone:
		case <-time.After(time.Second):
		}
	}
	// A sixth field would be taken for a certificate, and go-plugin would fall
	// over it, and we with it.
	if n := strings.Count(line, "|") + 1; err == nil && !none && n != 5 {
		err = fmt.Errorf("handshake %q: %d fields, want 1|VERSION|unix|SLOTS|exchange", line, n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line, h.err, h.ended = line, err, true
	if err == nil && !none {
		h.ready.Reset([]byte(line + "\n"))
	}
}

// untilNewline returns the first line, without its end, and io.EOF when the
// pipe was closed, by either side, before there was any.
func (h *handshake) untilNewline() (string, error) {
	var buf [protocol.MaxHandshake]byte
	for n := 0; n < len(buf); {
		m, err := h.pipe.Read(buf[n:])
		if i := bytes.IndexByte(buf[n:n+m], '\n'); i >= 0 {
			return string(buf[:n+i]), nil
		}
		n += m
		switch {
		case err != nil && n == 0:
			return "", io.EOF
		case err != nil:
			return "", fmt.Errorf("handshake %q: no newline at its end", buf[:n])
		}
	}
	return "", fmt.Errorf("handshake %q...: no newline within %d bytes", buf[:64], len(buf))
}

func (h *handshake) result() (line string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.line, h.err
}

func (h *handshake) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}
