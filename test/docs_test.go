// Package test holds what is promised of the repository as a whole.
package test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the repository's, as seen from here.
const root = ".."

// The packages that the documents name, by the names they use.
var packages = map[string]string{
	"fcgi":     "fcgi",
	"main":     "cmd/fpmd",
	"manager":  "manager",
	"protocol": "protocol",
	"python":   "worker/python",
	"worker":   "worker",
}

// ARCHITECTURE.md leads a reader through the code by its names, so each has to
// be there: functions, types, methods, fields and files.
func TestArchitectureNamesExist(t *testing.T) {
	quoted := regexp.MustCompile("`([^`\n]+)`")
	name := regexp.MustCompile(`^([a-z]+)\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)$`)
	file := regexp.MustCompile(`^[\w/]+/[\w.]+\.(go|py|md|toml)$`)
	known := map[string]map[string]bool{}
	for pkg, dir := range packages {
		known[pkg] = declared(t, dir)
	}
	names := 0
	for line, text := range lines(t, "ARCHITECTURE.md") {
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			if file.MatchString(m[1]) {
				if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
					t.Errorf("ARCHITECTURE.md:%d: %s: no such file", line, m[1])
				}
				continue
			}
			n := name.FindStringSubmatch(m[1])
			if n == nil || known[n[1]] == nil {
				continue
			}
			names++
			if !known[n[1]][n[2]] {
				t.Errorf("ARCHITECTURE.md:%d: %s: package %s declares no %s", line, m[1], n[1], n[2])
			}
		}
	}
	if names < 50 {
		t.Errorf("ARCHITECTURE.md names %d things of the code in backquotes, want at least 50: does it still show the way?", names)
	}
}

// The states in ARCHITECTURE.md, and the steps between them, are the code's.
func TestArchitectureStates(t *testing.T) {
	for _, tc := range []struct{ head, dir, names, moves string }{
		{"slot", "protocol", "slotStates", "slotMoves"},
		{"worker", "manager", "workerStates", "workerMoves"},
	} {
		t.Run(tc.head, func(t *testing.T) {
			called := map[string]string{}
			for state, v := range elements(t, tc.dir, tc.names) {
				called[state] = unquote(t, v)
			}
			want := map[string]string{}
			for state, v := range elements(t, tc.dir, tc.moves) {
				var next []string
				for _, e := range v.(*ast.CompositeLit).Elts {
					next = append(next, called[e.(*ast.Ident).Name])
				}
				want[called[state]] = strings.Join(next, ", ")
			}
			got := map[string]string{}
			for _, row := range table(t, "ARCHITECTURE.md", tc.head) {
				got[bare(row[0])] = row[2]
			}
			equal(t, "ARCHITECTURE.md", got, want)
		})
	}
}

// The README's table of signals is what serve listens for, and what its help says.
func TestReadmeSignals(t *testing.T) {
	caught := map[string]string{}
	for _, f := range parse(t, "cmd/fpmd") {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || selector(call.Fun) != "signal.Notify" {
				return true
			}
			for _, arg := range call.Args[1:] {
				caught[strings.TrimPrefix(selector(arg), "unix.SIG")] = ""
			}
			return true
		})
	}
	told := map[string]string{}
	for _, row := range table(t, "README.md", "signal") {
		for _, s := range strings.Split(row[0], ", ") {
			told[bare(s)] = ""
		}
	}
	equal(t, "README.md", told, caught)
	help := map[string]string{}
	for _, s := range regexp.MustCompile(`\b(TERM|QUIT|INT|HUP|USR[12]|TTIN|TTOU)\b`).FindAllString(constant(t, "cmd/fpmd", "serveHelp"), -1) {
		help[s] = ""
	}
	equal(t, "serve --help", help, caught)
}

