package manager

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// A value is what the configuration says for one key. Its methods read it as one kind
// of thing into what they are given, or refuse it and leave that as it is;
// those that report whether they did are for callers that go on.
type value struct {
	l     *loader
	doc   *document
	key   toml.Key
	index int // in the array at key; -1: the value is not an element
	raw   any
}

func (l *loader) value(doc *document, key toml.Key, raw any) value {
	return value{l, doc, key, -1, raw}
}

// place is where it stands.
func (v value) place() string { return fmt.Sprintf("%s:%d", v.doc.path, v.doc.line(v.key)) }

// refuse notes that the value would not do, and what would.
func (v value) refuse(want string, args ...any) { v.refuseAs(v.show(), want, args...) }

// refuseAs is refuse with what was found in other words.
func (v value) refuseAs(found, want string, args ...any) {
	key := v.key.String()
	if v.index >= 0 {
		key += fmt.Sprintf("[%d]", v.index)
	}
	v.l.refuse(v.doc, v.doc.line(v.key), key, found, want, args...)
}

// refused reports whether the value has been refused, so that what follows from it need not be said.
func (v value) refused() bool {
	return v.l != nil && slices.ContainsFunc(v.l.errs, func(e ConfigError) bool {
		return e.File == v.doc.path && e.Key == v.key.String()
	})
}

// show is the value as it was found: with its variables unexpanded, which may
// hold what no log should.
func (v value) show() string {
	const enough = 80
	if len(v.key) > 2 && v.key[0] == "pool" && v.key[2] == "env" {
		return masked
	}
	s := []rune(literal(v.raw))
	if len(s) > enough {
		return string(s[:enough]) + "…"
	}
	return string(s)
}

func literal(raw any) string {
	switch x := raw.(type) {
	case string:
		return strconv.Quote(x)
	case time.Time:
		return x.Format(time.RFC3339)
	case []any:
		list := make([]string, len(x))
		for i, e := range x {
			list[i] = literal(e)
		}
		return "[" + strings.Join(list, ", ") + "]"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	}
	return fmt.Sprint(raw)
}

// varied reports whether a string came out of variables: it may then stand for
// a number or a boolean, which can't be had from the environment otherwise.
func (v value) varied() bool {
	s, ok := v.raw.(string)
	return ok && strings.Contains(s, "${")
}

// text reads a string.
func (v value) text(to *string) bool {
	s, ok := v.raw.(string)
	if !ok {
		v.refuse("want a string, in quotes")
		return false
	}
	s, err := expand(s, v.l.lookupEnv)
	if err != nil {
		v.refuse("%v", err)
		return false
	}
	if strings.ContainsRune(s, 0) {
		v.refuse("want a string without NUL")
		return false
	}
	*to = s
	return true
}

// expand replaces variables. ${VAR:-default} is default when VAR is unset or
// empty, as in a shell.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			s = after[1:]
			continue
		case !strings.HasPrefix(after, "{"):
			return "", errors.New("a dollar alone: want ${NAME} for a variable, $$ for a dollar")
		}
		ref, rest, closed := strings.Cut(after[1:], "}")
		name, fallback, hasFallback := strings.Cut(ref, ":-")
		if !closed || !isVariable(name) {
			return "", errors.New("no variable after ${: want ${NAME} or ${NAME:-default}, $$ for a dollar")
		}
		val, set := lookup(name)
		switch {
		case hasFallback && val == "":
			val = fallback
		case !set:
			return "", fmt.Errorf("the variable %s is not set: set it in fpmd's environment (for the unit: systemctl edit fpmd, [Service], Environment=%s=... or EnvironmentFile=), or want ${%s:-default}", name, name, name)
		}
		b.WriteString(val)
		s = rest
	}
}

func isVariable(name string) bool {
	for i, c := range name {
		if !(c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' || i > 0 && '0' <= c && c <= '9') {
			return false
		}
	}
	return name != ""
}

// elements are the values of an array.
func (v value) elements() []value {
	list, ok := v.raw.([]any)
	if !ok {
		v.refuse("want a list of strings: [\"...\"]")
		return nil
	}
	elements := make([]value, len(list))
	for i, raw := range list {
		elements[i] = value{v.l, v.doc, v.key, i, raw}
	}
	return elements
}

// texts reads a list of strings, all or none.
func (v value) texts(to *[]string) bool {
	_, ok := v.raw.([]any)
	elements := v.elements()
	list := make([]string, len(elements))
	for i, e := range elements {
		ok = e.text(&list[i]) && ok
	}
	if ok {
		*to = list
	}
	return ok
}

// oneOf reads a string that is one of words.
func (v value) oneOf(to *string, words ...string) {
	var s string
	if !v.text(&s) {
		return
	}
	if !slices.Contains(words, s) {
		if near := Nearest(s, words); near != "" && len(words) > 1 {
			v.refuse("did you mean %q?", near)
		} else {
			v.refuse("want %s", choices(words))
		}
		return
	}
	*to = s
}

