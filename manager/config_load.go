package manager

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/BurntSushi/toml"
)

// LoadOptions is what Load may be told. The zero value is right for serving.
type LoadOptions struct {
	// LookupEnv is where ${VAR} is looked up; nil: os.LookupEnv.
	LookupEnv func(name string) (value string, set bool)
	// Asking is for who starts nothing, and only wants to know which pools there are and where they
	// listen. What he himself may not do, or can't see, is not judged then: users and groups
	// to change to, folders, programs and limits. Cred, Env and FileEnv are left as they are by default.
	Asking bool
}

// Load reads the configuration at path and what it includes, and checks it
// against this machine: its users, folders and programs. What is wrong is
// reported all at once, as ConfigErrors and nothing else; there is no Config then.
func Load(path string, opts LoadOptions) (*Config, error) {
	m := thisMachine()
	if opts.LookupEnv != nil {
		m.lookupEnv = opts.LookupEnv
	}
	m.asking = opts.Asking
	return load(path, m)
}

// RuntimeDir is the runtime_dir that the configuration at path has, whatever else is wrong with
// it: for who asks a running fpmd. Included files have no say in it.
func RuntimeDir(path string) (string, error) {
	if cfg, err := Load(path, LoadOptions{Asking: true}); err == nil {
		return cfg.Supervisor.RuntimeDir, nil
	}
	m := thisMachine()
	var c struct {
		Supervisor struct {
			RuntimeDir string `toml:"runtime_dir"`
		} `toml:"supervisor"`
	}
	if _, err := toml.DecodeFile(path, &c); err != nil {
		return "", err
	}
	return cmp.Or(c.Supervisor.RuntimeDir, m.runtimeDir()), nil
}

// ConfigErrors is all that is wrong with a configuration, file by file in the
// order they were read, each from top to bottom.
type ConfigErrors []ConfigError

func (errs ConfigErrors) Error() string {
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a ConfigError.
func (errs ConfigErrors) Unwrap() []error {
	list := make([]error, len(errs))
	for i, e := range errs {
		list[i] = e
	}
	return list
}

// A ConfigError is one thing that is wrong.
type ConfigError struct {
	File  string
	Line  int    // 0 only when File could not be read
	Key   string // such as pool.blog.workers; "" when it is not about one
	Value string // as it was found; "" when there is none
	Want  string // what is wrong with it, and what would do
}

func (e ConfigError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(e.Line))
	}
	for _, s := range []string{e.Key, e.Value, e.Want} {
		if s != "" {
			b.WriteString(": ")
			b.WriteString(s)
		}
	}
	return Printable(b.String())
}

// Printable keeps a message one line, whatever a key or a file is called.
func Printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// A loader reads one configuration. It goes on after an error, with the
// default in the place of what was refused.
type loader struct {
	machine
	cfg    *Config
	pools  []*draft // in the order they were read
	errs   ConfigErrors
	places []int // of errs: which file, in the order they were read
	noUser bool  // that of [supervisor] was refused: what follows from it is not said as well
}

// load is a configuration's whole way from a path to a Config.
func load(path string, m machine) (*Config, error) {
	sup, _ := Defaults()
	l := &loader{machine: m, cfg: &Config{Path: path, Supervisor: sup}}
	l.cfg.Supervisor.RuntimeDir = m.runtimeDir()
	main, err := l.read(path, false)
	if err != nil {
		l.errs, l.places = append(l.errs, *err), append(l.places, 0)
	} else if main != nil {
		l.tables(main)
		l.supervisor(main)
		l.readPools(main)
		for _, included := range l.include(main) {
			l.tables(included)
			l.readPools(included)
		}
		l.check(main)
	}
	if len(l.errs) > 0 {
		return nil, l.sorted()
	}
	l.cfg.places = map[string]position{}
	for _, s := range supervisorSettings {
		key := toml.Key{"supervisor", s.name}
		l.cfg.places[key.String()] = position{main.path, main.line(key)}
	}
	for _, d := range l.pools {
		l.cfg.Pools = append(l.cfg.Pools, &d.PoolConfig)
		l.cfg.places[d.key.String()] = position{d.doc.path, d.doc.line(d.key)}
		for _, v := range d.given {
			l.cfg.places[v.key.String()] = position{d.doc.path, d.doc.line(v.key)}
		}
	}
	slices.SortFunc(l.cfg.Pools, func(a, b *PoolConfig) int { return strings.Compare(a.Name, b.Name) })
	return l.cfg, nil
}

