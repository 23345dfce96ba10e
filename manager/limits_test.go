package manager

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// held is what the kernel says that it holds a process to.
func held(t *testing.T, pid int) map[string]string {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	_, stat, _ := strings.Cut(read("stat"), ") ")
	got := map[string]string{
		"nice":          strings.Fields(stat)[16],
		"oom_score_adj": strings.TrimSpace(read("oom_score_adj")),
		"scheduling":    strings.Join(strings.Fields(stat)[37:39], " "), // rt_priority, policy
	}
	for line := range strings.Lines(read("limits")) {
		for title, key := range map[string]string{"Max open files": "rlimit_nofile", "Max processes": "rlimit_nproc", "Max core file size": "rlimit_core"} {
			if rest, ok := strings.CutPrefix(line, title); ok {
				f := strings.Fields(rest)
				got[key] = f[0] + " " + f[1]
			}
		}
	}
	return got
}

// A worker, and what it starts, is held to its pool's limits, soft and hard; to what has none, as we are.
func TestLimitsOfAWorker(t *testing.T) {
	ours := held(t, os.Getpid())
	// The runtime raises our own soft limit, and gives children the one that it found.
	ours["rlimit_nofile"] = held(t, startWorker(t, shell(t, ready+"exec sleep 1000")).pid)["rlimit_nofile"]
	niceness, err := strconv.Atoi(ours["nice"])
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		limits Limits
		want   map[string]string
	}{
		"none":  {Limits{}, ours},
		"nice":  {Limits{Nice: Optional{true, int64(niceness + 1)}}, map[string]string{"nice": strconv.Itoa(niceness + 1)}},
		"batch": {Limits{Scheduling: "batch"}, map[string]string{"scheduling": "0 3"}},
		"idle":  {Limits{Scheduling: "idle", Nice: Optional{true, int64(niceness + 1)}}, map[string]string{"scheduling": "0 5", "nice": strconv.Itoa(niceness + 1)}},
		"other": {Limits{Scheduling: "other"}, map[string]string{"scheduling": "0 0"}},
		"as is": {Limits{Nice: Optional{true, int64(niceness)}}, map[string]string{"nice": ours["nice"]}},
		"all": {
			Limits{
				Nice: Optional{true, 19}, OOMScoreAdj: Optional{true, 1000},
				Nofile: Optional{true, 64}, Nproc: Optional{true, 4001}, Core: Optional{true, 0},
			},
			map[string]string{"nice": "19", "oom_score_adj": "1000", "rlimit_nofile": "64 64", "rlimit_nproc": "4001 4001", "rlimit_core": "0 0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			records := make(chan printed, 1)
			l := shell(t, "sleep 1000 & echo $!; "+ready+"wait")
			l.limits, l.logger = tt.limits, logInto(records)
			l.policy = policyOfWorkers(tt.limits.Scheduling, nil)
			p := startWorker(t, l)
			for _, pid := range []int{p.pid, nextPid(t, records)} {
				got := held(t, pid)
				for key, want := range ours {
					if w, ok := tt.want[key]; ok {
						want = w
					}
					if got[key] != want {
						t.Errorf("process %d: %s is %s, want %s", pid, key, got[key], want)
					}
				}
			}
		})
	}
}

// What is read from a configuration is what the kernel gives to a worker of this very fpmd, and what
// is refused is what it does not give. What it refuses nevertheless, the worker's error names.
func TestLimitsThatAreRefused(t *testing.T) {
	ours := ourLimits()
	for _, tt := range []struct{ name, line string }{
		{"nice", fmt.Sprint("nice = ", max(ours.nice-1, -20))},
		{"as nice as we", fmt.Sprint("nice = ", ours.nice)},
		{"real time, where we may", "scheduling = \"rr\""},
		{"nofile", fmt.Sprint("rlimit_nofile = ", min(ours.nofile+1, uint64(ours.nrOpen)))},
		{"as much as we", fmt.Sprint("rlimit_nofile = ", min(ours.nofile, uint64(ours.nrOpen)))},
		{"nofile beyond the kernel's", fmt.Sprint("rlimit_nofile = ", ours.nrOpen+1)},
		{"nproc", "rlimit_nproc = \"unlimited\""},
		{"core", "rlimit_core = \"unlimited\""},
		{"no core", "rlimit_core = 0"},
		{"oom_score_adj as ours", fmt.Sprint("oom_score_adj = ", ours.oomScoreAdj)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, _, _ := strings.Cut(tt.line, " ")
			m := testMachine(0)
			m.held = ours
			_, refused := loadText(t, m, wsgiPool+tt.line)
			m.held = heldTo{leastNice: -20, oomScoreAdj: -1000, nice: -20, capResource: true, capNice: true} // whom nothing is refused
			l := shell(t, ready+"exec sleep 1000")
			l.limits = mustLoad(t, m, wsgiPool+tt.line).Pools[0].Limits
			l.policy = policyOfWorkers(l.limits.Scheduling, nil)
			p, err := start(t.Context(), l)
			if err == nil {
				p.kill()
				<-p.done()
				p.page.Close()
			}
			if (refused != nil) != (err != nil) {
				t.Errorf("the configuration is told %v, and the worker %v", refused, err)
			}
			for _, err := range []error{refused, err} {
				if err != nil && !strings.Contains(err.Error(), key) {
					t.Errorf("%v: want it to name %s", err, key)
				}
			}
		})
	}
}

// Who has reached the pool's own limit is told of that one.
func TestNprocOfAPool(t *testing.T) {
	needRoot(t, "counts the processes of a user who has no others")
	l := shell(t, ready+"exec sleep 1000")
	uid := uint32(62000 + os.Getpid()%1000)
	l.cred = &Credential{UID: uid, GID: uid, Groups: []uint32{uid}, Name: "crowd"}
	l.limits.Nproc = Optional{true, minNproc}
	crowd := l
	crowd.limits = Limits{}
	crowd.argv = []string{"sh", "-c", "for i in $(seq 16); do sleep 1000 & done; " + ready + "wait"}
	startWorker(t, crowd)
	l.id++
	_, err := start(t.Context(), l)
	if err == nil || !strings.Contains(err.Error(), "user crowd can have no more processes: rlimit_nproc = 16,") {
		t.Errorf("%v: want rlimit_nproc = 16 as the cause", err)
	}
}
