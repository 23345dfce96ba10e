package manager

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What is printed is read back to the same configuration, whatever the file: with every
// key in it, and no value of env.
func TestPrintedIsReadBack(t *testing.T) {
	root := testMachine(0)
	root.lookupEnv = func(name string) (string, bool) {
		v, ok := map[string]string{"DATABASE_URL": "hunter2", "EMPTY": "", "PATH": "/usr/bin"}[name]
		return v, ok
	}
	here := thisMachine() // whose folders the examples are in
	here.euid, here.egid = 0, 0
	here.lookupEnv = func(name string) (string, bool) {
		if name != "PWD" {
			return "", false
		}
		top, err := filepath.Abs("..")
		return top, err == nil
	}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, tt := range map[string]struct {
		m    machine
		text string
	}{
		"every key":                      {root, everySetting},
		"a command":                      {root, commandPool},
		"a command by its name, as root": {root, "[pool.api]\nlisten = \"/a\"\ncommand = [\"python3\", \"a$$b\", \"\\\"\\u007f\\n\"]\nallow_root = true\nenv.PATH = \"/x:/usr/bin\"\n"},
		"secrets":                        {root, wsgiPool + "env = { A = \"hunter2\", \"b.c$\" = \"x${DATABASE_URL}x\" }\n"},
		"another user":                   {testMachine(1001), "[supervisor]\nuser = \"nonesuch\"\n[pool.api]\nlisten = \"/a\"\ncommand = [\"/srv/api/api\"]\nuser = \"app\"\nlisten_group = \"video\"\nmax_environ = 5000\n"},
		"etc/fpmd.toml":                  {root, strings.ReplaceAll(read("../etc/fpmd.toml"), "include ", "#include ") + wsgiPool},
		"etc/conf.d":                     {root, read("../etc/conf.d/blog.toml.sample")},
		"examples/wsgi":                  {here, read("../examples/wsgi/fpmd.toml")},
		"examples/flask":                 {here, read("../examples/flask/fpmd.toml")},
		"examples/django":                {here, read("../examples/django/fpmd.toml")},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := mustLoad(t, tt.m, tt.text)
			printed := cfg.text(tt.m)
			checkSame(t, mustLoad(t, tt.m, printed), cfg)
			if strings.Contains(printed, "hunter2") {
				t.Errorf("a secret is in\n%s", printed)
			}
			for _, key := range append(names(supervisorSettings), names(poolSettings)...) {
				if !strings.Contains(printed, "\n"+key) && !strings.Contains(printed, "\n# "+key+": none, ") {
					t.Errorf("no %s in\n%s", key, printed)
				}
			}
		})
	}
}

// The pools of included files are in what is printed, which includes none.
func TestPrintedIncludes(t *testing.T) {
	cfg, err := load("testdata/config/good/includes.toml", testMachine(0))
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, mustLoad(t, testMachine(0), cfg.text(testMachine(0))), cfg)
}

// checkSame holds a configuration that was printed and read back against what it
// was printed of.
func checkSame(t *testing.T, again, cfg *Config) {
	t.Helper()
	sup := cfg.Supervisor
	sup.Include = nil
	if !reflect.DeepEqual(again.Supervisor, sup) {
		t.Errorf("[supervisor] is\n%+v, was\n%+v", again.Supervisor, sup)
	}
	if len(again.Pools) != len(cfg.Pools) {
		t.Fatalf("%d pools, were %d", len(again.Pools), len(cfg.Pools))
	}
	for i, p := range cfg.Pools {
		want, got := *p, *again.Pools[i]
		want.Env = map[string]string{}
		for name := range p.Env {
			want.Env[name] = masked
			if name == "PATH" {
				want.Env[name] = p.Env[name]
			}
		}
		want.PythonPath, got.PythonPath = slices.Concat(want.PythonPath), slices.Concat(got.PythonPath) // [] and nothing are the same
		if !reflect.DeepEqual(got, want) {
			t.Errorf("[pool.%s] is\n%+v, was\n%+v", p.Name, got, want)
		}
	}
}

// A key that is read is printed. That all of it is printed right is seen where
// everySetting is, which has each key once.
func TestEverySettingIsPrinted(t *testing.T) {
	for _, name := range names(supervisorSettings) {
		if supervisorShown[name] == nil {
			t.Errorf("supervisor.%s is not printed: want it in supervisorShown", name)
		}
	}
	for _, name := range names(poolSettings) {
		if poolShown[name] == nil {
			t.Errorf("pool.NAME.%s is not printed: want it in poolShown", name)
		}
	}
	for _, name := range append(names(supervisorSettings), names(poolSettings)...) {
		if !strings.Contains(everySetting, "\n"+name+" = ") && name != "command" {
			t.Errorf("everySetting has no %s", name)
		}
	}
}

// What it looks like.
func TestPrintedText(t *testing.T) {
	const golden = "testdata/config/printed.toml"
	m := testMachine(0)
	cfg := mustLoad(t, m, everySetting+strings.Replace(commandPool, "127.0.0.1:9001", "/run/fpmd/api.sock", 1))
	cfg.Files = []string{"/etc/fpmd/fpmd.toml", "/etc/fpmd/conf.d/api.toml"}
	got := cfg.text(m)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
}
