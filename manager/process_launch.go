package manager

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fpmd/protocol"
)

// envHost names the descriptor that a host is read from. It is between fpmd and
// its own hosts, and no part of the exchange protocol.
const envHost = "FPMD_HOST_FD"

// The descriptors of a worker. From recipeFD on they are exec-worker's own,
// and closed when the worker's program takes its place.
const (
	listenFD    = 3
	pageFD      = 4
	handshakeFD = 5
	lifelineFD  = 6
	hostFD      = 7 // closed where the launch has no host
	recipeFD    = 8
	refusalFD   = 9
	groupFD     = 10 // closed where the worker starts in its control group, or has none
)

// listenBacklog is enough for every slot's connection and one that was
// abandoned before it.
const listenBacklog = 2 * protocol.MaxSlots

// A recipe is the part of a launch that exec-worker carries out, with our
// privileges until it has dropped them. It travels in a memfd, because argv
// and environment can be read by others, and as gob, because none of it has to
// be UTF-8.
type recipe struct {
	Argv     []string
	Env      []string
	Chroot   string
	Dir      string
	Cred     *Credential
	Umask    int
	Limits   Limits
	Group    bool // enter the control group of groupFD
	NewPrivs bool
	Policy   *Policy

	TimerSlack int64 // ns
}

// run starts the process, registers it as our child, and has it watched. env
// is what go-plugin wants the worker to have.
func (l launch) run(env []string) (_ *process, err error) {
	// Everything opened here is closed again when something fails, and what
	// is the worker's is closed in any case: it has its own copies.
	p := &process{launch: l, gone: make(chan struct{})}
	var ours, theirs closers
	defer func() {
		theirs.close()
		if err != nil {
			ours.close()
		}
	}()

	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	theirs.add(null)
	stdout, stdoutW, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	stderr, stderrW, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	handshakeR, handshakeW, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	refusalR, refusalW, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	lifelineR, lifelineW, err := pipe(&theirs, &ours)
	if err != nil {
		return nil, err
	}
	listener, socket, err := listenWorker(l.socketDir, l.socketName())
	if err != nil {
		return nil, err
	}
	theirs.add(listener)
	ours.add(socket)
	page, pageFile, err := protocol.NewPage()
	if err != nil {
		return nil, err
	}
	theirs.add(pageFile)
	ours.add(page)
	recipeFile, err := l.recipe(env)
	if err != nil {
		return nil, err
	}
	theirs.add(recipeFile)
	sys := &syscall.SysProcAttr{Setpgid: true}
	if l.groups != nil {
		if p.group, err = l.groups.make(l.groupName(), l.group); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				p.group.close()
			}
		}()
	}

	// Fd makes a descriptor blocking, as a program expects it of those that it
	// inherits. All of these are the worker's; ours stay in the poller.
	files := []uintptr{
		0: null.Fd(), 1: stdoutW.Fd(), 2: stderrW.Fd(),
		listenFD: listener.Fd(), pageFD: pageFile.Fd(), handshakeFD: handshakeW.Fd(), lifelineFD: lifelineR.Fd(),
		hostFD: ^uintptr(0), recipeFD: recipeFile.Fd(), refusalFD: refusalW.Fd(), groupFD: ^uintptr(0),
	}
	if l.host != nil {
		files[hostFD] = l.host.Fd()
	}
	switch {
	case p.group == nil:
	case l.groups.late:
		files[groupFD] = p.group.door.Fd()
	default:
		sys.UseCgroupFD, sys.CgroupFD = true, int(p.group.door.Fd())
	}
	pidfd := -1
	sys.PidFD = &pidfd
	attr := &syscall.ProcAttr{
		Files: files,
		Env:   []string{"GOMAXPROCS=1"}, // exec-worker's own; it has one thing to do
		Sys:   sys,
	}
	// The running binary, whatever has become of its file.
	p.pid, err = ourChildren.fork("/proc/self/exe", []string{"fpmd", "exec-worker"}, attr)
	if p.group != nil {
		p.group.door.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("start fpmd exec-worker: %w", explainLimit(err, userName(nil), Optional{}))
	}
	if pidfd < 0 {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
		ourChildren.reap(p.pid)
		return nil, errors.New("start fpmd exec-worker: this kernel gives no pidfd: want Linux 5.11 or later")
	}
	l.demote(p.pid)
	_ = unix.SetNonblock(pidfd, true) // so that the poller takes it
	p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	p.page = page
	p.socket = socket
	p.lifeline = lifelineW
	p.handshake = &handshake{pipe: handshakeR, gone: p.gone}
	p.refusal = readRefusal(refusalR)
	p.output = readOutput(l.logger.With("worker", l.id, "pid", p.pid), stdout, stderr)
	go p.watch() // until the process has ended
	return p, nil
}

// demote gives an exec-worker that has just begun what it will give itself, if it goes before others as we do: its own start,
// some milliseconds of computing, would hold up the very pools for which we do.
func (l *launch) demote(pid int) {
	if now, err := PolicyOf(pid); l.policy != nil && err == nil && now == Foremost {
		_ = l.policy.Set(pid) // it does so itself in any case
	}
}

