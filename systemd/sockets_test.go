package systemd

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"fpmd/fcgi"
)

// dial connects from outside to a Unix socket in the container.
func (b *box) dial(socket string) (net.Conn, error) {
	return net.DialTimeout("unix", "/proc/"+strings.TrimSpace(read(b.t, b.path+"/init"))+"/root"+socket, patience)
}

// ask asks over a connection, as a web server does that keeps none, and wants an answer.
func ask(nc net.Conn) error {
	c := fcgi.Client{MaxIdle: -1, Dial: func(context.Context, string, string) (net.Conn, error) { return nc, nil }}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := c.Do(ctx, &fcgi.ClientRequest{Params: []fcgi.Param{{Name: "REQUEST_METHOD", Value: "GET"}, {Name: "REQUEST_URI", Value: "/"}, {Name: "SCRIPT_NAME", Value: "/"}}})
	if err != nil {
		return err
	}
	defer a.Stdout.Close()
	answer, err := io.ReadAll(a.Stdout)
	if err == nil && !strings.HasPrefix(string(answer), "Status: 200") {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return err
}

// held makes starts of fpmd wait, once they are under way, until the file /go is there.
const held = "[Service]\nExecStartPre=/bin/sh -c 'until [ -e /go ]; do sleep 0.05; done'\n"

// While fpmd is down, because it was killed or is restarted, whoever connects waits in the socket, and is answered by the
// next one: in those that fpmd has made, Unix and TCP, and in that of fpmd.socket. At a stop fpmd's own go, and
// who connects to fpmd.socket starts it again.
func TestNoConnectionIsLost(t *testing.T) {
	const own, unit = "/run/fpmd/pid.sock", "/run/fpmd-sockets/blog.sock"
	b := boot(t, strings.Replace(pidPool+"max_connections = 1024\n", `"/run/fpmd/pid.sock"`, `["127.0.0.1:9001", "`+own+`"]`, 1)+
		strings.NewReplacer("pool.pid", "pool.blog", own, unit).Replace(pidPool)+
		strings.NewReplacer("pool.pid", "pool.named", own, "/run/fpmd/named.sock").Replace(pidPool))
	b.write("/etc/systemd/system/fpmd.service.d/held.conf", held)
	// By its name a socket is the pool's, even if that knows nothing of its address.
	b.write("/etc/systemd/system/fpmd-named.socket", "[Socket]\nListenStream=/run/fpmd-sockets/other.sock\nFileDescriptorName=named\nService=fpmd.service\n")
	b.write("/go", "")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "start", "fpmd.socket", "fpmd-named.socket")
	if got := b.run("stat", "-c", "%G %a", unit); got != "www-data 660" {
		t.Errorf("the socket of fpmd.socket is %q, want %q", got, "www-data 660")
	}
	b.want("ActiveState", "inactive")
	sockets := []string{own, unit, "/run/fpmd-sockets/other.sock"}
	first, err := b.dial(unit)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(first); err != nil {
		t.Fatalf("who connects first: %v", err)
	}
	b.until("fpmd is ready", func() bool { return b.property("ActiveState") == "active" })
	b.want("NFileDescriptorStore", "3") // two of pid, one of named

	for _, down := range []struct {
		what string
		args []string
	}{
		{"a kill", []string{"kill", "--kill-whom=main", "-s", "KILL", "fpmd"}},
		{"another kill", []string{"kill", "--kill-whom=main", "-s", "KILL", "fpmd"}}, // of one that had its sockets handed over
		{"a restart", []string{"restart", "--no-block", "fpmd"}},
	} {
		main := b.property("MainPID")
		b.run("rm", "/go")
		b.run(append([]string{"systemctl"}, down.args...)...)
		b.until("the next start waits", func() bool { return b.property("SubState") == "start-pre" })
		var asked sync.WaitGroup
		for _, socket := range sockets {
			for range 20 {
				nc, err := b.dial(socket)
				if err != nil {
					t.Fatalf("after %s, %s: %v", down.what, socket, err)
				}
				asked.Go(func() {
					if err := ask(nc); err != nil {
						t.Errorf("asked %s after %s: %v", socket, down.what, err)
					}
				})
			}
		}
		// And over TCP, which is the container's own: by the first address of its pool.
		tcp := b.command(program, "request", "pid", "/")
		var answer strings.Builder
		tcp.Stdout, tcp.Stderr = &answer, &answer
		if err := tcp.Start(); err != nil {
			t.Fatal(err)
		}
		b.until("somebody has connected by TCP", func() bool {
			return b.command("grep", "-q", " 0100007F:2329 .* 01 ", "/proc/net/tcp").Run() == nil // 127.0.0.1:9001, ESTABLISHED
		})
		b.write("/go", "")
		asked.Wait()
		if err := tcp.Wait(); err != nil {
			t.Errorf("asked by TCP after %s: %v\n%s", down.what, err, answer.String())
		}
		b.until("fpmd is ready", func() bool { return b.property("ActiveState") == "active" })
		if b.property("MainPID") == main {
			t.Errorf("after %s there is the same fpmd", down.what)
		}
		b.want("NFileDescriptorStore", "3")
	}

	// Under load, with as many restarts as fit.
	end := make(chan struct{})
	var load sync.WaitGroup
	for _, socket := range sockets {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				nc, err := b.dial(socket)
				if err == nil {
					err = ask(nc)
				}
				if err != nil {
					t.Errorf("request %d of %s: %v", n, socket, err)
					return
				}
			}
		})
	}
	for range 3 {
		b.run("systemctl", "restart", "fpmd")
	}
	close(end)
	load.Wait()

	b.run("systemctl", "stop", "fpmd")
	b.want("Result", "success")
	if b.command("test", "-e", own).Run() == nil {
		t.Error("after the stop the socket is left")
	}
	nc, err := b.dial(unit)
	if err != nil {
		t.Fatalf("after the stop, fpmd.socket: %v", err)
	}
	if err := ask(nc); err != nil {
		t.Errorf("after the stop, fpmd.socket: %v", err)
	}
	b.until("fpmd is started by who connects", func() bool { return b.property("ActiveState") == "active" })
}

