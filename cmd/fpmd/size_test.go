package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sizeApp says who answers; on /slow it takes a moment, on /eat it takes 64 MiB for good.
const sizeApp = `
import os, time
kept = []
def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    if environ["PATH_INFO"] == "/eat":
        kept.append(bytearray(os.urandom(1 << 16)) * 1024)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
`

// waitWorkerCount waits until there are n workers that have loaded the application.
func (d *process) waitWorkerCount(n int) {
	d.t.Helper()
	d.wait(fmt.Sprintf("%d workers", n), func() bool { return len(workersOf(d)) == n })
}

// statusOf is what /PATH was answered with: its status, and the body or, unless that is 200, all of it.
func statusOf(d *process, path string) (int, string, error) {
	answer, err := askPath(d.sock(), path)
	if err != nil {
		return 0, answer, err
	}
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	var status int
	if _, err := fmt.Sscanf(head, "Status: %d", &status); err != nil {
		return 0, "", fmt.Errorf("an answer without a status: %.200q", answer)
	}
	if status != 200 {
		body = answer
	}
	return status, body, nil
}

// asks sends n requests at once, and fails the test unless all are answered.
func asks(t *testing.T, d *process, path string, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if status, body, err := statusOf(d, path); err != nil || status != 200 {
				t.Errorf("%s got %d %.200q, %v", path, status, body, err)
			}
		})
	}
	wg.Wait()
}

// TTIN and TTOU change how many workers there are, down to one, until a reload changes
// workers, and not before.
func TestScaleBySignals(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	config := wsgiPool(dir, "workers = 2")
	d := serve(t, dir, config)
	d.waitWorkerCount(2)
	d.signal(syscall.SIGTTIN)
	d.waitWorkerCount(3)
	for left := 2; left >= 0; left-- {
		d.signal(syscall.SIGTTOU)
		d.waitWorkerCount(max(left, 1))
		d.waitLogTimes("msg=\"pool scaled\"", 4-left)
	}
	asks(t, d, "/", 20)
	d.signal(syscall.SIGUSR2) // the same as HUP
	d.waitLog("msg=reloaded")
	if size := d.status().Pools[0].Size; size != 1 {
		t.Errorf("a reload that changes nothing has scaled the pool to %d", size)
	}
	d.waitWorkerCount(1)
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, "workers = 2", "workers = 3", 1))
	d.signal(syscall.SIGHUP)
	d.waitLogTimes("msg=reloaded", 2)
	d.waitWorkerCount(3)
}

// USR1 has every log go on under its name, no line is lost by it, and no file left open.
func TestReopenLogs(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	access, main := filepath.Join(dir, "access.log"), filepath.Join(dir, "main.log")
	config := wsgiPool(dir, fmt.Sprintf("workers = 2\naccess_log = %q", access))
	d := launch(t, dir, strings.Replace(config, "[supervisor]\n", fmt.Sprintf("[supervisor]\nlog = %q\n", main), 1))
	lines := func(path, text string) int {
		b, _ := os.ReadFile(path) // not there yet: none
		return strings.Count(string(b), text)
	}
	d.wait("workers", func() bool { return lines(main, "worker ready") == 2 })
	files := openFiles(t, d.cmd.Process.Pid)
	const times, each = 5, 40
	for n := range times {
		asks(t, d, "/", each)
		for _, path := range []string{access, main} {
			if err := os.Rename(path, fmt.Sprint(path, ".", n)); err != nil {
				t.Fatal(err)
			}
		}
		asks(t, d, "/", each)
		d.signal(syscall.SIGUSR1)
		d.wait("both files again", func() bool { return lines(main, "logs opened again") == 1 && lines(access, "") > 0 })
	}
	asks(t, d, "/", 1)
	d.wait("every line", func() bool {
		sum := lines(access, "msg=request")
		for n := range times {
			sum += lines(fmt.Sprint(access, ".", n), "msg=request")
		}
		return sum == 2*times*each+1
	})
	d.wait("the old files closed", func() bool { return openFiles(t, d.cmd.Process.Pid) <= files })
}

