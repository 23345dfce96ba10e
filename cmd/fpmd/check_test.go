package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// check --boot says of each pool whether a worker comes up, and of one that does
// not all that it takes to mend it; beside a running fpmd, and nothing is left behind.
func TestCheckBoot(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	write(t, filepath.Join(dir, "broken.py"), "import nonesuch\n")
	write(t, filepath.Join(dir, "typo.py"), "def application(environ, start_response)\n    return []\n")
	write(t, filepath.Join(dir, "indent.py"), "def application(environ, start_response):\nreturn []\n")
	write(t, filepath.Join(dir, "tabs.py"), "if True:\n        x = 1\n\ty = 2\n")
	write(t, filepath.Join(dir, "deaf.py"), `
import os, time
os.write(int(os.environ["FPMD_HANDSHAKE_FD"]), b"1|1|unix|1|exchange\n")
time.sleep(1000)
`)
	config := wsgiPool(dir, "env = { SECRET = \"hush\" }")
	d := serve(t, dir, config)

	who := ""
	if os.Getuid() == 0 {
		who = "user = \"nobody\"\n"
	}
	write(t, filepath.Join(dir, "more.toml"), config+fmt.Sprintf(`
[pool.broken]
listen = %q
wsgi = "broken:application"
directory = %q
python = %q
%s
[pool.typo]
listen = %q
wsgi = "typo:application"
directory = %q
python = %q
%s
[pool.indent]
listen = %q
wsgi = "indent:application"
directory = %q
python = %q
%s
[pool.tabs]
listen = %q
wsgi = "tabs:application"
directory = %q
python = %q
%s
[pool.other]
listen = %q
command = ["/bin/true"]
%s
[pool.deaf]
listen = %q
command = [%q, %q]
start_timeout = "2s"
%s`, filepath.Join(dir, "broken.sock"), dir, interpreter, who,
		filepath.Join(dir, "typo.sock"), dir, interpreter, who, filepath.Join(dir, "indent.sock"), dir, interpreter, who,
		filepath.Join(dir, "tabs.sock"), dir, interpreter, who, filepath.Join(dir, "other.sock"), who,
		filepath.Join(dir, "deaf.sock"), interpreter, filepath.Join(dir, "deaf.py"), who))
	tmp := t.TempDir()
	run := func(file string) (string, int) {
		cmd := exec.Command(os.Args[0], "check", "-c", filepath.Join(dir, file), "--boot")
		cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1", "TMPDIR="+tmp)
		out, _ := cmd.CombinedOutput() // its exit code says what there is to say
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := run("fpmd.toml"); code != 0 || !strings.Contains(out, "pool app: a worker was ready after ") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	out, code := run("more.toml")
	if code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{
		"pool app: a worker was ready after ",
		"pool broken: no worker comes up\n", "ModuleNotFoundError: No module named 'nonesuch'", "line 1, in <module>",
		"  directory    " + dir + "\n", "  usually      the module is not below directory or python_path",
		"pool typo: no worker comes up\n", "SyntaxError: ", "  usually      a slip of the pen at the line that the output names",
		"pool other: no worker comes up\n", "  error        exited with status 0 before it was ready\n", "  usually      the program is no worker",
		"fpmd: check --boot: no worker comes up of 6 of 7 pools",
		"IndentationError: expected an indented block", "TabError: inconsistent use of tabs",
		"pool deaf: no worker comes up\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("without %q:\n%s", want, out)
		}
	}
	if n := strings.Count(out, "  usually      a slip of the pen "); n != 3 {
		t.Errorf("a slip of the pen is told %d times, want 3:\n%s", n, out)
	}
	if strings.Contains(out, "hush") {
		t.Error("it tells the values of the environment")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := askOnce(d.sock()); err != nil {
		t.Errorf("the running one: %v", err)
	}
}

// What serve ends with at its start, check warns of before: both name the key, and
// say what would do.
func TestCheckSaysWhatServeEndsWith(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		from, to string // of the configuration, where D is its folder
		key      string // with the value
		would    string
	}{
		"all well":             {from: "", to: ""},
		"a socket's folder":    {"D/app.sock", "D/none/app.sock", `pool.app.listen: "D/none/app.sock": `, "the folder D/none is not there, and fpmd does not make it: mkdir -p D/none, or want a socket in another"},
		"an access log's":      {"workers = 1", "access_log = \"D/none/a.log\"", `pool.app.access_log: "D/none/a.log": `, "the folder D/none is not there, and fpmd does not make it: mkdir -p D/none, or want a log in another"},
		"the log's":            {"log_level = \"debug\"", "log = \"D/none/fpmd.log\"", `supervisor.log: "D/none/fpmd.log": `, "the folder D/none is not there, and fpmd does not make it: mkdir -p D/none, or want a log in another"},
		"a folder of all":      {"D/run", "D/open", `supervisor.runtime_dir: "D/open": `, "others may write there (mode 0777), and replace the workers' sockets: chmod go-w, or choose a folder of its own"},
		"an address elsewhere": {"listen = \"D/app.sock\"", "listen = \"192.0.2.7:9001\"\nallowed_clients = [\"192.0.2.1\"]", `pool.app.listen: "192.0.2.7:9001": `, "192.0.2.7 is none of this machine's addresses: want one that \"ip address\" shows, or \"127.0.0.1:9001\""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), helloApp)
			open := filepath.Join(dir, "open")
			if err := errors.Join(os.Mkdir(open, 0o777), os.Chmod(open, 0o777)); err != nil {
				t.Fatal(err)
			}
			there := strings.NewReplacer("D/", dir+"/", "D ", dir+" ").Replace
			config := filepath.Join(dir, "fpmd.toml")
			write(t, config, strings.Replace(wsgiPool(dir, "workers = 1"), there(tt.from), there(tt.to), 1))
			fpmd := func(args ...string) (string, int) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				cmd := exec.CommandContext(ctx, os.Args[0], append(args, "-c", config)...)
				cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
				out, _ := cmd.CombinedOutput() // its exit code says what there is to say
				return string(out), cmd.ProcessState.ExitCode()
			}
			told, code := fpmd("check")
			if tt.key == "" {
				if code != 0 || told != config+": all well; pools: app\n" {
					t.Errorf("check: exit code %d:\n%s", code, told)
				}
				return
			}
			line := regexp.MustCompile("^warning: " + regexp.QuoteMeta(config) + `:\d+: ` + regexp.QuoteMeta(there(tt.key)) + ".*" + regexp.QuoteMeta(there(tt.would)) + "\n")
			if code != 0 || !line.MatchString(told) || !strings.HasSuffix(told, "\n"+config+": no errors, 1 warning; pools: app\n") {
				t.Errorf("check: exit code %d:\n%s", code, told)
			}
			told, code = fpmd("serve")
			if code != exitFailure || !strings.HasPrefix(told, "fpmd: "+there(tt.key)) || !strings.HasSuffix(told, there(tt.would)+"\n") || strings.Count(told, "\n") != 1 {
				t.Errorf("serve: exit code %d:\n%s", code, told)
			}
		})
	}
}

