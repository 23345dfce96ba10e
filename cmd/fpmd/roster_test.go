package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fpmd/manager"
)

// namedPool is wsgiPool's pool under another name, which the socket has as well.
func namedPool(dir, name, more string) string {
	config := wsgiPool(dir, more)
	return strings.NewReplacer("pool.app]", "pool."+name+"]", "app.sock", name+".sock").Replace(config[strings.Index(config, "[pool.app]"):])
}

// names are those of the pools that there are, but for those that were removed.
func (d *process) names() (names []string) {
	for _, p := range d.status().Pools {
		if p.State != "removed" {
			names = append(names, p.Name)
		}
	}
	return names
}

// holds reports whether the process has a file open.
func (d *process) holds(path string) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == path {
			return true
		}
	}
	return false
}

// dawdler answers /slow/SECONDS after so many, and tells when it has begun.
const dawdler = `
import time
def application(environ, start_response):
    _, path, seconds = (environ["PATH_INFO"] + "/").split("/")[:3]
    if path == "slow":
        print("slow begins", flush=True)
        time.sleep(float(seconds))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
`

// slowly begins a request to the socket that takes so many seconds, which the log tells; its answer is sent.
func (d *process) slowly(sock, seconds string) <-chan string {
	d.t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		d.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(fcgiRequest("/slow/" + seconds)); err != nil {
		d.t.Fatal(err)
	}
	d.waitLog("slow begins")
	answered := make(chan string, 1)
	go func() { // ends with the answer, or after patience
		defer c.Close()
		answer, err := readAnswer(c)
		answered <- fmt.Sprint(answer, err)
	}()
	return answered
}

// A reload brings a pool that is new in the configuration, and takes one away that is gone: that one answers what it has, its socket,
// its workers and its log go, and what has happened in it can still be asked for. The plan says both before.
func TestPoolsComeAndGo(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), dawdler)
	accesses := filepath.Join(dir, "access.log")
	config := wsgiPool(dir, fmt.Sprintf("workers = 1\naccess_log = %q\n", accesses))
	head := config[:strings.Index(config, "[pool.app]")]
	abc := namedPool(dir, "abc", "workers = 2\n")
	d := serve(t, dir, config)
	file := filepath.Join(dir, "fpmd.toml")
	sock := func(name string) string { return filepath.Join(dir, name+".sock") }

	write(t, file, head+abc+config[len(head):])
	if said, code := d.told("plan", "--changed"); code != 0 || said != "pool abc: new\n" {
		t.Errorf("plan: exit code %d: %q", code, said)
	}
	if said, code := d.told("reload", "abc"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	if got := fmt.Sprint(d.names()); got != "[abc app]" {
		t.Errorf("the pools are %s, want [abc app]", got)
	}
	if answer, err := askOnce(sock("abc")); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("the new pool answers %q, %v", answer, err)
	}
	if p := d.status().Pools[0]; len(p.Workers) != 2 || p.State != "serving" {
		t.Errorf("the new pool has %d workers and is %s, want 2 and serving", len(p.Workers), p.State)
	}

	pid := d.status().Pools[1].Workers[0].PID
	answered := d.slowly(sock("app"), "1")
	write(t, file, head+abc)
	if said, code := d.told("plan", "--changed"); code != 0 || said != "pool app: removed, once it has answered what it has\n" {
		t.Errorf("plan: exit code %d: %q", code, said)
	}
	if said, code := d.told("reload", "--changed"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	if got := fmt.Sprint(d.names()); got != "[abc]" {
		t.Errorf("the pools are %s, want [abc]", got)
	}
	if answer := <-answered; !strings.HasSuffix(answer, "hello<nil>") {
		t.Errorf("who was being served when the pool was removed: %q", answer)
	}
	d.waitLog("msg=\"pool removed\" pool=app")
	if _, err := os.Lstat(sock("app")); !os.IsNotExist(err) {
		t.Errorf("its socket is there: %v", err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("its worker %d is there: %v", pid, err)
	}
	d.wait("its log closed", func() bool { return !d.holds(accesses) })
	if b, err := os.ReadFile(accesses); err != nil || strings.Count(string(b), "/slow") != 1 {
		t.Errorf("its log has %q, %v", b, err)
	}
	if said, code := d.told("events", "app"); code != 0 || !strings.Contains(said, "its pool was removed") {
		t.Errorf("events of it: exit code %d: %s", code, said)
	}
	if said, _ := d.story(pid); !strings.Contains(said, "its pool was removed") {
		t.Errorf("why its worker has ended: %s", said)
	}
	for _, command := range []string{"restart", "rollback", "reload"} {
		if said, code := d.told(command, "app"); code != exitFailure || !strings.Contains(said, "there is no pool \"app\": want one of abc") {
			t.Errorf("%s of it: exit code %d: %s", command, code, said)
		}
	}
	if said, code := d.told("rollback", "abc"); code != exitFailure || !strings.Contains(said, "there was no reload or restart since the pool came") {
		t.Errorf("rollback of the new one: exit code %d: %s", code, said)
	}
	write(t, file, config+abc) // and again, by the same name
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("the pool that came back answers %q, %v", answer, err)
	}
}

