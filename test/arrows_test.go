package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const goPlugin = "github.com/hashicorp/go-plugin"

// arrows are the packages of ours that a package may import, outside its tests.
// One that is not named may import none.
var arrows = map[string][]string{
	"fpmd/cmd/fpmd":                {"fpmd/fcgi", "fpmd/manager", "fpmd/worker", "fpmd/worker/python"},
	"fpmd/manager":                 {"fpmd/fcgi", "fpmd/protocol"},
	"fpmd/worker":                  {"fpmd/protocol"},
	"fpmd/bench/goapp":             {"fpmd/worker"},
	"fpmd/examples/go-application": {"fpmd/worker"},
	"fpmd/examples/go-handler":     {"fpmd/worker"},
}

// goList runs go list for this module.
func goList(t *testing.T, args ...string) []byte {
	t.Helper()
	list := exec.Command("go", append([]string{"list"}, args...)...)
	list.Dir = root
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// within says whether path is that of pkg, or of a package below it.
func within(path, pkg string) bool {
	return path == pkg || strings.HasPrefix(path, pkg+"/")
}

// Each package imports only what is below it, so that fcgi and protocol can be
// understood, and an application built, without the rest; and go-plugin is
// imported by one file, so that its types do not travel.
func TestPackagesImportOnlyWhatIsBelowThem(t *testing.T) {
	packages := json.NewDecoder(bytes.NewReader(goList(t, "-json=Dir,ImportPath,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports", "./...")))
	var seen, plugged []string
	for {
		var p struct {
			Dir, ImportPath                              string
			GoFiles, CgoFiles, TestGoFiles, XTestGoFiles []string
			Imports                                      []string
		}
		if err := packages.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, p.ImportPath)
		for _, imported := range p.Imports {
			if within(imported, "fpmd") && !slices.Contains(arrows[p.ImportPath], imported) {
				t.Errorf("%s imports %s", p.ImportPath, imported)
			}
		}
		for _, file := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			name := p.ImportPath + "/" + file
			for _, spec := range parsed.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if within(imported, goPlugin) && !slices.Contains(plugged, name) {
					plugged = append(plugged, name)
				}
			}
		}
	}
	if want := []string{"fpmd/manager/process.go"}; !slices.Equal(plugged, want) {
		t.Errorf("go-plugin is imported by %q, want %q", plugged, want)
	}
	for pkg := range arrows {
		if !slices.Contains(seen, pkg) {
			t.Errorf("%s is not there: its arrows hold nothing", pkg)
		}
	}
}

// A Go application's binary carries the worker library and the protocol, and
// nothing of how it is launched and managed.
func TestApplicationsCarryNeitherGRPCNorGoPlugin(t *testing.T) {
	for _, pkg := range []string{"./bench/goapp", "./examples/go-application", "./examples/go-handler"} {
		deps := strings.Fields(string(goList(t, "-deps", pkg)))
		if !slices.Contains(deps, "fpmd/worker") {
			t.Errorf("%s does not carry fpmd/worker: %q", pkg, deps)
		}
		for _, dep := range deps {
			for _, not := range []string{goPlugin, "google.golang.org/grpc", "fpmd/manager", "fpmd/fcgi", "fpmd/worker/python"} {
				if within(dep, not) {
					t.Errorf("%s carries %s", pkg, dep)
				}
			}
		}
	}
}
