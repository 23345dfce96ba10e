package manager

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// files warns of what a worker needs and its user does not get to: the folder, the
// application, the program. It is no error: more than modes decides, such as
// capabilities, and the worker itself will tell.
func (w *warner) files(p *PoolConfig) {
	r := &reader{warner: w, p: p, as: w.workerOf(p), said: map[string]bool{}}
	if r.as.UID == 0 || p.Chroot != "" { // to whom nothing is closed; who sees other files
		return
	}
	if w.euid == 0 {
		r.log("access_log", p.AccessLog)
	}
	if p.WSGI == "" {
		r.need("directory", p.Directory, p.Directory, 0o1)
		r.program("command", p.Command[0])
		return
	}
	// Python lists folders before it imports from them.
	if r.need("directory", p.Directory, p.Directory, 0o5) {
		r.module()
	}
	for _, dir := range p.PythonPath { // or an archive
		r.need("python_path", dir, dir, 0o4)
	}
	r.program("python", p.Python)
}

// workerOf is whom the workers of p are.
func (w *warner) workerOf(p *PoolConfig) *Credential {
	if p.Cred != nil {
		return p.Cred
	}
	return w.self()
}

// self is whom fpmd is.
func (w *warner) self() *Credential {
	c := &Credential{UID: uint32(w.euid), GID: uint32(w.egid), Groups: []uint32{uint32(w.egid)}, Name: w.userOf(w.euid)}
	for _, g := range w.groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// A reader is a pool's worker as far as it reads files.
type reader struct {
	*warner
	p    *PoolConfig
	as   *Credential
	said map[string]bool // which closed folders and files: what follows from one is not said as well
}

// A bar is what keeps a worker from a file.
type bar struct {
	path string // the file, or a folder on the way to it
	to   string // the file, as its links lead there
	fileFacts
	bits os.FileMode // what is wanted of it, as others' bits
}

// bar finds what keeps r from what bits mean of the file at path; nil: nothing. It looks
// at the way as it is written, and as its links lead.
func (r *reader) bar(path string, bits os.FileMode) *bar {
	ways := []string{path}
	if to, err := r.resolve(path); err == nil && to != path {
		ways = append(ways, to)
	}
	for _, to := range ways {
		at, want := to, bits
		if dir := r.closed(r.as, to); dir != "" {
			at, want = dir, 0o1
		}
		if st, err := r.stat(at); err == nil && !r.as.may(st.uid, st.gid, st.mode, want) {
			return &bar{at, to, st, want}
		}
	}
	return nil
}

// need warns when r may not do what bits mean with the file at path, which value of key
// leads to, and reports whether it may.
func (r *reader) need(key string, value any, path string, bits os.FileMode) bool {
	b := r.bar(path, bits)
	if b != nil {
		r.say(key, value, b)
	}
	return b == nil
}

// say warns of b once.
func (r *reader) say(key string, value any, b *bar) {
	if r.said[b.path] {
		return
	}
	r.said[b.path] = true
	verb, letters := "enter", "x"
	switch {
	case b.bits&0o4 != 0 && b.bits&0o1 != 0:
		verb, letters = "list and enter", "rx"
	case b.bits&0o4 != 0:
		verb, letters = "read", "r"
	case b.path == b.to && key != "directory":
		verb = "execute"
	}
	way := ""
	if b.path != b.to {
		way = " on the way to " + b.to
	}
	owner, instead := r.userOf(b.uid), "one elsewhere"
	if b.uid != 0 && int(r.as.UID) != b.uid && r.p.Cred != nil {
		instead = fmt.Sprintf("user = %q", owner)
	}
	would := "want one elsewhere, such as below /srv: root's home stays closed"
	if b.path != rootHome {
		class, _ := r.as.class(b.uid, b.gid)
		would = fmt.Sprintf("chmod %s+%s %s, or want %s", class, letters, b.path, instead)
	}
	r.warn(r.p, key, value, "%s can't %s %s%s: it has mode %s, owner %s: %s", userName(r.as), verb, b.path, way, octal(b.mode), owner, would)
}

// log warns of a log in a folder where the application may put a link: fpmd, which is root, would
// write where that leads.
func (r *reader) log(key, path string) {
	if !filepath.IsAbs(path) {
		return
	}
	dir := filepath.Dir(path)
	// 0777 is also what stands for an access control list, which may give it to others.
	if st, err := r.stat(dir); err == nil && st.mode != 0o777 && r.as.may(st.uid, st.gid, st.mode, 0o3) {
		r.warn(r.p, key, path, "%s may write in %s, put a link there, and have fpmd write where it leads, as root: want a folder that root alone may write to, such as /var/log/fpmd", userName(r.as), dir)
	}
}

// program warns of a program that can't be executed. Of one that is looked up, any
// that can be will do.
func (r *reader) program(key, name string) {
	if strings.Contains(name, "/") {
		r.need(key, name, name, 0o1)
		return
	}
	path, ok := r.p.setPath()
	if !ok {
		path = r.path
	}
	var first *bar
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if !filepath.IsAbs(dir) || !r.there(file) {
			continue
		}
		b := r.bar(file, 0o1)
		if b == nil {
			return
		}
		if first == nil {
			first = b
		}
	}
	if first != nil {
		r.say(key, name, first)
	}
}

func (r *reader) there(path string) bool { _, err := r.stat(path); return err == nil }

// module warns of the first file that the import of the application can't read. Where it is not
// below directory, it is for Python to find.
func (r *reader) module() {
	module, _, _ := strings.Cut(r.p.WSGI, ":")
	at := r.p.Directory
	for name := range strings.SplitSeq(module, ".") {
		at = filepath.Join(at, name)
		source, ofPackage := at+".py", filepath.Join(at, "__init__.py")
		if r.there(ofPackage) || !r.there(source) { // a package is found before a module of its name
			if !r.need("wsgi", r.p.WSGI, at, 0o5) {
				return
			}
			source = ofPackage
		}
		if !r.need("wsgi", r.p.WSGI, source, 0o4) {
			return
		}
	}
}