// Where one of the new pools does not come up, nobody leaves, and who was to take what another listens at does not come: going back to the
// configuration before is as if nothing had been. A new pool that takes nothing comes all the same.
func TestPoolsThatGoTogether(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	sock := func(name string) string { return filepath.Join(dir, name+".sock") }
	config := wsgiPool(dir, "workers = 1\n")
	head := config[:strings.Index(config, "[pool.app]")]
	config = strings.Replace(config, fmt.Sprintf("listen = %q", sock("app")), fmt.Sprintf("listen = [%q, %q]", sock("one"), sock("two")), 1)
	if strings.Contains(config, "app.sock") {
		t.Fatalf("the pool's address is not where it was looked for: %s", config)
	}
	d := serve(t, dir, config)
	file := filepath.Join(dir, "fpmd.toml")
	one, two, free := namedPool(dir, "one", "workers = 1\n"), namedPool(dir, "two", "workers = 1\n"), namedPool(dir, "free", "workers = 1\n")
	for range 2 {
		write(t, file, head+one+strings.Replace(two, "app:application", "none:application", 1)+free)
		said, code := d.told("reload")
		for _, want := range []string{
			"No module named 'none'", "pool one: it has come up, and is given up: it was to listen where pool app does", "pool app: it goes on serving, for pool two, which is new",
		} {
			if code != exitFailure || !strings.Contains(said, want) {
				t.Errorf("one of two is broken: exit code %d: %s, want %q", code, said, want)
			}
		}
		if got := fmt.Sprint(d.names()); got != "[free app]" {
			t.Errorf("the pools are %s, want [free app]", got)
		}
		for _, name := range []string{"one", "two", "free"} {
			if answer, err := askOnce(sock(name)); err != nil || !strings.HasSuffix(answer, "hello") {
				t.Errorf("%s.sock answers %q, %v", name, answer, err)
			}
		}
		write(t, file, config)
		if said, code := d.told("reload"); code != 0 {
			t.Errorf("back: exit code %d: %s", code, said)
		}
		for _, name := range []string{"one", "two"} {
			if answer, err := askOnce(sock(name)); err != nil || !strings.HasSuffix(answer, "hello") {
				t.Errorf("after going back, %s.sock answers %q, %v", name, answer, err)
			}
		}
	}
	write(t, file, head+one+two)
	if said, code := d.told("reload"); code != 0 {
		t.Errorf("both are good: exit code %d: %s", code, said)
	}
	for _, name := range []string{"one", "two"} {
		if answer, err := askOnce(sock(name)); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Errorf("%s.sock answers %q, %v", name, answer, err)
		}
	}
	if got := fmt.Sprint(d.names()); got != "[one two]" {
		t.Errorf("the pools are %s, want [one two]", got)
	}
	write(t, file, head+two)
	if said, code := d.told("reload", "one"); code != 0 {
		t.Errorf("one leaves: exit code %d: %s", code, said)
	}
	write(t, file, head+one)
	for _, command := range []string{"plan", "reload"} {
		if said, code := d.told(command, "two"); code != exitFailure || !strings.Contains(said, "no pool would be left") {
			t.Errorf("%s of the last one, which leaves: exit code %d: %s", command, code, said)
		}
	}
}

