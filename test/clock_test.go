package test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// wallClock is what makes a time one of the wall clock, which may be set at any
// moment, or reads that clock: methods of time.Time, and functions.
var wallClock = map[string]bool{
	"(time.Time).Unix": true, "(time.Time).UnixNano": true, "(time.Time).UnixMilli": true, "(time.Time).UnixMicro": true,
	"(time.Time).Round": true, "(time.Time).Truncate": true, "(time.Time).UTC": true, "(time.Time).Local": true, "(time.Time).In": true,
	"(time.Time).AddDate": true, "(time.Time).MarshalBinary": true, "(time.Time).GobEncode": true, "(time.Time).MarshalJSON": true,
	"(time.Time).MarshalText": true,
	"time.Unix":               true, "time.UnixMilli": true, "time.UnixMicro": true, "time.Date": true, "time.Parse": true, "time.ParseInLocation": true,
	"(io/fs.FileInfo).ModTime": true, "(os.FileInfo).ModTime": true,
	"syscall.Gettimeofday": true, "syscall.Time": true,
	"golang.org/x/sys/unix.ClockGettime": true, "golang.org/x/sys/unix.Gettimeofday": true, "golang.org/x/sys/unix.Time": true,
	"golang.org/x/sys/unix.TimerfdCreate": true,
}

// No deadline and no duration of fpmd's is one of the wall clock: every time
// stays as time.Now gave it, with its monotonic reading, by which package time
// compares and the runtime waits. The exceptions are time.Unix(1, 0), a
// deadline that is over whatever the clock says, and what a person reads and writes.
func TestNoWallClock(t *testing.T) {
	pkgs := exported(t)
	fset := token.NewFileSet()
	std := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if pkgs[path].Export == "" {
			return nil, errors.New("no export data of " + path)
		}
		return os.Open(pkgs[path].Export)
	})
	calls := 0
	for _, path := range []string{"fpmd/fcgi", "fpmd/protocol", "fpmd/manager", "fpmd/worker", "fpmd/worker/python", "fpmd/cmd/fpmd"} {
		var files []*ast.File
		for _, name := range pkgs[path].GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(pkgs[path].Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
		if _, err := (&types.Config{Importer: std}).Check(path, fset, files, info); err != nil {
			t.Fatal(err)
		}
		past := map[*ast.Ident]bool{} // the Unix of time.Unix(1, 0), and what is in forPeople
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if fn, ok := n.(*ast.FuncDecl); ok && path == "fpmd/cmd/fpmd" && forPeople[fn.Name.Name] {
					ast.Inspect(fn, func(n ast.Node) bool {
						if id, ok := n.(*ast.Ident); ok {
							past[id] = true
						}
						return true
					})
				}
				if call, ok := n.(*ast.CallExpr); ok && selector(call.Fun) == "time.Unix" && literals(call.Args) == "1 0" {
					past[call.Fun.(*ast.SelectorExpr).Sel] = true
				}
				return true
			})
		}
		for id, obj := range info.Uses {
			f, ok := obj.(*types.Func)
			if !ok {
				continue
			}
			if name := f.FullName(); name == "time.Now" {
				calls++
			} else if wallClock[name] && !past[id] {
				t.Errorf("%v: %s: want times as time.Now gives them, or their difference", fset.Position(id.Pos()), name)
			}
		}
	}
	if calls < 10 {
		t.Errorf("time.Now is called %d times: has the code moved?", calls)
	}
}

// forPeople are the functions of the command line that read and write times as a clock on the wall shows them.
var forPeople = map[string]bool{"sinceTime": true, "clock": true}

// literals are the arguments of a call, as they are written.
func literals(args []ast.Expr) string {
	var list []string
	for _, a := range args {
		if lit, ok := a.(*ast.BasicLit); ok {
			list = append(list, lit.Value)
		}
	}
	return strings.Join(list, " ")
}

// A listed is what go list says of a package.
type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
}

// exported lists fpmd's packages, and all that they import, with their export data.
func exported(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles", "./cmd/fpmd", "./worker/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	pkgs := map[string]listed{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}
