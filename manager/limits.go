package manager

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits are what the kernel holds each of a pool's workers to, and what a worker starts.
// What is not Set is as fpmd has it itself.
type Limits struct {
	Scheduling  string   // of policies; "": the policy that fpmd was started under
	Nice        Optional // -20 to 19
	OOMScoreAdj Optional // -1000 to 1000
	Nofile      Optional // descriptors, at least minNofile
	Nproc       Optional // processes and threads of the user, at least minNproc, or unlimited
	Core        Optional // bytes of a core file, or unlimited
}

// An Optional is a number that may be left open.
type Optional struct {
	Set   bool
	Value int64
}

// unlimited is the Value of a limit that is none.
const unlimited = -1

// minNofile is what an interpreter needs to get as far as its application.
const minNofile = 32

// minNproc is room for the threads of exec-worker, which are its user's until it execs.
const minNproc = 16

// set holds this process to l, soft and hard, and with it the program that it becomes. It
// is called on the thread that execs: niceness is a thread's own. An error names the
// key to blame.
func (l Limits) set() error {
	if l.Nice.Set {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, int(l.Nice.Value)); err != nil {
			return fmt.Errorf("nice = %d: setpriority: %w: fpmd needs CAP_SYS_NICE to go below its own", l.Nice.Value, err)
		}
	}
	if l.OOMScoreAdj.Set {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.FormatInt(l.OOMScoreAdj.Value, 10)), 0); err != nil {
			return fmt.Errorf("oom_score_adj = %d: %w: fpmd needs CAP_SYS_RESOURCE to go below its own", l.OOMScoreAdj.Value, err)
		}
	}
	for _, r := range []struct {
		key      string
		resource int
		Optional
	}{
		{"rlimit_core", unix.RLIMIT_CORE, l.Core},
		{"rlimit_nproc", unix.RLIMIT_NPROC, l.Nproc},
		{"rlimit_nofile", unix.RLIMIT_NOFILE, l.Nofile},
	} {
		if !r.Set {
			continue
		}
		n := uint64(r.Value) // unlimited is RLIM_INFINITY
		if err := unix.Setrlimit(r.resource, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("%s = %v: setrlimit: %w: fpmd needs CAP_SYS_RESOURCE to go beyond its own hard limit", r.key, shownLimit(r.Value), err)
		}
	}
	return nil
}

func shownLimit(n int64) any {
	if n == unlimited {
		return "unlimited"
	}
	return n
}

// heldTo is what the kernel holds fpmd itself to, and so the most that it can give to
// its workers.
type heldTo struct {
	nice, oomScoreAdj   int
	leastNice           int                // RLIMIT_NICE, as a niceness
	nofile, nproc, core uint64             // hard limits
	nrOpen              int64              // fs.nr_open; 0: not known
	capNice             bool               // CAP_SYS_NICE is, and stays exec-worker's
	capResource         bool               // CAP_SYS_RESOURCE
	capChroot           bool               // CAP_SYS_CHROOT
	mayHave             func(Policy) error // why threads of fpmd may not have it; nil: they may have any
}

// ourLimits is what holds for this process. What it can't find out is as if it held
// nobody back: the worker will tell.
func ourLimits() heldTo {
	h := heldTo{oomScoreAdj: -1000, nice: -20, leastNice: 20, mayHave: mayHave}
	if n, err := unix.Getpriority(unix.PRIO_PROCESS, os.Getpid()); err == nil {
		h.nice = 20 - n // the system call has them the other way round
	}
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			h.oomScoreAdj = n
		}
	}
	hard := func(resource int) uint64 {
		var r unix.Rlimit
		if unix.Getrlimit(resource, &r) != nil {
			return math.MaxUint64
		}
		return r.Max
	}
	h.nofile, h.nproc, h.core = hard(unix.RLIMIT_NOFILE), hard(unix.RLIMIT_NPROC), hard(unix.RLIMIT_CORE)
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NICE, &r) == nil {
		h.leastNice = 20 - int(min(r.Cur, 40))
	}
	h.nrOpen = readNumber("/proc/sys/fs/nr_open")
	h.capNice, h.capResource = capable(unix.CAP_SYS_NICE), capable(unix.CAP_SYS_RESOURCE)
	h.capChroot = capable(unix.CAP_SYS_CHROOT)
	return h
}