// A dynamic pool keeps some workers free, grows under load up to what it may, and shrinks
// when it is over; no request waits for nothing.
func TestDynamic(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	d := serve(t, dir, wsgiPool(dir, `
pm = "dynamic"
workers = 6
start_workers = 2
min_spare_workers = 2
max_spare_workers = 3
idle_timeout = "500ms"`))
	d.waitWorkerCount(2)
	l := startLoad(t, 12, func(context.Context) (int, string, error) {
		return statusOf(d, "/slow")
	})
	d.wait("six that answer", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.served) >= 6
	})
	if _, failed := l.stop(); len(failed) > 0 {
		t.Error(summary(failed))
	}
	d.wait("it shrinks", func() bool { return len(workersOf(d)) <= 3 })
	asks(t, d, "/", 20)
	if n := len(workersOf(d)); n < 2 {
		t.Errorf("%d workers are left", n)
	}
}

// A pool on demand has no worker while nobody asks; who comes then waits for one and is served. Not one request
// fails because workers leave.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	d := serve(t, dir, wsgiPool(dir, "pm = \"ondemand\"\nworkers = 4\nidle_timeout = \"300ms\""))
	for range 3 {
		d.waitWorkerCount(0)
		asks(t, d, "/slow", 12)
	}
	for end := time.Now().Add(stormLength(t) / 3); time.Now().Before(end); time.Sleep(290 * time.Millisecond) {
		asks(t, d, "/", 1) // as they are about to leave
	}
}

// A pool on demand whose application fails says so at once, tries again, and serves when it is mended,
// as before: whoever asks when nobody has for a while is served, too.
func TestOnDemandFails(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	d := serve(t, dir, wsgiPool(dir, "pm = \"ondemand\"\nworkers = 2\nidle_timeout = \"100ms\""))
	d.waitWorkerCount(0)
	write(t, filepath.Join(dir, "app.py"), "import nonesuch\n")
	d.wait("boot_failed", func() bool {
		answer, err := askOnce(d.sock())
		return err == nil && strings.Contains(answer, "Fpmd-Outcome: boot_failed")
	})
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	d.wait("an answer", func() bool {
		answer, err := askOnce(d.sock())
		return err == nil && strings.HasPrefix(answer, "Status: 200")
	})
	for range 5 {
		d.waitWorkerCount(0)
		asks(t, d, "/", 1)
	}
}

// Workers are replaced after so many requests, so much time, or beyond so much memory,
// while the pool serves: nothing fails, and there are never fewer than there are to be.
func TestRecycling(t *testing.T) {
	for name, tt := range map[string]struct{ more, path, cause string }{
		"requests": {"max_requests = 50\nmax_requests_jitter = 20", "/", "max_requests"},
		"age":      {"max_age = \"1s\"\nmax_age_jitter = \"500ms\"", "/", "max_age"},
		"memory":   {"max_memory = \"128MiB\"", "/eat", "max_memory = 128MiB: it has "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), sizeApp)
			d := serve(t, dir, wsgiPool(dir, "workers = 2\n"+tt.more))
			d.waitLogTimes("msg=\"worker ready\"", 2)
			pause := time.Duration(0)
			if tt.path == "/eat" {
				pause = time.Second
			}
			l := startLoad(t, 4, func(ctx context.Context) (int, string, error) {
				time.Sleep(pause)
				return statusOf(d, tt.path)
			})
			d.wait("four workers are replaced", func() bool {
				n := strings.Count(d.log.String(), "msg=\"worker gone\"")
				if strings.Count(d.log.String(), "msg=\"worker ready\"")-n < 2 {
					t.Errorf("fewer than two workers:\n%s", d.log.String())
					return true
				}
				return n >= 4
			})
			if served, failed := l.stop(); len(failed) > 0 || len(served) < 4 {
				t.Errorf("%d requests failed: %.300v; %d workers answered", len(failed), failed, len(served))
			}
			for line := range strings.Lines(d.log.String()) {
				if strings.Contains(line, "msg=\"worker gone\"") && !strings.Contains(line, tt.cause) {
					t.Errorf("gone for another reason: %s", line)
				}
			}
		})
	}
}

