package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// sleepApp takes 20 ms of a worker, and of no processor, and writes down each request that it has
// run to its end, whoever still waits for it.
const sleepApp = `
import os, time
ran = os.open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "ran"), os.O_WRONLY | os.O_APPEND)
def application(environ, start_response):
    time.sleep(0.02)
    os.write(ran, environ["QUERY_STRING"].encode() + b"\n")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
`

// sleepDir makes a folder of sleepApp, for a worker of any user.
func sleepDir(t *testing.T) string {
	t.Helper()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), sleepApp)
	write(t, filepath.Join(dir, "ran"), "")
	if err := os.Chmod(filepath.Join(dir, "ran"), 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A crowdOf visitors each ask once, however those before them fare, and leave when they
// have waited for as long as their patience lasts.
type crowdOf struct {
	addr     string
	patience time.Duration

	wg       sync.WaitGroup
	mu       sync.Mutex
	answered map[string]time.Duration // with 200: id, and after how long
	refused  []time.Duration          // with 503 and Retry-After
	left     int
	failed   []string // everything else
}

func newCrowdOf(url string, patience time.Duration) *crowdOf {
	return &crowdOf{addr: strings.TrimPrefix(url, "http://"), patience: patience, answered: make(map[string]time.Duration)}
}

// come has one visitor ask, now.
func (c *crowdOf) come(id string) {
	began := time.Now()
	c.wg.Go(func() { // ends with his patience
		resp, err := c.ask(id, began.Add(c.patience))
		took := time.Since(began)
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case os.IsTimeout(err):
			c.left++
		case err != nil:
			c.failed = append(c.failed, err.Error())
		case resp.StatusCode == http.StatusOK:
			c.answered[id] = took
		case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
			c.refused = append(c.refused, took)
		default:
			c.failed = append(c.failed, resp.Status)
		}
	})
}

func (c *crowdOf) ask(id string, end time.Time) (*http.Response, error) {
	conn, err := (&net.Dialer{Deadline: end}).Dial("tcp", c.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET /?%s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", id); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	_, err = io.ReadAll(resp.Body)
	return resp, err
}

// comeFor has so many come each second, at even distances, for as long as this.
func (c *crowdOf) comeFor(length time.Duration, rate int, name string) {
	began := time.Now()
	for i := range int(length.Seconds() * float64(rate)) {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		c.come(fmt.Sprint(name, i))
	}
}

// median is that of how long those waited who were answered.
func (c *crowdOf) median() time.Duration { return quantile(c.times(), 0.5) }

func (c *crowdOf) times() (ts []time.Duration) {
	for _, d := range c.answered {
		ts = append(ts, d)
	}
	return ts
}

// quantile is that of ts at q; 0 if there are none.
func quantile(ts []time.Duration, q float64) time.Duration {
	if len(ts) == 0 {
		return 0
	}
	slices.Sort(ts)
	return ts[min(int(q*float64(len(ts))), len(ts)-1)]
}

// ranFor counts those of the requests that the application has run to their end: all, and those that
// were for nothing, since nobody of cs has had the answer.
func ranFor(t *testing.T, dir, name string, cs ...*crowdOf) (ran, wasted int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "ran"))
	if err != nil {
		t.Fatal(err)
	}
	for id := range strings.FieldsSeq(string(b)) {
		if !strings.HasPrefix(id, name) {
			continue
		}
		ran++
		if !slices.ContainsFunc(cs, func(c *crowdOf) bool { _, had := c.answered[id]; return had }) {
			wasted++
		}
	}
	return ran, wasted
}

// twinOf is another pool of an application: what it can do when as many ask as it can serve.
func twinOf(config string) string {
	_, pool, _ := strings.Cut(config, "[pool.app]")
	return "\n[pool.twin]" + strings.Replace(pool, "app.sock", "twin.sock", 1)
}