// refuse notes what is wrong, and where.
func (l *loader) refuse(doc *document, line int, key, value, want string, args ...any) {
	l.refuseAt(doc, ConfigError{File: doc.path, Line: line, Key: key, Value: value, Want: fmt.Sprintf(want, args...)})
}

// refuseAt is refuse for what is in another file, which doc names.
func (l *loader) refuseAt(doc *document, e ConfigError) {
	l.errs = append(l.errs, e)
	l.places = append(l.places, doc.order)
}

// sorted is errs in reading order, each once.
func (l *loader) sorted() ConfigErrors {
	order := make([]int, len(l.errs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := l.errs[a], l.errs[b]
		return cmp.Or(cmp.Compare(l.places[a], l.places[b]), strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line),
			strings.Compare(x.Key, y.Key), strings.Compare(x.Want, y.Want))
	})
	errs := make(ConfigErrors, len(order))
	for i, j := range order {
		errs[i] = l.errs[j]
	}
	return slices.Compact(errs)
}

// read parses one file. No document and no error: what is wrong is noted. An
// error is for the caller to note, where it knows better.
func (l *loader) read(path string, included bool) (*document, *ConfigError) {
	text, err := l.readFile(path)
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok && !included { // whose path File says
			err = e.Err
		}
		return nil, &ConfigError{File: path, Want: fmt.Sprintf("%v: want a configuration file", err)}
	}
	doc, cerr := parseDocument(path, text)
	doc.order, doc.included = len(l.cfg.Files), included
	l.cfg.Files = append(l.cfg.Files, path)
	if cerr != nil {
		l.refuse(doc, cerr.Line, cerr.Key, cerr.Value, "%s", cerr.Want)
		return nil, nil
	}
	return doc, nil
}

// include reads what supervisor.include names.
func (l *loader) include(main *document) []*document {
	section, ok := main.root["supervisor"].(map[string]any)
	if !ok || section["include"] == nil {
		return nil
	}
	var docs []*document
	seen := map[string]bool{filepath.Clean(main.path): true}
	v := l.value(main, toml.Key{"supervisor", "include"}, section["include"])
	for _, e := range v.elements() {
		var pattern string
		if !e.text(&pattern) {
			continue
		}
		if pattern == "" {
			e.refuse("want the name of a file, or a pattern such as \"conf.d/*.toml\"")
			continue
		}
		full := pattern
		if !filepath.IsAbs(full) {
			full = filepath.Join(filepath.Dir(main.path), full)
		}
		paths, err := l.match(full)
		if err != nil {
			e.refuse("%v: want the name of a file, or a pattern such as \"conf.d/*.toml\"", err)
		}
		for _, path := range paths {
			if seen[filepath.Clean(path)] {
				continue
			}
			seen[filepath.Clean(path)] = true
			doc, err := l.read(path, true)
			if err != nil {
				e.refuse("%s", err.Want)
			}
			if doc != nil {
				docs = append(docs, doc)
			}
		}
	}
	return docs
}

