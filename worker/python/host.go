// Package python carries the WSGI host: the Python program that a worker of a
// wsgi pool runs. Its source is in __main__.py and the package _fpmd, for
// Python 3.9 to 3.13 with nothing but the standard library, and it speaks the
// exchange of protocol/PROTOCOL.md.
//
// The host never lies in a file that others could write: the supervisor puts
// Archive into a sealed memfd, which the worker inherits, and starts Command.
// Besides the variables of PROTOCOL.md section 2, the host reads FPMD_HOST_FD
// (the memfd's descriptor, which it closes), FPMD_DIRECTORY (the head of
// sys.path; the working directory when absent), FPMD_PYTHON_PATH (what follows
// it, separated by colons; may be absent) and FPMD_CONCURRENCY (default
// "sync", the only model so far).
//
// Its exit codes: 0 stopped by SIGTERM; 1 the application's module raised when
// it was imported; 2 not started by fpmd; 3 the specification is malformed;
// 4 no such module; 5 no such attribute; 6 the factory raised; 7 what was found
// is no WSGI callable; 70 no common protocol version; 78 the configuration asks
// for what the host can't do.
//
// At SIGTERM it finishes the exchange that has begun and lets the
// application's exit hooks run; threads that are not daemons get five seconds
// to end, then the hooks run without them.
package python

import (
	"archive/zip"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
)

//go:embed __main__.py pathless.py _fpmd/*.py
var source embed.FS

// Archive returns the host as an uncompressed zip file, which a Python
// interpreter runs. It is the same bytes at every call.
func Archive() ([]byte, error) {
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	err := fs.WalkDir(source, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := source.ReadFile(name)
		if err != nil {
			return err
		}
		// Stored: an interpreter without zlib reads it too.
		file, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			return err
		}
		_, err = file.Write(text)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("archive of the WSGI host: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive of the WSGI host: %w", err)
	}
	return archive.Bytes(), nil
}

// Command returns the argument vector that runs the host: interpreter python,
// application spec ("module:callable" or "module:factory()"), and the archive
// behind the inherited descriptor fd.
func Command(python, spec string, fd int) []string {
	return []string{python, fmt.Sprintf("/proc/self/fd/%d", fd), spec}
}

// PathlessCommand is Command for where /proc is not mounted, as in a chroot. It takes some milliseconds more.
func PathlessCommand(python, spec string, fd int) []string {
	begin := fmt.Sprintf(`import io, os, zipfile; archive = zipfile.ZipFile(io.BytesIO(os.pread(%d, os.fstat(%[1]d).st_size, 0))); `+
		`exec(compile(archive.read("pathless.py"), "fpmd-host/__main__.py", "exec"))`, fd)
	return []string{python, "-c", begin, spec}
}