// A worker beyond max_memory_hard is killed in the middle of a request, which fails alone.
func TestMaxMemoryHard(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), strings.Replace(sizeApp, "* 1024)", "* 4096)\n        time.sleep(1000)", 1))
	d := serve(t, dir, wsgiPool(dir, "workers = 2\nmax_memory_hard = \"128MiB\""))
	answer, err := askPath(d.sock(), "/eat")
	if err != nil || !strings.Contains(answer, "Fpmd-Outcome: worker_died") {
		t.Errorf("got %.200q, %v", answer, err)
	}
	d.waitLog("cause=\"max_memory_hard = 128MiB: it has ")
	if events, _ := d.told("events"); !strings.Contains(events, "takes too much memory: max_memory_hard") {
		t.Errorf("no word of it in\n%s", events)
	}
	asks(t, d, "/", 10)
	d.waitWorkerCount(2)
}

// While a pool is scaled up and down, while its workers are recycled, and while they leave for want
// of requests, not one request behind nginx fails.
func TestSizeStorm(t *testing.T) {
	for name, tt := range map[string]struct {
		more string
		each func(d *process, n int)
	}{
		"scaled":    {"workers = 3", func(d *process, n int) { d.signal([]syscall.Signal{syscall.SIGTTIN, syscall.SIGTTOU}[n/3%2]) }},
		"recycled":  {"workers = 3\nmax_requests = 50", func(*process, int) {}},
		"on demand": {"pm = \"ondemand\"\nworkers = 3\nidle_timeout = \"1s\"", func(*process, int) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), `
def application(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]
`)
			d := serve(t, dir, wsgiPool(dir, tt.more))
			url := d.nginx("")
			began := time.Now()
			l := startLoad(t, 6, func(ctx context.Context) (int, string, error) {
				method, body := "GET", ""
				if rand.N(2) == 0 {
					method, body = "POST", strings.Repeat("x", rand.N(200000))
				}
				if name == "on demand" && time.Since(began)/time.Second%2 == 1 {
					time.Sleep(time.Second) // who comes then comes as the workers leave
				}
				resp, got, err := fetch(ctx, method, url+"/", strings.NewReader(body))
				if err != nil {
					return 0, "", err
				}
				if got != fmt.Sprint(len(body)) {
					return resp.StatusCode, got, fmt.Errorf("%s of %d bytes: %d %.100s", method, len(body), resp.StatusCode, got)
				}
				return 200, "", nil
			})
			for n, end := 0, began.Add(stormLength(t)); time.Now().Before(end); n++ {
				tt.each(d, n)
				time.Sleep(200 * time.Millisecond)
			}
			served, failed := l.stop()
			gone := strings.Count(d.log.String(), "msg=\"worker gone\"")
			t.Logf("%d requests, %d workers gone", served[""], gone)
			if len(failed) > 0 {
				t.Errorf("%d requests failed: %.500v", len(failed), failed)
			}
			if gone < 3 {
				t.Errorf("only %d workers have gone", gone)
			}
		})
	}
}

// Pools together have no more than max_workers: one that is asked for more gives workers up when another is
// asked, no request of either fails, and a reload that changes the limit counts at once.
func TestMaxWorkers(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sizeApp)
	const elastic = "pm = \"ondemand\"\nworkers = 4\nidle_timeout = \"60s\""
	config := strings.Replace(wsgiPool(dir, elastic), "[supervisor]\n", "[supervisor]\nmax_workers = 4\n", 1)
	other := filepath.Join(dir, "other.sock")
	_, pool, _ := strings.Cut(strings.Replace(config, "app.sock", "other.sock", 1), "[pool.app]")
	config += "\n[pool.other]" + pool
	d := serve(t, dir, config)
	counts := func() (n [2]int) { // of workers that do not leave
		for i, p := range d.status().Pools {
			for _, w := range p.Workers {
				if w.State != "draining" {
					n[i]++
				}
			}
		}
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	load := func(sock string) {
		for range 8 {
			wg.Go(func() { // ends with ctx
				for ctx.Err() == nil {
					if answer, err := askPath(sock, "/slow"); err != nil || !strings.HasPrefix(answer, "Status: 200") {
						t.Errorf("got %.200q, %v", answer, err)
					}
				}
			})
		}
	}
	load(d.sock())
	d.wait("all but one for who is asked", func() bool { n := counts(); return n[0] >= 3 && n[0]+n[1] == 4 })
	load(other)
	d.wait("a half for each", func() bool { return counts() == [2]int{2, 2} })
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, "max_workers = 4", "max_workers = 6", 1))
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=reloaded")
	d.waitLog("supervisor.max_workers is now 6, not 4")
	d.wait("three for each", func() bool { return counts() == [2]int{3, 3} })
	cancel()
}
