package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// starts warns of what serve ends with at its start: folders that are not there, or that fpmd may not
// write in, and addresses of another machine. They are no errors: systemd, tmpfiles.d or a
// mount may make a folder before fpmd starts, and an address may come with the network.
func (w *warner) starts() {
	s := w.cfg.Supervisor
	w.runtimeDir(s.RuntimeDir)
	if s.Log != "" { // which is opened before runtime_dir is made
		w.makes("supervisor", "log", s.Log, "a log")
	}
	for _, p := range w.cfg.Pools {
		for _, a := range p.Listen {
			if a.Network == "unix" {
				w.makesLater(p, "listen", a.Address, "a socket")
				if err := w.noSocket(a.Address); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
					w.warn(p, "listen", a.Address, "%v", err)
				}
				continue
			}
			host, _, _ := net.SplitHostPort(a.Address)
			if err := w.bind(host); err != nil {
				w.warn(p, "listen", a.Address, "%v: %s", err, addressRemedy(err, a.Address))
			}
		}
		if p.AccessLog != "" && p.AccessLog != "-" {
			w.makesLater(p, "access_log", p.AccessLog, "a log")
		}
	}
}

// runtimeDir warns of a runtime_dir that fpmd refuses. It makes one that is not there, and what that is in.
func (w *warner) runtimeDir(dir string) {
	if _, err := w.stat(dir); errors.Is(err, fs.ErrNotExist) {
		at := filepath.Dir(dir)
		for _, err := w.stat(at); errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at); _, err = w.stat(at) {
			at = filepath.Dir(at)
		}
		if !w.writes("supervisor", "runtime_dir", dir, at, "one") {
			return
		}
	} else if !w.writes("supervisor", "runtime_dir", dir, dir, "one") {
		return
	}
	if err := w.ours(dir); err != nil {
		w.warnOf("supervisor", "runtime_dir", dir, "%v", err)
	}
}

// makesLater is makes for what fpmd makes when it has made runtime_dir.
func (w *warner) makesLater(p *PoolConfig, key, path, what string) {
	dir := filepath.Dir(path)
	if _, err := w.stat(dir); errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(w.cfg.Supervisor.RuntimeDir+"/", dir+"/") {
		return
	}
	w.makes("pool."+p.Name, key, path, what)
}

// makes warns when fpmd can't make what a key of table names.
func (w *warner) makes(table, key, path, what string) {
	dir := filepath.Dir(path)
	if _, err := w.stat(dir); errors.Is(err, fs.ErrNotExist) {
		w.warnOf(table, key, path, "%s", noFolder(dir, what))
		return
	}
	if _, err := w.stat(path); err == nil && key != "listen" { // a log is written on, a socket made anew
		dir = path
	}
	w.writes(table, key, path, dir, what)
}

// writes warns when fpmd may not write to the file or folder at path, and reports whether it may.
func (w *warner) writes(table, key string, value any, path, what string) bool {
	me := w.self()
	if me.UID == 0 { // to whom nothing is closed
		return true
	}
	verb, at, bits := "write to", path, fs.FileMode(0o2)
	if dir := w.closed(me, path); dir != "" {
		verb, at, bits = "enter", dir, 0o1
	}
	st, err := w.stat(at)
	if err != nil || me.may(st.uid, st.gid, st.mode, bits) {
		return true
	}
	w.warnOf(table, key, value, "%s, who fpmd is, can't %s %s: it has mode %s, owner %s: want %s elsewhere", userName(me), verb, at, octal(st.mode), w.userOf(st.uid), what)
	return false
}

// noFolder is what is to be said of the folder dir, which is not there for what fpmd makes in it.
func noFolder(dir, what string) string {
	how := "mkdir -p " + dir
	if strings.HasPrefix(dir, "/run/") {
		how = "have tmpfiles.d, or the unit's RuntimeDirectory=, make it at each start"
	}
	return fmt.Sprintf("the folder %s is not there, and fpmd does not make it: %s, or want %s in another", dir, how, what)
}

// pathRemedy is what would do where fpmd can't make what at path for err.
func pathRemedy(err error, path, what string) string {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && missing(dir):
		return noFolder(dir, what)
	case errors.Is(err, unix.ENXIO) && isPipe(path):
		return "nobody reads this pipe: start who does first"
	case errors.Is(err, fs.ErrPermission):
		m := thisMachine()
		return fmt.Sprintf("%s, who fpmd is, may not write there, or not enter a folder on the way: want %s elsewhere", m.self(), what)
	}
	return fmt.Sprintf("want %s elsewhere", what)
}

func isPipe(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode()&fs.ModeNamedPipe != 0
}

// addressRemedy is pathRemedy where fpmd can't listen on a TCP address.
func addressRemedy(err error, address string) string {
	host, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("%s is none of this machine's addresses: want one that \"ip address\" shows, or %q", host, net.JoinHostPort("127.0.0.1", port))
	case errors.Is(err, unix.EADDRINUSE):
		return "another process listens there: stop it, or want another port"
	case errors.Is(err, fs.ErrPermission):
		return "ports below 1024 are root's: want a higher one"
	}
	return fmt.Sprintf("want an address of this machine, such as %q", net.JoinHostPort("127.0.0.1", port))
}

// bare is what the system says, without what package net and os put before it.
func bare(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}
