package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options is what a Manager is handed besides its configuration. There is no
// default for the Logger.
type Options struct {
	Logger *slog.Logger
	// Logs are the log files, which access logs that go "with the log" share.
	Logs *Logs
	// WSGI is how Python applications are hosted; without it there are none.
	WSGI *HostRecipe
	// Policy is what this process was started under, where it puts itself under another, which is
	// not meant for its workers.
	Policy *Policy
	// TimerSlack is what threads of this process had at its start, in ns; 0: not known.
	TimerSlack int64
	// CheckEvery is how often pools are checked for whether all adds up that they keep; 0: every
	// few seconds.
	CheckEvery time.Duration
	// Control, unless nil, serves the control socket until the listener is closed: at the stop, or
	// when the socket has to be made anew because somebody has removed it.
	Control func(net.Listener)
	// Inherited are the descriptors that systemd has handed over, by their names. New takes them.
	Inherited []*os.File
}

// A HostRecipe is how a program becomes a host for applications of one kind.
type HostRecipe struct {
	// Archive is what the host is read from. It reaches the worker through a
	// sealed memfd, never through a file that others could write.
	Archive []byte
	// Command is the argument vector that hosts spec, the archive being at fd.
	Command func(interpreter, spec string, fd int) []string
	// Pathless is Command where there is no path to a descriptor: in a chroot.
	Pathless func(interpreter, spec string, fd int) []string
}

// A Manager runs the pools of one configuration: their sockets, their queues,
// their workers.
type Manager struct {
	log      *slog.Logger
	opts     Options
	cfg      *Config // that it began with; a pool's own may be a later one
	lock     *os.File
	socks    string     // folder of the workers' sockets, and of files without a name
	host     *os.File   // WSGI's archive
	groups   *groupTree // of the workers' control groups; nil: there is none, and
	noGroups error      // says why
	path     string     // of the configuration
	since    time.Time
	pools    roster
	leaving  leaving
	control  *listener   // guarded by reload; nil: there is none
	estate   []*handover // what New has not given to a pool yet
	starts   turns       // of workers that start
	rations  rations
	ids      atomic.Int64 // of workers
	events   record       // what has happened

	rough      sync.Once         // it is said that memory can't be measured exactly
	reload     sync.Mutex        // held while a reload or the stop is under way, or something is restored
	stopped    bool              // guarded by reload, and so is
	complaints map[string]string // the last error about a path that can't be made again
	serving    sync.WaitGroup
	asked      sync.WaitGroup     // who serves the control socket
	quit       context.CancelFunc // ends what serving counts besides the servers
	draining   sync.WaitGroup     // pools that were removed, or have not come up
	hurry      context.Context    // ends, with why, when pools that were removed have no more time to drain
	hasten     context.CancelCauseFunc
	ready      chan struct{}
	allReady   chan struct{}
	someReady  chan struct{} // closed when the first pool is ready
	firstReady sync.Once
	over       chan struct{} // closed when nothing happens any more

	notifySocket string                          // systemd's; "": there is none
	restarts     func(context.Context, int) bool // unitRestarts; a test without systemd has another
}

// New makes the runtime folder, binds every socket, and returns a Manager that
// Start sets going. With an error nothing is left behind.
func New(cfg *Config, o Options) (_ *Manager, err error) {
	m := &Manager{
		log: o.Logger, opts: o, cfg: cfg,
		starts: newTurns(max(2, runtime.NumCPU())),
		ready:  make(chan struct{}), allReady: make(chan struct{}), someReady: make(chan struct{}), over: make(chan struct{}),
		socks: filepath.Join(cfg.Supervisor.RuntimeDir, "workers"),
		path:  cfg.Path,
		since: time.Now(),

		notifySocket: os.Getenv("NOTIFY_SOCKET"),
		restarts:     unitRestarts,
	}
	m.hurry, m.hasten = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			m.leave() // who is started next may have more luck
			closeHandovers(m.estate)
			m.release()
		}
	}()
	if m.estate, err = inherit(o.Inherited); err != nil {
		return nil, err
	}
	if err := m.claim(cfg.Supervisor.RuntimeDir); err != nil {
		return nil, err
	}
	m.groups, m.noGroups = claimGroups(m.log)
	if m.groups != nil {
		m.ids.Store(m.groups.last)
	}
	if err := m.holdToGroups(cfg); err != nil {
		return nil, err
	}
	if o.Control != nil {
		if m.control, err = m.listenControl(); err != nil {
			return nil, err
		}
	}
	if o.WSGI != nil {
		if m.host, err = sealedMemfd("fpmd-host", o.WSGI.Archive); err != nil {
			return nil, err
		}
	}
	m.rations.set(cfg.Supervisor.MaxWorkers)
	m.disclaimUnwanted(cfg)
	for _, pc := range cfg.Pools {
		p := newPool(m, pc)
		m.pools.add(p)
		if err := m.open(p, pc); err != nil {
			return nil, err
		}
		access, err := o.Logs.access(pc, cfg.Supervisor)
		if err != nil {
			return nil, err
		}
		p.access.Store(access)
	}
	m.disclaim(m.estate)
	m.estate = nil
	return m, nil
}