// The README's table of outcomes is the code's closed list.
func TestReadmeOutcomes(t *testing.T) {
	statuses := map[string]int{}
	for code := 100; code < 600; code++ {
		if text := http.StatusText(code); text != "" {
			statuses["http.Status"+strings.NewReplacer(" ", "", "-", "").Replace(text)] = code
		}
	}
	want := map[string]string{}
	for _, v := range elements(t, "manager", "outcomes") {
		e := v.(*ast.CompositeLit).Elts
		name := unquote(t, e[0])
		switch status := e[1].(type) {
		case *ast.BasicLit:
			want[name] = status.Value
		default:
			if statuses[selector(status)] == 0 {
				t.Errorf("outcome %s: %s is no status of net/http", name, selector(status))
			}
			want[name] = strconv.Itoa(statuses[selector(status)])
		}
	}
	want["ok"] = "the application's"
	got := map[string]string{}
	for _, row := range table(t, "README.md", "outcome") {
		got[bare(row[0])] = row[1]
	}
	equal(t, "README.md", got, want)
}

// The README's exit codes are the command's.
func TestReadmeExitCodes(t *testing.T) {
	want := map[string]string{"0": ""}
	for _, f := range parse(t, "cmd/fpmd") {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				if lit, ok := first(v.Values).(*ast.BasicLit); ok && strings.HasPrefix(v.Names[0].Name, "exit") {
					want[lit.Value] = ""
				}
			}
		}
	}
	got := map[string]string{}
	for _, row := range table(t, "README.md", "exit code") {
		got[bare(row[0])] = ""
	}
	equal(t, "README.md", got, want)
}

// The README has every key that the configuration may have and no other, each
// with the default that etc/fpmd.toml gives it, where it has one: a test of
// package manager compares that with the code.
func TestReadmeKeys(t *testing.T) {
	for _, tc := range []struct{ name, settings string }{
		{"supervisor", "supervisorSettings"},
		{"pool", "poolSettings"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sample := sampleOf(t, tc.name)
			want := map[string]string{}
			for _, e := range value(t, "manager", tc.settings).(*ast.CompositeLit).Elts {
				name := unquote(t, e.(*ast.CompositeLit).Elts[0])
				want[name] = sample[name]
			}
			got := map[string]string{}
			for _, row := range table(t, "README.md", tc.name+" key") {
				k := bare(row[0])
				got[k] = bare(row[1])
				if _, ok := sample[k]; !ok {
					got[k] = want[k]
				}
			}
			equal(t, "README.md", got, want)
		})
	}
}

// sampleOf is what etc/fpmd.toml has in a table, in comments: keys and defaults.
func sampleOf(t *testing.T, table string) map[string]string {
	t.Helper()
	section := regexp.MustCompile(`^#? ?\[(supervisor|pool)\b.*\]`)
	setting := regexp.MustCompile(`^#([a-z_]+) *= *(.*)$`) // not "##", which is an example
	sample := map[string]string{}
	in := ""
	for _, text := range lines(t, "etc/fpmd.toml") {
		if m := section.FindStringSubmatch(text); m != nil {
			in = m[1]
		} else if m := setting.FindStringSubmatch(text); m != nil && in == table {
			sample[m[1]] = m[2]
		}
	}
	return sample
}

// Every bound that docs/limits.md names has the default of its key, and tests
// that exist; so has every fault.
func TestLimits(t *testing.T) {
	sample := sampleOf(t, "pool")
	tests := testsOf(t)
	for _, row := range table(t, "docs/limits.md", "fault") {
		for _, name := range strings.Split(row[3], ", ") {
			if !tests[name] {
				t.Errorf("%s: there is no %s", row[0], name)
			}
		}
	}
	for _, row := range table(t, "docs/limits.md", "bound") {
		if key := bare(row[2]); key != "" && !strings.Contains(key, " ") {
			if want, there := sample[key]; !there || strings.Trim(want, `"`) != strings.ReplaceAll(row[1], " ", "") {
				t.Errorf("%s: %s is %q, the default is %s", row[0], key, row[1], want)
			}
		}
		for _, name := range strings.Split(row[4], ", ") {
			if !tests[name] {
				t.Errorf("%s: there is no %s", row[0], name)
			}
		}
	}
}

// What SECURITY.md says an application can't do is tested, by tests that exist.
func TestSecurityIsTested(t *testing.T) {
	tests := testsOf(t)
	for _, row := range table(t, "SECURITY.md", "it can't") {
		for _, name := range strings.Split(row[2], ", ") {
			if !tests[name] {
				t.Errorf("%s: there is no %s", row[0], name)
			}
		}
	}
}