// A pool that was removed is looked after as long as it has somebody to answer: it is in the status and can be asked why, which is no alarm,
// its idle workers leave soon, and one that takes too much memory is killed, also while fpmd stops.
func TestRemovedPoolIsLookedAfter(t *testing.T) {
	for _, stops := range []bool{false, true} {
		t.Run(fmt.Sprint("while fpmd stops: ", stops), func(t *testing.T) {
			t.Parallel()
			lookedAfter(t, stops)
		})
	}
}

func lookedAfter(t *testing.T, stops bool) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), strings.Replace(dawdler, "time.sleep(float(seconds))", `
        import os
        while not os.path.exists("grow"): time.sleep(0.01)
        kept = b"x" * (300 << 20)
        time.sleep(1000)`, 1))
	config := wsgiPool(dir, "workers = 3\nmax_memory_hard = \"100MiB\"\n")
	d := serve(t, dir, config)
	answered := d.slowly(d.sock(), "1000")
	write(t, filepath.Join(dir, "fpmd.toml"), config[:strings.Index(config, "[pool.app]")]+namedPool(dir, "two", "workers = 1\n"))
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	removed := func() manager.PoolStatus {
		ps := d.status().Pools
		if len(ps) != 2 || ps[1].Name != "app" || ps[1].State != "removed" {
			t.Fatalf("the status is of %d pools, the last of which is %s, and %s: want app, removed", len(ps), ps[len(ps)-1].Name, ps[len(ps)-1].State)
		}
		return ps[1]
	}
	d.wait("idle workers gone", func() bool { return len(removed().Workers) == 1 })
	if said, code := d.told("status"); code != 0 {
		t.Errorf("status: exit code %d: %s", code, said)
	}
	if said, s := d.story(removed().Workers[0].PID); s.Now == nil || s.Now.State != "busy" {
		t.Errorf("why its worker is there: %s", said)
	}
	if stops {
		d.signal(syscall.SIGTERM)
		d.waitLog("msg=\"worker gone\" pool=two")
	}
	write(t, filepath.Join(dir, "grow"), "")
	if answer := <-answered; !strings.Contains(answer, "Status: 502") {
		t.Errorf("whose worker was killed: %q", answer)
	}
	d.waitLog("msg=\"worker takes too much memory\" pool=app")
	d.waitLog("msg=\"pool removed\" pool=app")
	if stops {
		d.waitExit()
	} else if ps := d.status().Pools; len(ps) != 1 {
		t.Errorf("the status is of %d pools, want 1", len(ps))
	}
}

// Who had connected when a pool was removed, and had not said yet what he wants, is answered, by a worker that is there already: the code
// may be gone by then.
func TestRemovedPoolAnswersWhomItHasAccepted(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 3\n")
	d := serve(t, dir, config)
	c, err := net.Dial("unix", d.sock())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	request := fcgiRequest("/")
	if _, err := c.Write(request[:20]); err != nil {
		t.Fatal(err)
	}
	d.wait("the connection", func() bool { return d.status().Pools[0].Connections == 1 })
	write(t, filepath.Join(dir, "two", "app.py"), helloApp)
	two := strings.Replace(namedPool(dir, "two", "workers = 1\n"), fmt.Sprintf("directory = %q", dir), fmt.Sprintf("directory = %q", filepath.Join(dir, "two")), 1)
	write(t, filepath.Join(dir, "fpmd.toml"), config[:strings.Index(config, "[pool.app]")]+two)
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	write(t, filepath.Join(dir, "app.py"), "raise RuntimeError('the release is gone')\n")
	d.wait("idle workers gone, but for one", func() bool { return len(d.status().Pools[1].Workers) == 1 })
	if _, err := c.Write(request[20:]); err != nil {
		t.Fatal(err)
	}
	if answer, err := readAnswer(c); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("he is answered %q, %v", answer, err)
	}
	d.waitLog("msg=\"pool removed\" pool=app")
}