// explainLimit says which limit it is that gives EAGAIN to a fork or an exec of who, whose
// pool may have one of its own.
func explainLimit(err error, who string, nproc Optional) error {
	if !errors.Is(err, unix.EAGAIN) {
		return err
	}
	if nproc.Set && nproc.Value != unlimited {
		return fmt.Errorf("%w: %s can have no more processes: rlimit_nproc = %d, or pids.max of the control group (TasksMax=), is reached: raise it, or want fewer workers", err, who, nproc.Value)
	}
	var r unix.Rlimit
	limit := "RLIMIT_NPROC"
	if unix.Getrlimit(unix.RLIMIT_NPROC, &r) == nil && r.Cur != unix.RLIM_INFINITY {
		limit += fmt.Sprintf(" = %d", r.Cur)
	}
	return fmt.Errorf("%w: %s can have no more processes: %s (LimitNPROC= in the unit, ulimit -u) or pids.max of the control group (TasksMax=) is reached: raise it, or want fewer workers", err, who, limit)
}

// recipe writes what exec-worker has to do into a memfd.
func (l launch) recipe(env []string) (*os.File, error) {
	fd, err := unix.MemfdCreate("fpmd-recipe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create for a worker's recipe: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fpmd-recipe")
	err = gob.NewEncoder(f).Encode(recipe{
		Argv: l.argv, Env: l.environ(env), Chroot: l.chroot, Dir: l.dir, Cred: l.cred, Umask: l.umask, Limits: l.limits,
		Group: l.groups != nil && l.groups.late, NewPrivs: l.newPrivs, Policy: l.policy, TimerSlack: l.timerSlack,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recipe for exec-worker: %w", err), f.Close())
	}
	return f, nil
}

// environ is the application's environment and the variables of PROTOCOL.md
// section 2, which win over the application's of the same names.
func (l launch) environ(env []string) []string {
	debug := "0"
	if l.debug {
		debug = "1"
	}
	ours := append(slices.Clone(env),
		protocol.EnvListen+"="+strconv.Itoa(listenFD),
		protocol.EnvPage+"="+strconv.Itoa(pageFD),
		protocol.EnvHandshake+"="+strconv.Itoa(handshakeFD),
		protocol.EnvLifeline+"="+strconv.Itoa(lifelineFD),
		protocol.EnvThreads+"="+strconv.Itoa(l.threads),
		protocol.EnvPool+"="+l.pool,
		protocol.EnvWorkerID+"="+strconv.Itoa(l.id),
		protocol.EnvDebug+"="+debug,
	)
	if l.host != nil {
		ours = append(ours, envHost+"="+strconv.Itoa(hostFD))
	}
	taken := map[string]bool{envHost: true}
	for _, kv := range ours {
		name, _, _ := strings.Cut(kv, "=")
		taken[name] = true
	}
	all := slices.DeleteFunc(slices.Clone(l.env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return taken[name]
	})
	return append(all, ours...)
}

// groupName is what the worker's control group is called.
func (l launch) groupName() string { return fmt.Sprintf("%s.%d", l.pool, l.id) }

// socketName is what ss and /proc/net/unix show of a worker's socket.
func (l launch) socketName() string {
	pool := strings.Map(func(r rune) rune {
		if r == '/' || r < ' ' {
			return '_'
		}
		return r
	}, l.pool)
	// With the name of its folder's descriptor it has to fit 107 bytes.
	return fmt.Sprintf("%s.%d", pool[:min(len(pool), 60)], l.id)
}

// listenWorker makes the socket that a worker accepts on, and the descriptor by
// which it can be reached. It is bound in dir to have an inode, and its name
// removed at once: so none is left behind when we are killed, and nobody finds
// it who does not have the descriptor.
func listenWorker(dir, name string) (listener, socket *os.File, err error) {
	var made closers
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	path := dir + "/" + name
	// A socket's path is at most 107 bytes; the folder's may be longer.
	folder, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("folder for worker sockets: %w", err)
	}
	defer folder.Close()
	dirfd := int(folder.Fd())

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for a worker: %w", err)
	}
	listener = os.NewFile(uintptr(fd), path)
	made.add(listener)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fdPath(dirfd) + "/" + name}); err != nil {
		return nil, nil, fmt.Errorf("bind %s: %w", path, err)
	}
	at, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err := errors.Join(err, unix.Unlinkat(dirfd, name, 0)); err != nil {
		return nil, nil, fmt.Errorf("open %s and remove its name: %w", path, err)
	}
	socket = os.NewFile(uintptr(at), path)
	made.add(socket)
	if err := unix.Listen(fd, listenBacklog); err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return listener, socket, nil
}

// fdPath is a path to what descriptor fd is open on, whatever its own name is.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// pipe makes a pipe whose ends are closed with rs and ws.
func pipe(rs, ws *closers) (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe for a worker: %w", err)
	}
	rs.add(r)
	ws.add(w)
	return r, w, nil
}

// closers are closed together.
type closers []io.Closer

func (cs *closers) add(c io.Closer) { *cs = append(*cs, c) }

// close closes them. Nothing is written through any of them that could still be lost.
func (cs *closers) close() {
	for _, c := range *cs {
		_ = c.Close()
	}
}