// capable reports whether exec-worker, which we exec, will have a capability that counts
// for the whole machine: root's are all that it may have, anybody else's the ambient ones.
func capable(capability uint) bool {
	if ids, err := os.ReadFile("/proc/self/uid_map"); err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" {
		return false // root of a user namespace
	}
	set := "CapAmb:"
	if os.Geteuid() == 0 {
		set = "CapBnd:"
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(status), "\n"+set)
	line, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err != nil || caps>>capability&1 == 1
}

// checkLimits refuses what fpmd can't give to a worker: it would find that out at each start.
func (d *draft) checkLimits() {
	if d.l.asking {
		return
	}
	held, l := d.l.held, d.Limits
	if v, want := d.given["scheduling"], policies[l.Scheduling]; l.Scheduling != "" && held.mayHave != nil {
		var err error
		if !want.RealTime() {
			err = held.mayHave(want)
		} else if now, perr := PolicyOf(0); perr != nil || !now.RealTime() { // else it has it already, or was started under one
			want = Foremost
			err = held.mayHave(want)
		}
		if err != nil {
			hint := "root with CAP_SYS_NICE"
			if want.RealTime() {
				hint += fmt.Sprintf(", or LimitRTPRIO=%d in its unit", want.Priority)
			}
			v.refuse("fpmd itself can't have that: %v: want an fpmd that is %s, and that no filter of system calls keeps from it, as hardened.conf does", err, hint)
		}
	}
	if v := d.given["nice"]; l.Nice.Set && !held.capNice && l.Nice.Value < int64(min(held.nice, held.leastNice)) {
		v.refuse("fpmd itself has %d, and without CAP_SYS_NICE can't go below it: want %d to 19, or Nice=%d in its unit, which its workers inherit, or start it as root with that capability",
			held.nice, held.nice, l.Nice.Value)
	}
	if v := d.given["oom_score_adj"]; l.OOMScoreAdj.Set && !held.capResource && l.OOMScoreAdj.Value < int64(held.oomScoreAdj) {
		v.refuse("fpmd itself has %d, and without CAP_SYS_RESOURCE can't go below it: want %d to 1000, or OOMScoreAdjust=%d in its unit, which its workers inherit, or start it as root with that capability",
			held.oomScoreAdj, held.oomScoreAdj, l.OOMScoreAdj.Value)
	}
	for _, r := range []struct {
		key string
		Optional
		hard         uint64
		unit, letter string
	}{
		{"rlimit_nofile", l.Nofile, held.nofile, "LimitNOFILE", "n"},
		{"rlimit_nproc", l.Nproc, held.nproc, "LimitNPROC", "u"},
		{"rlimit_core", l.Core, held.core, "LimitCORE", "c"},
	} {
		switch {
		case !r.Set:
		case r.key == "rlimit_nofile" && held.nrOpen > 0 && r.Value > held.nrOpen:
			d.given[r.key].refuse("the kernel takes no more than fs.nr_open = %d: want less", held.nrOpen)
		case !held.capResource && uint64(r.Value) > r.hard:
			want := "infinity"
			if r.Value != unlimited {
				want = strconv.FormatInt(r.Value, 10)
			}
			d.given[r.key].refuse("fpmd's own hard limit is %d, and without CAP_SYS_RESOURCE it can't go beyond: want at most that, or %s=%s in its unit (ulimit -H%s in a shell)",
				r.hard, r.unit, want, r.letter)
		}
	}
}