// Nothing that a reload opens makes fpmd wait: an access log that is a pipe without a reader refuses it, and fpmd goes on. What was made for a
// reload that is refused, or a pool that does not come up, goes again.
func TestReloadOpensLogs(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1\n")
	d := serve(t, dir, config)
	file, pipe, log := filepath.Join(dir, "fpmd.toml"), filepath.Join(dir, "pipe"), filepath.Join(dir, "new.log")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		config + fmt.Sprintf("access_log = %q\n", pipe),
		config + fmt.Sprintf("access_log = %q\n", log) + namedPool(dir, "two", fmt.Sprintf("access_log = %q\n", pipe)),
	} {
		write(t, file, text)
		if said, code := d.told("reload", "--changed"); code != exitFailure || !strings.Contains(said, "access_log: "+fmt.Sprintf("%q", pipe)) || !strings.Contains(said, "nobody reads this pipe") {
			t.Errorf("a pipe without a reader: exit code %d: %s", code, said)
		}
		if said, code := d.told("reopen"); code != 0 {
			t.Errorf("reopen: exit code %d: %s", code, said)
		}
	}
	write(t, file, config+strings.Replace(namedPool(dir, "two", fmt.Sprintf("access_log = %q\n", log)), "app:application", "none:application", 1))
	if said, code := d.told("reload", "--changed"); code != exitFailure {
		t.Errorf("a pool that does not come up: exit code %d: %s", code, said)
	}
	d.wait("the log that was made for nobody gone", func() bool { _, err := os.Lstat(log); return os.IsNotExist(err) })
}

// A new pool whose workers take their time, and do not listen to TERM, holds up no urgent stop.
func TestUrgentStopWhilePoolsCome(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	write(t, filepath.Join(dir, "deaf.py"), "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(\"deaf begins\", flush=True)\ntime.sleep(1000)\n")
	config := wsgiPool(dir, "workers = 1\n")
	d := serve(t, dir, config)
	write(t, filepath.Join(dir, "fpmd.toml"), config+strings.Replace(namedPool(dir, "two", "stop_timeout = \"1h\"\nstart_timeout = \"30m\"\n"), "app:application", "deaf:application", 1))
	asked := make(chan struct{})
	go func() { defer close(asked); d.told("reload") }() // ends with the stop
	d.waitLog("deaf begins")
	d.signal(syscall.SIGINT)
	d.waitExit()
	<-asked
}