// claim makes the runtime folder ours. Whoever holds its lock is alive; what a
// dead one left in it is removed.
func (m *Manager) claim(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("supervisor.runtime_dir: %q: %w: %s", dir, err, pathRemedy(err, dir, "one"))
	}
	if err := oursAlone(dir); err != nil {
		return fmt.Errorf("supervisor.runtime_dir: %q: %w", dir, err)
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("supervisor.runtime_dir: %q: %w", dir, err)
	}
	m.lock = lock
	if err := os.RemoveAll(m.socks); err != nil {
		return fmt.Errorf("remove what is left of an earlier run: %w", err)
	}
	if err := os.Mkdir(m.socks, 0o700); err != nil {
		return fmt.Errorf("folder for worker sockets: %w", err)
	}
	return nil
}

// oursAlone refuses a folder in which somebody else could put sockets of his own
// in the place of our workers'.
func oursAlone(dir string) error {
	parents := []string{dir + "/.."}
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("it is a link of user %d, and leads where he wants: want a folder", st.Uid)
		}
		parents = append(parents, filepath.Dir(dir)) // where the link could be replaced
		err = unix.Stat(dir, &st)
	}
	if err != nil {
		return err
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, who could replace the workers' sockets: want a folder of user %d, or of root", st.Uid, os.Geteuid())
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("others may write there (mode %#o), and replace the workers' sockets: chmod go-w, or choose a folder of its own", st.Mode&0o7777)
	}
	for _, parent := range parents {
		if err := irreplaceable(parent); err != nil {
			return err
		}
	}
	return nil
}

// irreplaceable refuses a folder in which others could replace what is in it.
func irreplaceable(parent string) error {
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return err
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("others may write in the folder that it is in (mode %#o), and replace it: choose another place", st.Mode&0o7777)
	}
	return nil
}

// oursOnceMade is oursAlone for a folder that may have to be made yet.
func oursOnceMade(dir string) error {
	err := oursAlone(dir)
	if errors.Is(err, os.ErrNotExist) {
		err = irreplaceable(filepath.Dir(dir))
	}
	if errors.Is(err, os.ErrNotExist) { // and is made with dir
		return nil
	}
	return err
}

// lockFile makes and locks the file at path. Whoever held it may have removed it
// just before we got its lock, so it counts only if it is still there.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, pathRemedy(err, path, "one"))
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errors.New("another fpmd runs with it: stop it, or give each its own")
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		ours, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Lstat(path); err == nil && os.SameFile(ours, there) {
			return f, nil
		}
		f.Close()
	}
}

// leave leaves the listeners that systemd keeps to the fpmd after this one.
func (m *Manager) leave() {
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			l.left = l.stored != ""
		}
	}
}

// release gives back what claim and New took.
func (m *Manager) release() {
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			l.close()
		}
	}
	if m.control != nil {
		m.control.close()
	}
	if m.host != nil {
		m.host.Close()
	}
	if m.holdsRuntimeDir() {
		os.RemoveAll(m.socks)
		os.Remove(m.lock.Name())
	}
	m.lock.Close()
}

// holdsRuntimeDir reports whether the lock in runtime_dir is ours: the folder may have been removed
// meanwhile, and made by another fpmd.
func (m *Manager) holdsRuntimeDir() bool {
	if m.lock == nil {
		return false
	}
	ours, err := m.lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(m.lock.Name())
	return err == nil && os.SameFile(ours, there)
}