// Under twice the load that its workers can do, a pool does as much as it can, for clients that are
// still there: nine tenths of what its twin does at the same time, on a machine that others are at work
// on, half of it within 200 ms, and less than 2 % of it for clients who had left; the others are answered 503. The log has two lines of it and, but for the first
// moments, none for each.
func TestOverloadStorm(t *testing.T) {
	const workers, rate = 4, 400
	dir := sleepDir(t)
	config := wsgiPool(dir, fmt.Sprintf("workers = %d\nlisten_backlog = 2048", workers))
	// Not the test binary: where others are at work, too, the race detector would cost more than the machine has left.
	d := serveWith(t, buildFpmd(t, dir), dir, config+twinOf(config))
	url := d.nginx("")
	early := newCrowdOf(url, 2*time.Second) // until those who had come before leave, or are answered
	early.comeFor(6*time.Second, rate, "early.")
	said := strings.Count(d.log.String(), "request failed")
	c := newCrowdOf(url, 2*time.Second)
	length := stormLength(t)
	can := startLoad(t, 2*workers, func(context.Context) (int, string, error) {
		answer, err := askPath(filepath.Join(dir, "twin.sock"), "/?twin")
		return http.StatusOK, answer, err
	})
	c.comeFor(length, rate, "storm.")
	most := can.total("")
	if said, code := d.told("status"); code != 0 || strings.Count(said, "\n  overloaded for ") != 1 {
		t.Errorf("fpmd status: exit code %d, want one pool overloaded:\n%s", code, said)
	}
	summedUp := strings.Count(d.log.String(), "request failed") == said
	early.wg.Wait()
	c.wg.Wait()
	asks(t, d, "/?after", 4*workers) // whatever had begun has ended when they are answered
	ran, wasted := ranFor(t, dir, "storm.", c)
	useful := len(c.answered)
	t.Logf("%d of %d (%.0f %%), half of them within %v; %d were refused, half of them within %v, and %d left; %d of %d runs were for nobody",
		useful, most, 100*float64(useful)/float64(most), c.median().Round(time.Millisecond), len(c.refused), quantile(c.refused, 0.5).Round(time.Millisecond), c.left, wasted, ran)
	if useful*10 < most*9 {
		t.Errorf("%d useful answers, want nine tenths of %d", useful, most)
	}
	if m := c.median(); m >= 200*time.Millisecond {
		t.Errorf("half of the answers took longer than %v, want less than 200ms", m)
	}
	if wasted*50 >= ran {
		t.Errorf("%d of %d runs were for clients that had left, want less than 2 %%", wasted, ran)
	}
	if len(c.refused) == 0 {
		t.Error("nobody was refused")
	}
	if len(c.failed) > 0 {
		t.Error(summary(c.failed))
	}
	if !summedUp {
		t.Error("the log has a line for each that was refused")
	}
	d.waitLog("msg=\"overload is over\"")
	if n := strings.Count(d.log.String(), "msg=\"pool overloaded\""); n != 1 {
		t.Errorf("overload was told of %d times, want once", n)
	}
}

// A burst is no overload: all of two hundred that come at once are answered, though those that come with
// them go on coming, and in the order in which they came.
func TestBurstIsNoOverload(t *testing.T) {
	const workers = 4
	dir := sleepDir(t)
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = %d", workers)))
	c := newCrowdOf(d.nginx(""), patience)
	for i := range 200 {
		c.come(fmt.Sprint("burst.", i))
	}
	c.comeFor(3*time.Second, 100, "after.")
	c.wg.Wait()
	if len(c.answered) != 500 || len(c.refused) > 0 || len(c.failed) > 0 {
		t.Errorf("%d of 500 were answered, %d refused; %s", len(c.answered), len(c.refused), summary(c.failed))
	}
	if log := d.log.String(); strings.Contains(log, "overload") {
		t.Errorf("it is told to be overload:\n%s", log)
	}
}