// Who is served by a pool that was removed has drain_timeout, and is cut then; a stop in between waits for that too, and a second
// signal does not.
func TestRemovedPoolDrains(t *testing.T) {
	for _, tt := range []struct {
		what, drain string
		stop        []syscall.Signal
	}{
		{"alone", "1s", nil},
		{"and a stop", "1s", []syscall.Signal{syscall.SIGTERM}},
		{"and an urgent stop", "1h", []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), dawdler)
			config := wsgiPool(dir, "workers = 1\nstop_timeout = \"1s\"\ndrain_timeout = \""+tt.drain+"\"\n")
			d := serve(t, dir, config)
			answered := d.slowly(d.sock(), "1000")
			write(t, filepath.Join(dir, "fpmd.toml"), config[:strings.Index(config, "[pool.app]")]+namedPool(dir, "two", "workers = 1\n"))
			if said, code := d.told("reload"); code != 0 {
				t.Fatalf("reload: exit code %d: %s", code, said)
			}
			for i, sig := range tt.stop {
				d.signal(sig)
				if i == 0 {
					d.waitLog("msg=stopping")
				}
			}
			if answer := <-answered; !strings.Contains(answer, "Status: 503") {
				t.Errorf("who was being served: %q", answer)
			}
			d.waitLog("msg=\"pool removed\" pool=app")
			if len(tt.stop) > 0 {
				d.waitExit()
			} else if answer, err := askOnce(filepath.Join(dir, "two.sock")); err != nil || !strings.HasSuffix(answer, "hello") {
				t.Errorf("the other pool answers %q, %v", answer, err)
			}
		})
	}
}

// A pool may have another name after a reload and listen where it did, under load: nobody is turned away. Where it does not come up
// under the new one, it stays what it was.
func TestRenamedPool(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1\n")
	d := serve(t, dir, config)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var failed []string
	asked := 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				answer, err := askOnce(d.sock())
				mu.Lock()
				asked++
				if err != nil || !strings.HasSuffix(answer, "hello") {
					failed = append(failed, fmt.Sprintf("%q, %v", answer, err))
				}
				mu.Unlock()
			}
		})
	}
	name, mode := "app", os.FileMode(0o666)
	for n := range 6 {
		next, broken := fmt.Sprintf("name%d", n), n%3 == 2
		text := strings.Replace(config, "[pool.app]", "[pool."+next+"]", 1)
		text = strings.Replace(text, "\"0666\"", fmt.Sprintf("\"%04o\"", 0o600+n), 1)
		if broken {
			text = strings.Replace(text, "app:application", "none:application", 1)
		}
		write(t, filepath.Join(dir, "fpmd.toml"), text)
		said, code := d.told("reload")
		if (code == exitFailure) != broken || broken && (!strings.Contains(said, "No module named 'none'") || !strings.Contains(said, "pool "+name+": it goes on serving, for pool "+next+", which is new, did not come up")) {
			t.Errorf("rename %d: exit code %d: %s", n, code, said)
		}
		if !broken {
			name, mode = next, os.FileMode(0o600+n)
		}
		if got := fmt.Sprint(d.names()); got != "["+name+"]" {
			t.Errorf("after rename %d the pools are %s, want %s", n, got, name)
		}
		if fi, err := os.Stat(d.sock()); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("after rename %d the socket is %v, %v, want mode %v", n, fi, err, mode)
		}
		mu.Lock()
		before := asked
		mu.Unlock()
		d.wait("some answers", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return asked > before+20
		})
	}
	cancel()
	wg.Wait()
	if len(failed) > 0 {
		t.Errorf("of %d requests %s", asked, summary(failed))
	}
}