// match gives the files that pattern, which is absolute or relative to our own
// folder, stands for, sorted. One without a wildcard stands for itself.
func (l *loader) match(pattern string) ([]string, error) {
	wild := strings.IndexAny(pattern, `*?[\`)
	if wild < 0 {
		return []string{pattern}, nil
	}
	if _, err := filepath.Match(pattern, ""); err != nil {
		return nil, err
	}
	// A folder that is not there, or can't be read, would match nothing
	// without a word, and the site would start without its pools.
	dir := filepath.Dir(pattern[:wild] + "x")
	if _, err := l.readDir(dir); err != nil {
		return nil, err
	}
	paths, err := l.glob(pattern)
	hidden := strings.HasPrefix(filepath.Base(pattern), ".")
	paths = slices.DeleteFunc(paths, func(p string) bool { // an editor's lock, or what is being written
		return !hidden && strings.HasPrefix(filepath.Base(p), ".")
	})
	return paths, err
}

// tables refuses what stands at the top of a file and is none of ours.
func (l *loader) tables(doc *document) {
	for name, raw := range doc.root {
		v := l.value(doc, toml.Key{name}, raw)
		switch {
		case name == "supervisor" && doc.included:
			v.refuse("want it in %s: an included file holds [pool.NAME] tables only", l.cfg.Path)
		case name == "supervisor", name == "pool":
			if _, ok := raw.(map[string]any); !ok {
				v.refuse("want a table: [%s]", map[string]string{"supervisor": "supervisor", "pool": "pool.NAME"}[name])
			}
		case named(poolSettings, name):
			v.refuse("unknown key: it belongs into a table [pool.NAME]")
		case named(supervisorSettings, name):
			v.refuse("unknown key: it belongs into the table [supervisor]")
		default:
			v.unknown("want [supervisor] or [pool.NAME]", []string{"supervisor", "pool"})
		}
	}
}

// supervisor reads the [supervisor] table.
func (l *loader) supervisor(doc *document) {
	table, ok := doc.root["supervisor"].(map[string]any)
	if !ok {
		return
	}
	for name, raw := range table {
		v := l.value(doc, toml.Key{"supervisor", name}, raw)
		if set := find(supervisorSettings, name); set != nil {
			set(v, &l.cfg.Supervisor)
		} else if named(poolSettings, name) && !named(supervisorSettings, name) {
			v.refuse("unknown key: it belongs into a table [pool.NAME]")
		} else {
			v.unknown("want one of "+strings.Join(names(supervisorSettings), ", "), names(supervisorSettings))
		}
	}
}

// readPools reads the [pool.NAME] tables of a file.
func (l *loader) readPools(doc *document) {
	tables, ok := doc.root["pool"].(map[string]any)
	if !ok {
		return
	}
	for _, name := range doc.inOrder("pool", tables) {
		key := toml.Key{"pool", name}
		v := l.value(doc, key, tables[name])
		table, ok := tables[name].(map[string]any)
		switch {
		case !ok && named(poolSettings, name):
			v.refuse("want it in a table with the pool's name: [pool.NAME]")
			continue
		case !ok:
			v.refuse("want a table: [%s]", key)
			continue
		case !poolName.MatchString(name):
			v.refuseAs("", "pool name %q: want 1 to 32 of a-z, 0-9, _ and -, the first a letter or a digit", name)
			continue
		}
		if i := slices.IndexFunc(l.pools, func(d *draft) bool { return d.Name == name }); i >= 0 {
			v.refuseAs("", "pool %s is defined in %s as well: want it once", name, l.pools[i].place())
			continue
		}
		d := &draft{l: l, doc: doc, key: key, given: map[string]value{}}
		_, d.PoolConfig = Defaults()
		d.Name = name
		for _, k := range slices.Sorted(maps.Keys(table)) { // chroot before directory, which is in it
			v := l.value(doc, toml.Key{"pool", name, k}, table[k])
			set := find(poolSettings, k)
			switch {
			case set != nil:
				d.given[k] = v
				set(v, d)
			case named(supervisorSettings, k):
				v.refuse("unknown key: it belongs into the table [supervisor]")
			default:
				v.unknown("want one of "+strings.Join(names(poolSettings), ", "), names(poolSettings))
			}
		}
		l.pools = append(l.pools, d)
	}
}

// A setting is a key of a table and what reads its value.
type setting[T any] struct {
	name string
	set  func(v value, to *T)
}

func find[T any](settings []setting[T], name string) func(value, *T) {
	for _, s := range settings {
		if s.name == name {
			return s.set
		}
	}
	return nil
}

func named[T any](settings []setting[T], name string) bool { return find(settings, name) != nil }

func names[T any](settings []setting[T]) []string {
	list := make([]string, len(settings))
	for i, s := range settings {
		list[i] = s.name
	}
	return list
}

// later are the words that the design has fixed for what this version can't do.
var later = []string{
	"shutdown_delay", "asgi", "cgi", "preload", "reload_on_change", "concurrency", "greenlets", "tasks",
	"access_format", "ping_path", "status_path", "extensions", "trusted_proxies", "wsgi_post_fork",
}

// unknown refuses a key that none of ours is; want says which there are.
func (v value) unknown(want string, ours []string) {
	name := v.key[len(v.key)-1]
	if slices.Contains(later, name) {
		v.refuse("unknown key: this version of fpmd does not have it: leave it out")
		return
	}
	if near := Nearest(name, ours); near != "" {
		v.refuse("unknown key: did you mean %s?", near)
		return
	}
	v.refuse("unknown key: %s", want)
}

// Nearest is which of words somebody who wrote word most likely meant; "": none.
func Nearest(word string, words []string) string {
	plain := strings.ReplaceAll(strings.ToLower(word), "-", "_")
	best, least := "", min(3, len(plain)/3+1)+1
	if len(plain) > 64 {
		return ""
	}
	for _, w := range words {
		if d := distance(plain, w); d < least && d < len(w) {
			best, least = w, d
		}
	}
	if least <= 1 || len(plain) < 3 {
		return best
	}
	var longer []string // which were not written out
	for _, w := range words {
		if strings.HasPrefix(w, plain) {
			longer = append(longer, w)
		}
	}
	switch len(longer) {
	case 0:
		return best
	case 1:
		return longer[0]
	default:
		return ""
	}
}

// distance counts the letters to insert, remove, change, or swap with their
// neighbour that make b of a (optimal string alignment).
func distance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// A document is one file, parsed.
type document struct {
	path     string
	order    int // among those read
	included bool
	text     string
	root     map[string]any
	meta     toml.MetaData
	tops     map[string]toml.Primitive // root again, for asking where a key stands
}

// maxConfigFile bounds what is read of one file; it is far more than anybody writes.
const maxConfigFile = 1 << 20

// parseDocument always gives a document; with an error it is an empty one.
func parseDocument(path string, text []byte) (*document, *ConfigError) {
	doc := &document{path: path}
	if len(text) > maxConfigFile {
		return doc, &ConfigError{Line: 1, Want: fmt.Sprintf("the file is larger than %d bytes: want a configuration", maxConfigFile)}
	}
	s := strings.TrimPrefix(string(text), "\ufeff")
	if valid := strings.ToValidUTF8(s, ""); len(valid) != len(s) {
		at := 0
		for at < len(valid) && s[at] == valid[at] {
			at++
		}
		return doc, &ConfigError{Line: lineAt(s, at), Value: fmt.Sprintf("byte 0x%02x", s[at]), Want: "not UTF-8: want a text file in UTF-8"}
	}
	doc.text = s
	meta, err := toml.Decode(s, &doc.root)
	if err != nil {
		doc.root = nil
		return doc, syntaxError(s, err)
	}
	doc.meta = meta
	return doc, nil
}

// lineAt is the number of the line that byte offset belongs to. The parser's offsets can
// be off by one at either end of a text.
func lineAt(text string, offset int) int {
	return 1 + strings.Count(text[:min(max(offset, 0), len(text))], "\n")
}

// inOrder gives the names in the table name as they first appear in the file.
func (doc *document) inOrder(name string, table map[string]any) []string {
	var list []string
	for _, k := range doc.meta.Keys() {
		if len(k) > 1 && k[0] == name && !slices.Contains(list, k[1]) {
			list = append(list, k[1])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(table)) {
		if !slices.Contains(list, k) {
			list = append(list, k)
		}
	}
	return list
}

// line is where key stands. A table that has no header of its own stands where
// the first of its keys does; what the parser knows nothing about, where its table does.
func (doc *document) line(key toml.Key) int {
	if line := doc.lineOf(key); line > 0 {
		return line
	}
	for _, k := range doc.meta.Keys() {
		if len(k) > len(key) && slices.Equal(k[:len(key)], key) {
			if line := doc.lineOf(k); line > 0 {
				return line
			}
		}
	}
	if len(key) > 1 {
		return doc.line(key[:len(key)-1])
	}
	return 1
}

// lineOf asks the parser: it tells a position only to an error, so the value
// is decoded into something that refuses it. 0: the parser knows none.
func (doc *document) lineOf(key toml.Key) int {
	if doc.tops == nil {
		if _, err := toml.Decode(doc.text, &doc.tops); err != nil {
			return 0
		}
	}
	table := doc.tops
	for i, name := range key {
		p, ok := table[name]
		if !ok {
			return 0
		}
		if i == len(key)-1 {
			perr, ok := errors.AsType[toml.ParseError](doc.meta.PrimitiveDecode(p, new(refuser)))
			if !ok || perr.Position.Line == 0 {
				return 0
			}
			// Its Line is where a value ends, its Start where the content of
			// one begins: with """, that may be the line after the key's.
			before := doc.text[:min(max(perr.Position.Start, 0), len(doc.text))]
			for _, open := range []string{"\"\"\"\n", "\"\"\"\r\n", "'''\n", "'''\r\n"} {
				before = strings.TrimSuffix(before, open)
			}
			return lineAt(before, len(before))
		}
		table = nil
		if doc.meta.PrimitiveDecode(p, &table) != nil {
			return 0
		}
	}
	return 0
}

// A refuser refuses any value.
type refuser struct{}

var errRefused = errors.New("refused")

func (*refuser) UnmarshalTOML(any) error { return errRefused }
