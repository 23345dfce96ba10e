// Package etc holds samples of configuration, and what is promised of them.
package etc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"fpmd/manager"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// nginx takes both samples where their first lines say they belong. Only the
// address is another: -t binds it, and that of the sample may be taken or reserved.
func TestNginxTakesTheSamples(t *testing.T) {
	for _, c := range []struct{ sample, wrapper string }{
		{"fpmd.conf", "include site.conf;"},
		{"minimal.conf", "server { listen 80; location / { include site.conf; } }"},
	} {
		t.Run(c.sample, func(t *testing.T) {
			dir := t.TempDir()
			site := read(t, filepath.Join("nginx", c.sample))
			wrapper := fmt.Sprintf(`
error_log stderr;
pid %[1]s/pid;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body; fastcgi_temp_path %[1]s/fastcgi; proxy_temp_path %[1]s/proxy;
  uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  %[2]s
}
`, dir, c.wrapper)
			if n := strings.Count(site+wrapper, "listen 80;"); n != 1 {
				t.Fatalf("%d of \"listen 80;\", want 1", n)
			}
			here := strings.NewReplacer("listen 80;", "listen unix:"+dir+"/http;")
			for name, text := range map[string]string{
				"site.conf":      here.Replace(site),
				"nginx.conf":     here.Replace(wrapper),
				"fastcgi_params": read(t, "/etc/nginx/fastcgi_params"), // the stock ones, which are looked for beside nginx.conf
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out, err := exec.Command("/usr/sbin/nginx", "-t", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf")).CombinedOutput()
			if err != nil || strings.Contains(string(out), "[warn]") {
				t.Errorf("nginx -t: %v\n%s", err, out)
			}
		})
	}
}

// nginx waits longer for an answer than fpmd, with every default: else nginx's
// 504 comes first, and nobody learns what the request waited for.
func TestNginxWaitsLongerThanFpmd(t *testing.T) {
	_, pool := manager.Defaults()
	site := read(t, "nginx/fpmd.conf")
	for _, name := range []string{"fastcgi_read_timeout", "fastcgi_send_timeout"} {
		m := regexp.MustCompile(`(?m)^\s*` + name + ` (\w+);`).FindStringSubmatch(site)
		if m == nil {
			t.Errorf("fpmd.conf has no %s", name)
			continue
		}
		nginx, err := time.ParseDuration(m[1])
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if fpmd := pool.QueueTimeout + pool.RequestTimeout; nginx <= fpmd {
			t.Errorf("%s is %v, fpmd takes up to %v", name, nginx, fpmd)
		}
	}
}