// choices puts words as a sentence does.
func choices(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	last := len(quoted) - 1
	if last == 0 {
		return quoted[0]
	}
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

func (v value) boolean(to *bool) {
	b, ok := v.raw.(bool)
	if v.varied() {
		var s string
		if !v.text(&s) {
			return
		}
		b, ok = s == "true", s == "true" || s == "false"
	}
	if !ok {
		v.refuse("want true or false, without quotes")
		return
	}
	*to = b
}

// integer reads a number from low to high.
func (v value) integer(to *int, low, high int) {
	n, ok := v.raw.(int64)
	s, isText := v.raw.(string)
	if v.varied() {
		if !v.text(&s) {
			return
		}
		var err error
		n, err = strconv.ParseInt(s, 10, 64)
		ok = err == nil
	} else if isText && isNumber(s) {
		v.refuse("want a number: %s, without quotes", s)
		return
	}
	if !ok || n < int64(low) || n > int64(high) {
		v.refuse("want a number from %d to %d", low, high)
		return
	}
	*to = int(n)
}

// optional is integer for what may be left open.
func (v value) optional(to *Optional, low, high int) {
	n := low - 1
	if v.integer(&n, low, high); n >= low {
		*to = Optional{Set: true, Value: int64(n)}
	}
}

// unlimited reads "unlimited", also out of a variable, and reports whether that is what
// the value is.
func (v value) unlimited(to *Optional) bool {
	s := ""
	if v.raw != "unlimited" && (!v.varied() || !v.text(&s) || s != "unlimited") {
		return false
	}
	*to = Optional{Set: true, Value: unlimited}
	return true
}

// maxDuration bounds times so that none of them overflows anything.
const maxDuration = 7 * 24 * time.Hour

// duration reads a time of at least a millisecond; 0 only where it means
// something.
func (v value) duration(to *time.Duration, zero bool) {
	least := "1ms"
	if zero {
		least = "1ms, or \"0s\" for none"
	}
	const example = "want a time such as \"500ms\", \"30s\", \"5m\" or \"1h30m\""
	if n, ok := v.raw.(int64); ok {
		v.refuse("want a time with its unit, such as \"%ds\"", max(n, 1))
		return
	}
	if _, ok := v.raw.(string); !ok {
		v.refuse(example)
		return
	}
	var s string
	if !v.text(&s) {
		return
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		v.refuse(example)
	case d == 0 && zero:
		*to = 0
	case d < time.Millisecond || d > maxDuration:
		v.refuse("want at least %s, at most %gh", least, maxDuration.Hours())
	default:
		*to = d
	}
}

var units = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// size reads a count of bytes from low to high.
func (v value) size(to *int64, low, high int64) {
	n, ok := v.raw.(int64)
	if !ok {
		var s string
		if _, isText := v.raw.(string); !isText {
			v.refuse("want a size such as \"512KiB\" or \"1MiB\", or a number of bytes")
			return
		}
		if !v.text(&s) {
			return
		}
		if n, ok = parseSize(s, v.varied()); !ok {
			v.refuse("want a size such as \"512KiB\" or \"1MiB\", or a number of bytes without quotes")
			return
		}
	}
	if n < low || n > high {
		v.refuse("want a size from %s to %s", formatSize(low), formatSize(high))
		return
	}
	*to = n
}

func parseSize(s string, plain bool) (int64, bool) {
	factor := int64(1)
	for _, u := range units {
		if count, ok := strings.CutSuffix(s, u.name); ok {
			s, factor, plain = count, u.bytes, true
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 32) // up to 4 EiB with a unit: no overflow
	return int64(n) * factor, err == nil && plain
}

func formatSize(n int64) string {
	for _, u := range slices.Backward(units) {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// octal reads permissions as a string, because TOML writes its own octal numbers
// in another way than everybody writes modes.
func (v value) octal(to *os.FileMode, example string) {
	want := fmt.Sprintf("want three octal digits in quotes, with or without a 0 before them, such as %q", example)
	if _, ok := v.raw.(string); !ok {
		v.refuse("%s", want)
		return
	}
	var s string
	if !v.text(&s) {
		return
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if digits := strings.TrimPrefix(s, "0"); err != nil || n > 0o777 || len(s) < 3 || len(s) > 4 || len(digits) > 3 {
		v.refuse("%s", want)
		return
	}
	*to = os.FileMode(n)
}

// path reads an absolute path, or one of also.
func (v value) path(to *string, also ...string) {
	var s string
	if !v.text(&s) {
		return
	}
	if slices.Contains(also, s) {
		*to = s
		return
	}
	if !filepath.IsAbs(s) {
		or := ""
		if len(also) > 0 {
			or = ", or " + choices(also)
		}
		v.refuse("want an absolute path, one that begins with /%s", or)
		return
	}
	*to = filepath.Clean(s)
}

// log reads the path of a file that lines are written to, or one of also.
func (v value) log(to *string, also ...string) {
	var path string
	v.path(&path, also...)
	if filepath.IsAbs(path) {
		if fi, err := v.l.stat(path); err == nil && fi.IsDir() {
			v.refuse("a folder: want a file, such as %q", filepath.Join(path, "fpmd.log"))
			return
		}
	}
	*to = path
}

// environment reads a table of strings, all or none.
func (v value) environment(to *map[string]string) {
	table, ok := v.raw.(map[string]any)
	if !ok {
		v.refuse("want a table of strings: { NAME = \"value\" }")
		return
	}
	env := make(map[string]string, len(table))
	for _, name := range slices.Sorted(maps.Keys(table)) {
		e := v.l.value(v.doc, append(slices.Clone(v.key), name), table[name])
		var s string
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			e.refuseAs("", "want a variable's name: one without = and NUL")
			ok = false
			continue
		case supervisorsOwn(name):
			e.refuseAs("", "the variable is fpmd's or systemd's own: want another name")
			ok = false
			continue
		}
		ok = e.text(&s) && ok
		env[name] = s
	}
	if ok {
		*to = env
	}
}
