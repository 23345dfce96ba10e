package python

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The archive holds the modules as they lie in the folder, and nothing else.
func TestArchiveIsTheModules(t *testing.T) {
	data, err := Archive()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, file := range archive.File {
		got = append(got, file.Name)
		if file.Method != zip.Store {
			t.Errorf("%s is compressed by method %d, want stored", file.Name, file.Method)
		}
		text, err := archive.Open(file.Name)
		if err != nil {
			t.Fatal(err)
		}
		var inside bytes.Buffer
		if _, err := inside.ReadFrom(text); err != nil {
			t.Fatal(err)
		}
		if outside, err := os.ReadFile(file.Name); err != nil || !bytes.Equal(inside.Bytes(), outside) {
			t.Errorf("%s differs from the file: %v", file.Name, err)
		}
	}
	want, err := filepath.Glob("_fpmd/*.py")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, "__main__.py", "pathless.py")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("archive holds %v, want %v", got, want)
	}
}

// An interpreter runs the archive from the descriptor that it inherited, by its path or without one.
func TestCommandRunsTheArchive(t *testing.T) {
	data, err := Archive()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("fpmd-host", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	host := os.NewFile(uintptr(fd), "fpmd-host")
	defer host.Close()
	if _, err := host.Write(data); err != nil {
		t.Fatal(err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(host.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	for _, python := range interpreters(t) {
		for _, argv := range [][]string{Command(python, "blog.wsgi:application", 3), PathlessCommand(python, "blog.wsgi:application", 3)} {
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.ExtraFiles = []*os.File{host}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), `"blog.wsgi:application"`) {
				t.Errorf("%v: %v, want exit status 2 and how to run it; got:\n%s", argv, err, out)
			}
		}
	}
}

// The host keeps its promises (tests/test_*.py) under every Python 3 at hand.
func TestHost(t *testing.T) {
	for _, python := range interpreters(t) {
		t.Run(python, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, python, "-B", "-m", "unittest", "discover")
			cmd.Dir = "tests"
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", cmd.Args, err, out)
			}
		})
	}
}

// interpreters returns /usr/bin/python3 and every other python3 on PATH.
func interpreters(t testing.TB) []string {
	var found, real []string
	for _, folder := range append([]string{"/usr/bin"}, filepath.SplitList(os.Getenv("PATH"))...) {
		python := filepath.Join(folder, "python3")
		if _, err := exec.LookPath(python); err != nil {
			continue
		}
		// /bin is often a link to /usr/bin: once is enough.
		target, err := filepath.EvalSymlinks(python)
		if err != nil || slices.Contains(real, target) {
			continue
		}
		found, real = append(found, python), append(real, target)
	}
	if len(found) == 0 {
		t.Fatal("no python3 in /usr/bin or on PATH")
	}
	return found
}