// A reload moves a pool from its socket and its port to others, while somebody asks: systemd stores the new ones and no more the old
// ones, so that who connects while fpmd is down, because it was killed or is restarted, waits in the new ones. A pool that fpmd.socket
// listens for keeps that: a reload that leaves it, or the pool, out is refused, and changes nothing; one that adds an address of its own
// listens at both, and one that renames the pool leaves it where it is.
func TestReloadMovesStoredSockets(t *testing.T) {
	const first, second, unit, beside = "/run/fpmd/pid.sock", "/run/fpmd/second.sock", "/run/fpmd-sockets/blog.sock", "/run/fpmd/beside.sock"
	config := strings.Replace(pidPool, `"`+first+`"`, `["127.0.0.1:9001", "`+first+`"]`, 1) +
		strings.NewReplacer("pool.pid", "pool.blog", `"`+first+`"`, `["`+unit+`"]`).Replace(pidPool)
	b := boot(t, config)
	b.write("/etc/systemd/system/fpmd.service.d/held.conf", held)
	b.write("/go", "")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "start", "fpmd.socket", "fpmd")
	main := b.property("MainPID")
	made := regexp.MustCompile(`/\.([^/]+)\.[a-z0-9]+$`) // a Unix socket is bound by another name, and then gets its own
	stored := func() []string {
		t.Helper()
		var names []string
		for _, l := range strings.Split(b.run("ss", "-Hlnp", "-xt"), "\n") {
			if f := strings.Fields(l); strings.Contains(l, "(\"systemd\",pid=1,") && (strings.HasPrefix(f[4], "/run/fpmd") || strings.HasPrefix(f[4], "127.0.0.1:90")) {
				names = append(names, made.ReplaceAllString(f[4], "/$1"))
			}
		}
		slices.Sort(names)
		return names
	}
	want := func(when string, sockets ...string) {
		t.Helper()
		if got := stored(); !slices.Equal(got, sockets) {
			t.Errorf("%s, systemd holds %q, want %q", when, got, sockets)
		}
	}
	want("after the start", unit, first, "127.0.0.1:9001")

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	asked := make(chan struct{}, 1)
	for range 2 {
		load.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				for _, socket := range []string{first, second, unit} {
					nc, err := b.dial(socket)
					if err != nil && socket != unit {
						continue // nobody listens there now
					}
					if err == nil {
						err = ask(nc)
					}
					if err != nil {
						t.Errorf("%s, while it is reloaded: %v", socket, err)
						return
					}
				}
				select {
				case asked <- struct{}{}:
				default:
				}
			}
		})
	}
	moved := strings.NewReplacer(first, second, "127.0.0.1:9001", "127.0.0.1:9002", `["`+unit+`"]`, `["`+unit+`", "`+beside+`"]`).Replace(config)
	b.write("/etc/fpmd/fpmd.toml", moved)
	<-asked
	b.run("systemctl", "reload", "fpmd")
	<-asked
	<-asked // the second began after the reload
	cancel()
	load.Wait()
	want("after the reload", unit, beside, second, "127.0.0.1:9002")
	b.want("NFileDescriptorStore", "3")
	if b.command("test", "-e", first).Run() == nil {
		t.Errorf("after the reload %s is left", first)
	}

	b.write("/etc/fpmd/fpmd.toml", strings.Replace(moved, `"`+unit+`", `, "", 1))
	if said := b.try("systemctl", "reload", "fpmd"); !strings.Contains(said, "exit status") {
		t.Errorf("a reload without the address of fpmd.socket: %s", said)
	}
	if said := b.run("journalctl", "-u", "fpmd", "-o", "cat"); !strings.Contains(said, "a socket unit listens there") {
		t.Errorf("why it was refused is not in the journal: %s", said)
	}
	b.write("/etc/fpmd/fpmd.toml", moved[:strings.Index(moved, "[pool.blog]")])
	if said := b.try(program, "reload"); !strings.Contains(said, "pool.blog is missing: a socket unit listens") {
		t.Errorf("a reload without the pool of fpmd.socket: %s", said)
	}
	want("after the refused reloads", unit, beside, second, "127.0.0.1:9002")
	moved = strings.Replace(moved, "[pool.blog]", "[pool.renamed]", 1)
	b.write("/etc/fpmd/fpmd.toml", moved)
	b.run(program, "reload", "--changed")
	b.run(program, "request", "renamed", "/") // at the socket unit's address, which is its first
	want("after a rename", unit, beside, second, "127.0.0.1:9002")
	b.want("NFileDescriptorStore", "3")
	b.want("MainPID", main)

	for _, down := range [][]string{{"kill", "--kill-whom=main", "-s", "KILL", "fpmd"}, {"restart", "--no-block", "fpmd"}} {
		b.run("rm", "/go")
		b.run(append([]string{"systemctl"}, down...)...)
		b.until("the next start waits", func() bool { return b.property("SubState") == "start-pre" })
		var waiting sync.WaitGroup
		for _, socket := range []string{unit, beside, second} {
			nc, err := b.dial(socket)
			if err != nil {
				t.Fatalf("after %s, %s: %v", down[0], socket, err)
			}
			waiting.Go(func() {
				if err := ask(nc); err != nil {
					t.Errorf("asked %s after %s: %v", socket, down[0], err)
				}
			})
		}
		b.write("/go", "")
		waiting.Wait()
		b.until("fpmd is ready", func() bool { return b.property("ActiveState") == "active" })
		b.run(program, "request", "pid", "/") // by TCP, its first address
		want("after "+down[0], unit, beside, second, "127.0.0.1:9002")
	}
}
