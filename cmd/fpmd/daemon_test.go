package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is fpmd when it is told so, and its own exec-worker.
func TestMain(m *testing.M) {
	if long := os.Getenv(examinerEnv); long != "" {
		if err := examiner(long, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "exec-worker" || os.Getenv("FPMD_TEST_MAIN") == "1" {
		if path := os.Getenv("FPMD_TEST_COUNTS"); path != "" && len(os.Args) > 1 && os.Args[1] == "serve" {
			go tellCounts(path) // ends with the process
		}
		selfCheckEvery = 50 * time.Millisecond // which an operator's fpmd does every few seconds
		main()
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for a state that must come. It is no
// promise of speed: a machine may be slow, but not so slow.
const patience = 60 * time.Second

// A lockedBuffer is a log that grows while it is read.
type lockedBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	seen map[string]*found
}

// found is how often a text was found, and from where on nothing was looked at yet.
type found struct{ times, next int }

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Count is how often text is in the log. What was looked at once is not looked at again: some logs are long.
func (l *lockedBuffer) Count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.seen[text]
	if f == nil {
		if l.seen == nil {
			l.seen = make(map[string]*found)
		}
		f = new(found)
		l.seen[text] = f
	}
	for {
		i := bytes.Index(l.b.Bytes()[f.next:], []byte(text))
		if i < 0 {
			f.next = max(f.next, l.b.Len()-len(text)+1) // its beginning may be there
			return f.times
		}
		f.times++
		f.next += i + len(text)
	}
}

// A process is an fpmd that runs as it would for an operator, in its own
// process, race detector and all.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string // which everybody may enter: applications are in it
	log    lockedBuffer
	exited chan struct{}
	err    error
}

// interpreter is the Python of the tests' applications: Debian's, whose
// packages (Flask, Django) the tests use.
const interpreter = "/usr/bin/python3"

// appDir makes a folder that a worker of another user can read.
func appDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fpmd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// writes counts the files that write has written.
var writes atomic.Int64

// write writes a file, a second younger than the last: Python, where it may keep what it
// has compiled, knows sources apart by their size and by the second.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Renamed into place: a worker that starts now reads the old or the new.
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	age := time.Now().Add(time.Duration(writes.Add(1)) * time.Second)
	if err := os.Chtimes(path+".new", age, age); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// poolConfig is the configuration of one pool named app, of workers that run
// as nobody when the test is root. more are further lines of [pool.app].
func poolConfig(dir, more string) string {
	who := ""
	if os.Getuid() == 0 {
		who = "user = \"nobody\"\n"
	}
	return fmt.Sprintf("[supervisor]\nruntime_dir = %q\nlog_level = \"debug\"\n\n[pool.app]\nlisten = %q\nlisten_mode = \"0666\"\n%s%s\n",
		filepath.Join(dir, "run"), filepath.Join(dir, "app.sock"), who, more)
}

// wsgiPool is poolConfig for an application app.py in dir.
func wsgiPool(dir, more string) string {
	return poolConfig(dir, fmt.Sprintf("wsgi = \"app:application\"\ndirectory = %q\npython = %q\n%s", dir, interpreter, more))
}

// serve starts fpmd with config in dir and waits until its pools are ready.
func serve(t *testing.T, dir, config string) *process {
	t.Helper()
	d := launch(t, dir, config)
	d.waitWorkers(config)
	return d
}

var (
	workersKey = regexp.MustCompile(`(?m)^workers\s*=\s*(\d+)`)
	pmKey      = regexp.MustCompile(`(?m)^pm\s*=`)
)

// waitWorkers waits until every pool is ready, and whole as far as config says how many
// workers it has: the first is tried alone, and the others follow. Of a pool that is not static
// it says how many there may be.
func (d *process) waitWorkers(config string) {
	d.t.Helper()
	d.waitLog("every pool is ready")
	if pmKey.MatchString(config) {
		return
	}
	all := 0
	for _, m := range workersKey.FindAllStringSubmatch(config, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			d.t.Fatal(err)
		}
		all += n
	}
	d.waitLogTimes("worker ready", all)
}

// serveWith is serve with another binary than the test's own.
func serveWith(t *testing.T, binary, dir, config string) *process {
	t.Helper()
	d := launchBinary(t, binary, dir, config)
	d.waitWorkers(config)
	return d
}

// buildFpmd builds the command as make build does.
func buildFpmd(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "fpmd")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func launch(t *testing.T, dir, config string, args ...string) *process {
	t.Helper()
	return launchBinary(t, os.Args[0], dir, config, args...)
}

func launchBinary(t *testing.T, binary, dir, config string, args ...string) *process {
	t.Helper()
	d := prepare(t, binary, dir, config, args...)
	d.start()
	return d
}

// prepare is launchBinary up to its start.
func prepare(t *testing.T, binary, dir, config string, args ...string) *process {
	t.Helper()
	d := &process{t: t, dir: dir, exited: make(chan struct{})}
	path := filepath.Join(dir, "fpmd.toml")
	write(t, path, config)
	d.cmd = exec.Command(binary, append([]string{"serve", "-c", path}, args...)...)
	d.cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	return d
}

