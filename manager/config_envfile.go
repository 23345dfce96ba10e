package manager

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// checkEnvFile reads the file that env_file names. It is read with fpmd's rights, once for each
// generation of workers.
func (d *draft) checkEnvFile() {
	v, ok := d.given["env_file"]
	if !ok || d.EnvFile == "" || d.l.asking || d.noDirectory && !filepath.IsAbs(d.EnvFile) {
		return
	}
	if !filepath.IsAbs(d.EnvFile) {
		d.EnvFile = filepath.Join(d.Chroot, d.Directory, d.EnvFile)
	}
	d.EnvFile = filepath.Clean(d.EnvFile)
	text, err := d.l.readEnvFile(d.EnvFile, d.Cred)
	if err != nil {
		v.refuse("%v", err)
		return
	}
	var errs []lineError
	d.FileEnv, errs = parseEnvFile(string(text))
	for _, e := range errs {
		d.l.refuseAt(d.doc, ConfigError{File: d.EnvFile, Line: e.line, Key: v.key.String(), Want: e.want})
	}
}

// A lineError is what is wrong with a line. It does not repeat it: a secret may be in it.
type lineError struct {
	line int
	want string
}

// parseEnvFile reads lines NAME=value, as systemd does for EnvironmentFile=: blank lines and
// those that begin with # or ; are nothing; what is around an unquoted value is not part of it, and a
// backslash keeps its next character, at the end of a line the next line; within '...'
// everything is as it is, within "..." a backslash keeps ", \, ` and $. Quotes may hold several lines.
// Of what comes twice the last counts. Nothing is expanded.
func parseEnvFile(text string) (map[string]string, []lineError) {
	env := map[string]string{}
	var errs []lineError
	p := envParser{rest: strings.TrimPrefix(text, "\ufeff"), line: 1}
	for p.rest != "" {
		p.blank()
		if p.rest == "" || p.rest[0] == '\n' || p.rest[0] == '#' || p.rest[0] == ';' {
			p.skipLine()
			continue
		}
		at := p.line
		name, value, err := p.assignment()
		if err == nil && strings.ContainsRune(value, 0) {
			err = errors.New("NUL in a value: want a text file")
		}
		if err != nil {
			errs = append(errs, lineError{at, err.Error()})
			p.skipLine()
			continue
		}
		env[name] = value
	}
	return env, errs
}

// An envParser is at rest, which begins in line.
type envParser struct {
	rest string
	line int
}

// next takes the next byte.
func (p *envParser) next() byte {
	c := p.rest[0]
	p.rest = p.rest[1:]
	if c == '\n' {
		p.line++
	}
	return c
}

// blank skips what is blank in a line.
func (p *envParser) blank() {
	p.rest = strings.TrimLeft(p.rest, " \t\r")
}

func (p *envParser) skipLine() {
	for p.rest != "" && p.next() != '\n' {
	}
}

func (p *envParser) assignment() (name, value string, err error) {
	line, _, _ := strings.Cut(p.rest, "\n")
	name, _, ok := strings.Cut(line, "=")
	name = strings.TrimRight(name, " \t\r")
	switch {
	case !ok:
		return "", "", errors.New("no NAME=value: want one, or # before a comment")
	case strings.HasPrefix(name, "export "):
		return "", "", errors.New("the file is no shell script: want NAME=value without export")
	case !isVariable(name):
		return "", "", errors.New("no variable's name before the =: want letters, digits and _, the first no digit")
	case supervisorsOwn(name):
		return "", "", fmt.Errorf("the variable %s is fpmd's or systemd's own: want another name", name)
	}
	p.rest = p.rest[strings.IndexByte(p.rest, '=')+1:]
	p.blank()
	if p.rest == "" || p.rest[0] != '\'' && p.rest[0] != '"' {
		return name, p.plain(), nil
	}
	value, err = p.quoted(p.next())
	if err != nil {
		return "", "", err
	}
	p.blank()
	if p.rest != "" && p.rest[0] != '\n' {
		return "", "", errors.New("something follows the closing quote: want the whole value in quotes, and comments on lines of their own")
	}
	return name, value, nil
}

// plain takes a value without quotes, up to the end of the line.
func (p *envParser) plain() string {
	var b strings.Builder
	kept := 0 // as much of it is no blank at the end
	for p.rest != "" && p.rest[0] != '\n' {
		c := p.next()
		if c == '\\' && p.rest != "" {
			if c = p.next(); c == '\n' {
				continue
			}
			b.WriteByte(c)
			kept = b.Len()
			continue
		}
		b.WriteByte(c)
		if c != ' ' && c != '\t' && c != '\r' {
			kept = b.Len()
		}
	}
	return b.String()[:kept]
}

// quoted takes a value up to the closing quote.
func (p *envParser) quoted(quote byte) (string, error) {
	begin := *p
	var b strings.Builder
	for p.rest != "" {
		c := p.next()
		switch {
		case c == quote:
			return b.String(), nil
		case c == '\\' && quote == '"' && p.rest != "" && p.rest[0] == '\n':
			p.next()
			continue
		case c == '\\' && quote == '"' && p.rest != "" && strings.IndexByte("\"\\`$", p.rest[0]) >= 0:
			c = p.next()
		}
		b.WriteByte(c)
	}
	*p = begin // so that the lines behind it are looked at as well
	return "", fmt.Errorf("no closing %c: want one", quote)
}

// readEnvFile reads a file with fpmd's rights for workers that are as. What those could not
// read themselves must be where nobody but root, or who fpmd is, can put a link or another file:
// an application could else have itself be told what is in any file of this machine.
func readEnvFile(path string, as *Credential) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: want a file of NAME=value lines", &os.PathError{Op: "open", Path: path, Err: err})
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is no regular file: want a file of NAME=value lines", path)
	}
	if as != nil && as.UID != 0 && !as.reads(fd, &st) {
		if err := trusted(path); err != nil {
			return nil, fmt.Errorf("%s can't read it, and %w: want it in a folder such as /etc/fpmd, or readable by the workers", userName(as), err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err == nil && len(text) > maxConfigFile {
		err = fmt.Errorf("%s is larger than %d bytes: want a file of NAME=value lines", path, maxConfigFile)
	}
	return text, err
}

// reads reports whether c could have opened the file that fd is open on, by modes and owners.
func (c *Credential) reads(fd int, st *unix.Stat_t) bool {
	at, err := os.Readlink(fdPath(fd)) // wherever links have led
	ok := err == nil && c.may(int(st.Uid), int(st.Gid), os.FileMode(st.Mode&0o777), 0o4)
	for ok && at != "/" {
		at = filepath.Dir(at)
		var dir unix.Stat_t
		ok = unix.Lstat(at, &dir) == nil && c.may(int(dir.Uid), int(dir.Gid), os.FileMode(dir.Mode&0o777), 0o1)
	}
	return ok
}

// trusted is an error when somebody but root and us decides what is at path.
func trusted(path string) error {
	if to, err := filepath.EvalSymlinks(path); err != nil || to != path {
		return errors.Join(fmt.Errorf("there are links on the way to %s", path), err)
	}
	for at := path; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: at, Err: err}
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return fmt.Errorf("others than root may change %s (owner %d, mode %#o)", at, st.Uid, st.Mode&0o7777)
		}
		if at == "/" {
			return nil
		}
	}
}