func sealedMemfd(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create for %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close())
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal %s: %w", name, err), f.Close())
	}
	return f, nil
}

// Start starts the workers and serves. It does not wait for anything; Ready does.
func (m *Manager) Start() {
	if m.groups != nil {
		m.log.Info("workers have control groups of their own", "below", m.groups.root)
	} else {
		m.log.Debug("workers have no control groups of their own", "cause", m.noGroups)
	}
	for _, p := range m.pools.all() {
		p.begin()
		for _, l := range p.listeners {
			m.store(l)
			m.serve(p, l)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.quit = cancel
	if m.control != nil {
		m.serveControl(m.control)
	}
	m.serving.Go(func() { m.upkeep(ctx) })     // ends at Stop
	m.serving.Go(func() { m.awaitPools(ctx) }) // ends when every pool is ready, or at Stop
}

// awaitPools closes m.ready, and m.allReady when its time has come.
func (m *Manager) awaitPools(ctx context.Context) {
	await := func(one, other, third <-chan struct{}) bool {
		select {
		case <-one:
		case <-other:
		case <-third:
		case <-ctx.Done():
			return false
		}
		return true
	}
	for _, p := range m.pools.all() {
		if !await(p.readyOnce, p.failedOnce, p.parted) {
			return
		}
	}
	if !await(m.someReady, nil, nil) {
		return
	}
	close(m.ready)
	for _, p := range m.pools.all() {
		if !await(p.readyOnce, p.parted, nil) {
			return
		}
	}
	close(m.allReady)
}

func (m *Manager) serve(p *pool, l *listener) {
	server := p.server.Load()
	m.serving.Go(func() { _ = server.Serve(l.Listener) }) // ends at Stop, or when l is closed
}

// Ready is closed once the start is over: each pool has had a worker that can take a request, or one that did not
// come up, and at least one pool serves. One that is broken is not to keep the others from their start.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// AllReady is closed once every pool has had a worker that can take a request.
func (m *Manager) AllReady() <-chan struct{} { return m.allReady }

// Unready is the names of pools that have not had one.
func (m *Manager) Unready() string {
	return poolNames(slices.DeleteFunc(slices.Clone(m.pools.all()), func(p *pool) bool {
		select {
		case <-p.readyOnce:
			return true
		default:
			return false
		}
	}))
}

// Over is closed once Stop has stopped all: there are no more events.
func (m *Manager) Over() <-chan struct{} { return m.over }

// Scale has each pool have by workers more, or fewer: of a dynamic pool or one on
// demand, it is the most that changes. None goes below one. It holds until a reload
// changes workers of the pool. The log has who asked for it.
func (m *Manager) Scale(by int, who string) {
	for _, p := range m.pools.all() {
		p.tellScaled(p.scale(by), who)
	}
}

// ScaleTo is Scale of one pool, to a number of workers.
func (m *Manager) ScaleTo(pool string, workers int, who string) error {
	if workers < 1 || workers > maxWorkers {
		return fmt.Errorf("%d workers: want a number from 1 to %d", workers, maxWorkers)
	}
	pools, err := m.named([]string{pool})
	if err != nil {
		return err
	}
	for _, p := range pools {
		p.mu.Lock()
		p.size = workers
		p.gen.kick()
		p.mu.Unlock()
		p.tellScaled(workers, who)
	}
	return nil
}

// Stop answers what was accepted, stops the workers, and removes what New
// made. When ctx ends first, requests are cut and workers killed. It returns when no
// process is left.
func (m *Manager) Stop(ctx context.Context) {
	m.reload.Lock() // a reload under way ends first: its context is the caller's to end
	defer m.reload.Unlock()
	m.stopped = true
	if m.bequeath(ctx) {
		m.leave()
	}
	defer context.AfterFunc(ctx, func() { m.hasten(context.Cause(ctx)) })()
	var wg sync.WaitGroup
	for _, p := range m.pools.all() {
		wg.Go(func() { // within drain_timeout
			pctx, cancel := p.drainUntil(ctx)
			defer cancel()
			p.stop(pctx, causeStop)
		})
	}
	wg.Wait()
	m.draining.Wait() // until then upkeep looks after them
	if m.quit != nil {
		m.quit()
	}
	m.serving.Wait()
	m.events.add(Event{Kind: EventStopped})
	close(m.over)
	m.release() // which closes the control socket: until now, it tells how far the stop is
	m.asked.Wait()
	m.groups.wait()
}

func (m *Manager) nextWorker() int { return int(m.ids.Add(1)) }

// settled is cfg with directory, and what is named below it, where the links in directory lead
// now: a worker that is started later, or imports late, gets the release that its generation began
// with, and not one that the link has been turned to meanwhile. What can't be followed stays as it is:
// the worker will tell.
func (cfg *PoolConfig) settled() *PoolConfig {
	if cfg.Chroot != "" { // where links lead elsewhere: each worker follows them
		return cfg
	}
	dir, err := filepath.EvalSymlinks(cfg.Directory)
	if err != nil || dir == cfg.Directory {
		return cfg
	}
	settle := func(path string) string {
		if rest, below := strings.CutPrefix(path, cfg.Directory+"/"); below {
			return filepath.Join(dir, rest)
		}
		return path
	}
	to := *cfg
	to.Directory, to.Python = dir, settle(cfg.Python)
	to.PythonPath = texts(cfg.PythonPath, settle)
	if len(cfg.Command) > 0 {
		to.Command = slices.Clone(cfg.Command)
		to.Command[0] = settle(cfg.Command[0])
	}
	return &to
}

// launch is the recipe for worker id of this pool.
func (p *pool) launch(id int, cfg *PoolConfig) (launch, error) {
	l := launch{
		pool: cfg.Name, id: id,
		argv:   cfg.Command,
		chroot: cfg.Chroot, dir: cfg.Directory,
		env:  cfg.Environ(os.Environ()),
		cred: cfg.Cred, umask: cfg.Umask, limits: cfg.Limits, newPrivs: !cfg.NoNewPrivs,
		threads: cfg.Threads, debug: cfg.Debug,
		groups: p.mgr.groups, group: cfg.Group,
		socketDir:    p.mgr.socks,
		startTimeout: cfg.StartTimeout, stopTimeout: cfg.StopTimeout,
		policy: policyOfWorkers(cfg.Limits.Scheduling, p.mgr.opts.Policy), timerSlack: p.mgr.opts.TimerSlack,
		logger: p.log,
	}
	if cfg.WSGI != "" {
		if p.mgr.host == nil {
			return l, fmt.Errorf("pool %s: this fpmd was built without the WSGI host", cfg.Name)
		}
		l.host = p.mgr.host
		command := p.mgr.opts.WSGI.Command
		if cfg.Chroot != "" {
			command = p.mgr.opts.WSGI.Pathless
		}
		l.argv = command(cfg.Python, cfg.WSGI, hostFD)
		l.threads = 1
		l.env = append(l.env, "FPMD_DIRECTORY="+cfg.Directory, "FPMD_PYTHON_PATH="+strings.Join(cfg.PythonPath, ":"))
	}
	return l, nil
}

// AdoptOrphans makes this process the parent of whatever its workers leave
// behind, and reaps it until ctx ends.
func AdoptOrphans(ctx context.Context) error {
	if err := becomeSubreaper(); err != nil {
		return err
	}
	go reapOrphans(ctx)
	return nil
}

// ControlSocket is where a Manager with this runtime_dir is asked and told, by
// root, its own user, and control_group.
func ControlSocket(runtimeDir string) string { return filepath.Join(runtimeDir, "control") }

func (m *Manager) listenControl() (*listener, error) {
	s := m.cfg.Supervisor
	as := &PoolConfig{ListenMode: 0o600, ListenOwner: -1, ListenGroup: -1, ListenBacklog: 64}
	if s.ControlGroup != "" {
		as.ListenMode, as.ListenGroup = 0o660, s.ControlGID
	}
	l, err := listenUnix(Address{Network: "unix", Address: ControlSocket(s.RuntimeDir)}, as)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

func (m *Manager) serveControl(l *listener) {
	m.asked.Go(func() { m.opts.Control(l.Listener) }) // ends when l is closed
}