// start starts d.cmd, and sees to its end when the test is over.
func (d *process) start() {
	d.t.Helper()
	t := d.t
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.err = d.cmd.Wait(); close(d.exited) }()
	t.Cleanup(func() {
		select {
		case <-d.exited:
		default:
			d.cmd.Process.Signal(syscall.SIGINT)
			select {
			case <-d.exited:
			case <-time.After(patience):
				t.Errorf("fpmd does not end at SIGINT")
				d.cmd.Process.Kill()
				<-d.exited
			}
		}
		log := d.log.String()
		if strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic:") || strings.Contains(log, "does not add up") || t.Failed() {
			t.Errorf("fpmd's log:\n%s", log)
		}
	})
}

func (d *process) sock() string { return filepath.Join(d.dir, "app.sock") }

func (d *process) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
}

// waitLog waits until the log holds text n times more than before, n being 1
// unless given.
func (d *process) waitLog(text string) {
	d.t.Helper()
	d.waitLogTimes(text, 1)
}

func (d *process) waitLogTimes(text string, n int) {
	d.t.Helper()
	d.wait(fmt.Sprintf("%q %d times in the log", text, n), func() bool {
		return d.log.Count(text) >= n
	})
}

// wait waits for a state that must come while fpmd runs.
func (d *process) wait(what string, there func() bool) {
	d.t.Helper()
	d.waitWithin(patience, what, there)
}

func (d *process) waitWithin(patience time.Duration, what string, there func() bool) {
	d.t.Helper()
	end := time.Now().Add(patience)
	for !there() {
		select {
		case <-d.exited:
			if there() {
				return
			}
			d.t.Fatalf("fpmd has ended (%v), still no %s", d.err, what)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			d.t.Fatalf("still no %s", what)
		}
	}
}

// waitExit waits for fpmd's end and returns its exit code.
func (d *process) waitExit() int {
	d.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.t.Fatal("fpmd does not end")
	}
	return d.cmd.ProcessState.ExitCode()
}

// children lists the processes below pid.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
				pids = append(pids, children(n)...)
			}
		}
	}
	return pids
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// nginx starts a real nginx in front of the daemon's socket, with Debian's
// stock fastcgi_params and kept connections. extra stands in its location.
func (d *process) nginx(extra string) (url string) {
	d.t.Helper()
	t := d.t
	bin := "/usr/sbin/nginx"
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	addr := freeAddr(t)
	dir := filepath.Join(d.dir, "nginx"+strconv.Itoa(len(extra)))
	who := ""
	if os.Getuid() == 0 {
		who = "user " + webUser() + ";"
	}
	conf := `daemon off; ` + who + ` worker_processes 1; pid ` + dir + `/pid; error_log ` + dir + `/error.log info;
events { worker_connections 4096; }
http {
  access_log off; client_max_body_size 0; keepalive_requests 1000000;
  client_body_temp_path ` + dir + `/body; fastcgi_temp_path ` + dir + `/fcgi; proxy_temp_path ` + dir + `/proxy; uwsgi_temp_path ` + dir + `/uwsgi; scgi_temp_path ` + dir + `/scgi;
  upstream app { server unix:` + d.sock() + `; keepalive 32; }
  server { listen ` + addr + `; location / { fastcgi_pass app; fastcgi_keep_conn on; include /etc/nginx/fastcgi_params; ` + extra + ` } }
}
`
	write(t, filepath.Join(dir, "nginx.conf"), conf)
	cmd := exec.Command(bin, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			errs, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("nginx: %s%s", out.String(), errs)
		}
	})
	d.wait("nginx on "+addr, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return "http://" + addr
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func webUser() string {
	if _, err := user.Lookup("www-data"); err == nil {
		return "www-data"
	}
	return "nobody"
}

// client is one that does not repeat a request by itself.
var client = &http.Client{
	Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	Timeout:   patience,
}

// get returns status and body, or fails the test.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, body, err := fetch(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func fetch(ctx context.Context, method, url string, body io.Reader) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// A load is many clients that ask the same, one after the other, until stopped.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	served map[string]int // bodies of answers with status 200
	failed []string       // everything else
}

func startLoad(t *testing.T, clients int, ask func(ctx context.Context) (int, string, error)) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, served: make(map[string]int)}
	for range clients {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				status, body, err := ask(ctx)
				l.mu.Lock()
				switch {
				case errors.Is(err, context.Canceled):
				case err != nil:
					l.failed = append(l.failed, err.Error())
				case status != 200:
					l.failed = append(l.failed, fmt.Sprintf("%d %s", status, body))
				default:
					l.served[body]++
				}
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *load) stop() (served map[string]int, failed []string) {
	l.cancel()
	l.wg.Wait()
	return l.served, l.failed
}

// total is how many were served so far; body "" counts all.
func (l *load) total(body string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b, k := range l.served {
		if body == "" || b == body {
			n += k
		}
	}
	return n
}

func summary(failed []string) string {
	slices.Sort(failed)
	return fmt.Sprintf("%d failed: %q", len(failed), slices.Compact(failed))
}