// testsOf has the names of the tests that there are.
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	test := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	tests := map[string]bool{}
	for _, dir := range []string{"fcgi", "protocol", "worker", "manager", "cmd/fpmd", "systemd", "test"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("tests of %s: %v", dir, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range test.FindAllStringSubmatch(string(b), -1) {
				tests[m[1]] = true
			}
		}
	}
	return tests
}

// Every decision says what was asked, chosen and given up, and what would
// reopen it, in a few lines.
func TestDecisionsAreWhole(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs/decisions.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range strings.Split(string(b), "\n## ")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		at := -1
		for _, part := range []string{"**Question.**", "**Choice.**", "**Given up.**", "**Reopened by.**"} {
			i := strings.Index(text, part)
			if i <= at {
				t.Errorf("decision %q: %s is missing, or not in its place", title, part)
			}
			at = i
		}
		if n := strings.Count(strings.TrimSpace(text), "\n") + 1; n > 10 {
			t.Errorf("decision %q has %d lines: what is longer belongs into a document of its own", title, n)
		}
	}
}

// docs/operations.md has every message that fpmd writes to its log, with its levels.
func TestOperationsMessages(t *testing.T) {
	levels := map[string]map[string]bool{}
	for _, dir := range []string{"cmd/fpmd", "manager", "fcgi", "protocol"} {
		for _, f := range parse(t, dir) {
			ast.Inspect(f, func(n ast.Node) bool {
				level, message := logged(n)
				if message == nil {
					return true
				}
				texts := messages(t, message)
				if texts == nil {
					t.Errorf("%s: a message of level %s is not in plain words", dir, level)
				}
				for _, text := range texts {
					if levels[text] == nil {
						levels[text] = map[string]bool{}
					}
					levels[text][level] = true
				}
				return true
			})
		}
	}
	want := map[string]string{"request": "INFO"} // an access log's, which is no logger's call
	for text, at := range levels {
		want[text] = strings.Join(slices.Sorted(maps.Keys(at)), ", ")
	}
	got := map[string]string{}
	for _, row := range table(t, "docs/operations.md", "message") {
		got[bare(row[0])] = row[1]
	}
	equal(t, "docs/operations.md", got, want)
}

// What docs/migrating.md says to write is a key that there is: each word with an underscore, that the
// column of fpmd has, but for nginx's.
func TestMigratingKeys(t *testing.T) {
	keys := map[string]bool{"run_ms": true} // of the access log
	for _, name := range []string{"supervisorSettings", "poolSettings"} {
		for _, e := range value(t, "manager", name).(*ast.CompositeLit).Elts {
			keys[unquote(t, e.(*ast.CompositeLit).Elts[0])] = true
		}
	}
	quoted := regexp.MustCompile("`([a-z]+_[a-z_]+)\\b[^`]*`")
	for _, from := range []string{"php-fpm", "uWSGI", "gunicorn"} {
		told := 0
		for _, row := range table(t, "docs/migrating.md", from) {
			for _, m := range quoted.FindAllStringSubmatch(row[1], -1) {
				if told++; !keys[m[1]] && !strings.HasPrefix(m[1], "fastcgi_") {
					t.Errorf("%s becomes %s, which there is not", row[0], m[1])
				}
			}
		}
		if told < 8 {
			t.Errorf("%s: only %d keys", from, told)
		}
	}
}

// logged gives level and message of a call of a logger, such as p.log.Info("message").
func logged(n ast.Node) (level string, message ast.Expr) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", nil
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Info", "Warn", "Error"}, method.Sel.Name) {
		return "", nil
	}
	on := method.X
	if c, ok := on.(*ast.CallExpr); ok {
		on = c.Fun
	}
	name := ""
	switch x := on.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	if !slices.Contains([]string{"log", "logger", "With"}, name) {
		return "", nil
	}
	return strings.ToUpper(method.Sel.Name), call.Args[0]
}

// messages are the texts that a message may be: those of reload and restart begin with what it is.
func messages(t *testing.T, e ast.Expr) []string {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		return []string{unquote(t, e)}
	case *ast.BinaryExpr:
		what, ok := e.X.(*ast.Ident)
		end, literal := e.Y.(*ast.BasicLit)
		if ok && literal && what.Name == "what" {
			return []string{"reload" + unquote(t, end), "restart" + unquote(t, end)}
		}
	}
	return nil
}