// What the worker's user does not get to, check says without starting one: no worker comes
// up until the chmod that it names is done, and then it does.
func TestCheckClosedToTheUser(t *testing.T) {
	needRoot(t, "starts workers as another user")
	for name, tt := range map[string]struct {
		closed string
		mode   os.FileMode
		key    string
	}{
		"a folder on the way":  {".", 0o700, "directory"},
		"a folder unlisted":    {"app", 0o711, "directory"},
		"the application":      {"app/app.py", 0o600, "wsgi"},
		"interpreter's folder": {"home", 0o700, "python"},
		"interpreter":          {"home/python3", 0o744, "python"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := appDir(t)
			write(t, filepath.Join(dir, "app/app.py"), helloApp)
			write(t, filepath.Join(dir, "home/python3"), "#!/bin/sh\nexec "+interpreter+" \"$@\"\n")
			config := filepath.Join(dir, "fpmd.toml")
			text := poolConfig(dir, fmt.Sprintf("wsgi = \"app:application\"\ndirectory = %q\npython = \"../python3\"", filepath.Join(dir, "app")))
			write(t, config, text)
			closed := filepath.Join(dir, tt.closed)
			if err := errors.Join(os.Chmod(filepath.Join(dir, "home/python3"), 0o755), os.Symlink("home/python3", filepath.Join(dir, "python3")), os.Chmod(closed, tt.mode)); err != nil {
				t.Fatal(err)
			}
			check := func() (warning string, code int) {
				cmd := exec.Command(os.Args[0], "check", "-c", config, "--boot")
				cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
				out, _ := cmd.CombinedOutput() // its exit code says what there is to say
				for line := range strings.Lines(string(out)) {
					if strings.HasPrefix(line, "warning: ") && strings.Contains(line, "user nobody can't ") {
						warning += line
					}
				}
				return warning, cmd.ProcessState.ExitCode()
			}
			warning, code := check()
			if code != exitFailure {
				t.Errorf("a worker comes up: exit code %d", code)
			}
			before, _, _ := strings.Cut(text, tt.key+" = ")
			want := fmt.Sprintf("warning: %s:%d: pool.app.%s: ", config, 1+strings.Count(before, "\n"), tt.key)
			_, chmod, found := strings.Cut(warning, ": chmod ")
			chmod, _, _ = strings.Cut(chmod, ", or want ")
			if !strings.HasPrefix(warning, want) || !found || strings.Count(warning, "\n") != 1 {
				t.Fatalf("warned %q, want %q and a chmod", warning, want)
			}
			if out, err := exec.Command("chmod", strings.Fields(chmod)...).CombinedOutput(); err != nil {
				t.Fatalf("chmod %s: %v %s", chmod, err, out)
			}
			if warning, code := check(); warning != "" || code != 0 {
				t.Errorf("after chmod %s: exit code %d, warned %q", chmod, code, warning)
			}
		})
	}
}

// check --print writes a configuration, and nothing else, that check reads: the same
// one, without its secrets.
func TestCheckPrint(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "fpmd.toml"), wsgiPool(dir, "env = { SECRET = \"hush\" }\ndrain_timeout = \"1s\""))
	printed := func(file string) string {
		var stdout, stderr strings.Builder
		if err := run(t.Context(), []string{"check", "--print", "-c", filepath.Join(dir, file)}, &stdout, &stderr); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(stderr.String(), "warning: ") {
			t.Errorf("no warning on standard error: %q", stderr.String())
		}
		return stdout.String()
	}
	first := printed("fpmd.toml")
	write(t, filepath.Join(dir, "printed.toml"), first)
	again := printed("printed.toml")
	_, first, _ = strings.Cut(first, "\n") // which names the file
	_, again, _ = strings.Cut(again, "\n")
	if first != again || !strings.Contains(first, "env.SECRET          = \"***\"\n") || strings.Contains(first, "hush") {
		t.Errorf("printed\n%s\nand of that\n%s", first, again)
	}
	if err := run(t.Context(), []string{"check", "--print", "--boot"}, io.Discard, io.Discard); exitCode(err) != exitUsage {
		t.Errorf("--print and --boot: %v", err)
	}
}