// A new pool whose workers do not come up is not there, nor anything of it; the reload says so, with what they printed, and the next
// one tries again. One that can't have its address refuses the whole reload.
func TestNewPoolThatFails(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1\n")
	two := namedPool(dir, "two", "workers = 3\nmax_boot_failures = 1\n")
	d := serve(t, dir, config)
	file, log := filepath.Join(dir, "fpmd.toml"), filepath.Join(dir, "two.log")
	for range 2 {
		write(t, file, config+strings.Replace(two, "app:application", "none:application", 1)+fmt.Sprintf("access_log = %q\n", log))
		if said, code := d.told("reload", "--changed"); code != exitFailure || !strings.Contains(said, "No module named 'none'") || !strings.Contains(said, "there is no such pool") {
			t.Errorf("reload: exit code %d: %s", code, said)
		}
		if _, err := os.Lstat(filepath.Join(dir, "two.sock")); !os.IsNotExist(err) {
			t.Errorf("its socket is there: %v", err)
		}
		if got := fmt.Sprint(d.names()); got != "[app]" {
			t.Errorf("the pools are %s, want [app]", got)
		}
	}
	d.wait("its log closed", func() bool { return !d.holds(log) })
	if n := strings.Count(d.log.String(), "msg=\"new workers did not come up\" pool=two"); n != 2 {
		t.Errorf("it is told %d times that it did not come up, want 2", n)
	}
	generation := d.status().Pools[0].Generation
	write(t, file, config+strings.Replace(two, "two.sock", "app.sock", 1)) // which the configuration refuses
	if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, "pool.two.listen") {
		t.Errorf("an address twice: exit code %d: %s", code, said)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "two.sock"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, config+two)
	if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, "two.sock\": another process is listening there") {
		t.Errorf("an address of somebody else: exit code %d: %s", code, said)
	}
	if got := d.status().Pools[0].Generation; got != generation {
		t.Errorf("of the other pool generation %d serves, want %d: the whole reload is refused", got, generation)
	}
	l.Close()
	if said, code := d.told("reload", "two"); code != 0 {
		t.Errorf("a good one: exit code %d: %s", code, said)
	}
	if answer, err := askOnce(filepath.Join(dir, "two.sock")); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("it answers %q, %v", answer, err)
	}
}

// A reload has requests told of in another access log, or in none, without new workers; the one before is closed.
func TestAccessLogChanges(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1\n")
	first, second := filepath.Join(dir, "first.log"), filepath.Join(dir, "second.log")
	d := serve(t, dir, config+fmt.Sprintf("access_log = %q\n", first))
	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	for _, step := range []struct {
		key           string
		first, second int // lines, after a request
		held          []bool
	}{
		{fmt.Sprintf("access_log = %q\n", second), 0, 1, []bool{false, true}},
		{"", 0, 1, []bool{false, false}},
		{fmt.Sprintf("access_log = %q\n", first), 1, 1, []bool{true, false}},
	} {
		write(t, filepath.Join(dir, "fpmd.toml"), config+step.key)
		if said, code := d.told("plan", "--changed"); code != 0 || !strings.HasPrefix(said, "pool app: another access log\n") {
			t.Errorf("plan: exit code %d: %q", code, said)
		}
		if said, code := d.told("reload", "--changed"); code != 0 {
			t.Fatalf("reload: exit code %d: %s", code, said)
		}
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Errorf("the pool answers %q, %v", answer, err)
		}
		d.wait(fmt.Sprintf("%d and %d lines", step.first, step.second), func() bool { return lines(first) == step.first && lines(second) == step.second })
		d.wait("the log before closed", func() bool { return d.holds(first) == step.held[0] && d.holds(second) == step.held[1] })
	}
	if g := d.status().Pools[0].Generation; g != 1 {
		t.Errorf("generation %d serves, want 1", g)
	}
}

// The built-in front asks the pools that there are.
func TestFrontOfPoolsThatComeAndGo(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1\n")
	head := config[:strings.Index(config, "[pool.app]")]
	addr := freeAddr(t)
	d := launch(t, dir, config, "--http", addr)
	d.waitLog("every pool is ready")
	two := namedPool(dir, "two", "workers = 1\nscript_name = \"/two\"\n")
	for _, step := range []struct {
		config string
		status map[string]int
	}{
		{config + two, map[string]int{"/": 200, "/two/": 200}},
		{config, map[string]int{"/": 200, "/two/": 200}}, // it is app's by then
		{head + two, map[string]int{"/two/": 200}},
	} {
		write(t, filepath.Join(dir, "fpmd.toml"), step.config)
		if said, code := d.told("reload", "--changed"); code != 0 {
			t.Fatalf("reload: exit code %d: %s", code, said)
		}
		for path, want := range step.status {
			if status, body := get(t, "http://"+addr+path); status != want || body != "hello" {
				t.Errorf("%s: %d %q, want %d", path, status, body, want)
			}
		}
	}
}