// equal compares what a document says with what is.
func equal(t *testing.T, document string, got, want map[string]string) {
	t.Helper()
	if len(want) == 0 {
		t.Error("nothing found to compare with: has the code moved?")
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[k]; !ok {
			t.Errorf("%s leaves out %s", document, k)
		} else if g != want[k] {
			t.Errorf("%s: %s: %q, want %q", document, k, g, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			t.Errorf("%s has %s, which there is not", document, k)
		}
	}
}

// lines gives the lines of a file of the repository by their numbers, from 1.
func lines(t *testing.T, file string) func(yield func(int, string) bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(int, string) bool) {
		n := 0
		for text := range strings.Lines(string(b)) {
			if n++; !yield(n, strings.TrimRight(text, "\n")) {
				return
			}
		}
	}
}

// table gives the rows of the table in file whose first column is headed head.
func table(t *testing.T, file, head string) (rows [][]string) {
	t.Helper()
	inside := false
	for _, text := range lines(t, file) {
		switch {
		case strings.HasPrefix(text, "| "+head+" |"):
			inside = true
		case !strings.HasPrefix(text, "|"):
			inside = false
		case inside && !strings.HasPrefix(text, "|-"):
			// A cell may hold an escaped bar.
			cells := strings.Split(strings.ReplaceAll(strings.Trim(text, "|"), `\|`, "\x00"), "|")
			for i, c := range cells {
				cells[i] = strings.TrimSpace(strings.ReplaceAll(c, "\x00", "|"))
			}
			rows = append(rows, cells)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("%s: no table headed %q", file, head)
	}
	return rows
}

// bare is a cell without its backquotes.
func bare(cell string) string { return strings.Trim(cell, "`") }

// parse reads the Go files of a folder, tests aside.
func parse(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatalf("%s: no Go files", dir)
	}
	return files
}

// declared gives what a package declares: Name, and Type.name for methods,
// fields, and the methods of interfaces.
func declared(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, f := range parse(t, dir) {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					recv := d.Recv.List[0].Type
					if star, ok := recv.(*ast.StarExpr); ok {
						recv = star.X
					}
					name = fmt.Sprintf("%s.%s", recv, name)
				}
				names[name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						for _, n := range members(s.Type) {
							names[s.Name.Name+"."+n] = true
						}
					}
				}
			}
		}
	}
	return names
}

func members(typ ast.Expr) (names []string) {
	var list *ast.FieldList
	switch typ := typ.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

// value finds what a package's variable or constant is declared as.
func value(t *testing.T, dir, name string) ast.Expr {
	t.Helper()
	for _, f := range parse(t, dir) {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && v.Names[0].Name == name {
					return first(v.Values)
				}
			}
		}
	}
	t.Fatalf("%s: no variable or constant %s", dir, name)
	return nil
}

func first(es []ast.Expr) ast.Expr {
	if len(es) == 0 {
		return nil
	}
	return es[0]
}

// elements gives the elements of a composite literal with keys, by key.
func elements(t *testing.T, dir, name string) map[string]ast.Expr {
	t.Helper()
	lit, ok := value(t, dir, name).(*ast.CompositeLit)
	if !ok {
		t.Fatalf("%s: %s is no composite literal any more", dir, name)
	}
	es := map[string]ast.Expr{}
	for _, e := range lit.Elts {
		kv := e.(*ast.KeyValueExpr)
		es[kv.Key.(*ast.Ident).Name] = kv.Value
	}
	return es
}

// constant gives the literal parts of a string constant.
func constant(t *testing.T, dir, name string) string {
	t.Helper()
	var text strings.Builder
	ast.Inspect(value(t, dir, name), func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			text.WriteString(unquote(t, lit))
		}
		return true
	})
	return text.String()
}

func unquote(t *testing.T, e ast.Expr) string {
	t.Helper()
	s, err := strconv.Unquote(e.(*ast.BasicLit).Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// selector gives x.Sel as it is written.
func selector(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + s.Sel.Name
}
