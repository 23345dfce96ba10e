package manager

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A usage is what a process has used by a moment.
type usage struct {
	at    time.Time
	cpu   time.Duration // of all its threads
	waits int64         // times that its main thread gave up the processor because it had to wait
}

// usageOf is what a process has used; nil: it is gone, or /proc does not say.
func usageOf(pid int) *usage {
	u := &usage{at: time.Now(), waits: -1}
	stat, err := os.ReadFile(procDir(pid) + "/stat")
	if err != nil {
		return nil
	}
	// Fields follow the name of the program, which may have anything in it: proc_pid_stat(5).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return nil
	}
	for _, f := range fields[11:13] { // utime, stime
		ticks, _ := strconv.ParseInt(string(f), 10, 64) // the kernel writes numbers
		u.cpu += time.Duration(ticks) * (time.Second / ticksPerSecond)
	}
	if n, err := strconv.ParseInt(statusOf(pid)["voluntary_ctxt_switches"], 10, 64); err == nil {
		u.waits = n
	}
	return u
}

// ticksPerSecond is the kernel's USER_HZ, the same on all architectures that Go has.
const ticksPerSecond = 100

// statusOf is /proc/PID/status.
func statusOf(pid int) map[string]string {
	b, _ := os.ReadFile(procDir(pid) + "/status") // gone: nothing
	status := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.TrimSpace(value)
	}
	return status
}

// conditionOf is what /proc says of a process and its main thread, as fields of a line: whether it runs or waits,
// where in the kernel and for whom, what it has used since before, unless that is nil, and what it holds.
// What /proc denies is left out.
func conditionOf(pid int, before *usage) (fields []any) {
	say := func(name string, value any) {
		if value != "" {
			fields = append(fields, name, value)
		}
	}
	status, now := statusOf(pid), usageOf(pid)
	_, state, _ := strings.Cut(strings.TrimSuffix(status["State"], ")"), "(")
	say("state", state)
	call, on := callOf(pid)
	say("syscall", call)
	say("on", on)
	if wchan, err := os.ReadFile(procDir(pid) + "/wchan"); err == nil && string(wchan) != "0" {
		say("wchan", string(wchan))
	}
	if before != nil && now != nil {
		say("cpu", fmt.Sprintf("%v in the last %v", now.cpu-before.cpu, now.at.Sub(before.at).Round(time.Millisecond)))
		if before.waits >= 0 && now.waits >= before.waits {
			say("waits", now.waits-before.waits)
		}
	}
	if kib, err := strconv.ParseInt(strings.TrimSuffix(status["VmRSS"], " kB"), 10, 64); err == nil {
		say("memory", formatSize(kib<<10>>20<<20))
	}
	say("threads", status["Threads"])
	if fds, err := os.ReadDir(procDir(pid) + "/fd"); err == nil {
		say("descriptors", len(fds))
	}
	return fields
}

// callOf is the system call that the main thread of a process is in, and what its descriptor is
// open on where it has one; "" each: it is in none, or /proc does not say.
func callOf(pid int) (call, on string) {
	b, err := os.ReadFile(procDir(pid) + "/syscall") // "running", or number and arguments
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 3 {
		return "", ""
	}
	number, err := strconv.Atoi(fields[0])
	if err != nil || number < 0 {
		return "", ""
	}
	arg := func(i int) uint64 {
		n, _ := strconv.ParseUint(fields[1+i], 0, 64) // the kernel writes numbers
		return n
	}
	known := systemCalls[number]
	if runtime.GOARCH == "amd64" && known.name == "" {
		known = amd64Calls[number]
	}
	switch {
	case known.name == "":
		return fmt.Sprintf("number %d", number), ""
	case known.takes == descriptor:
		on = openOn(pid, int(int32(arg(0))))
	case known.takes == pollSet && arg(1) == 1:
		on = openOn(pid, polled(pid, arg(0)))
	}
	return known.name, on
}

// What the first argument of a system call is.
type firstArg uint8

const (
	other firstArg = iota
	descriptor
	pollSet
)

type systemCall struct {
	name  string
	takes firstArg
}

// systemCalls are those in which programs wait, by the numbers of this architecture.
var systemCalls = map[int]systemCall{
	unix.SYS_READ: {"read", descriptor}, unix.SYS_READV: {"readv", descriptor}, unix.SYS_PREAD64: {"pread64", descriptor},
	unix.SYS_WRITE: {"write", descriptor}, unix.SYS_WRITEV: {"writev", descriptor}, unix.SYS_PWRITE64: {"pwrite64", descriptor},
	unix.SYS_RECVFROM: {"recvfrom", descriptor}, unix.SYS_RECVMSG: {"recvmsg", descriptor},
	unix.SYS_SENDTO: {"sendto", descriptor}, unix.SYS_SENDMSG: {"sendmsg", descriptor},
	unix.SYS_CONNECT: {"connect", descriptor}, unix.SYS_ACCEPT4: {"accept4", descriptor},
	unix.SYS_FSYNC: {"fsync", descriptor}, unix.SYS_FDATASYNC: {"fdatasync", descriptor},
	unix.SYS_FLOCK: {"flock", descriptor}, unix.SYS_FCNTL: {"fcntl", descriptor}, unix.SYS_IOCTL: {"ioctl", descriptor},
	unix.SYS_PPOLL: {"ppoll", pollSet}, unix.SYS_PSELECT6: {"pselect6", other}, unix.SYS_EPOLL_PWAIT: {"epoll_pwait", descriptor},
	unix.SYS_OPENAT: {"openat", other}, unix.SYS_FUTEX: {"futex", other},
	unix.SYS_NANOSLEEP: {"nanosleep", other}, unix.SYS_CLOCK_NANOSLEEP: {"clock_nanosleep", other},
	unix.SYS_WAIT4: {"wait4", other}, unix.SYS_WAITID: {"waitid", other},
}

// amd64Calls are more, which newer architectures have not.
var amd64Calls = map[int]systemCall{
	2: {"open", other}, 7: {"poll", pollSet}, 23: {"select", other}, 232: {"epoll_wait", descriptor},
}

// polled is the descriptor of the one struct pollfd at an address in a process; -1: it is not to be read.
func polled(pid int, at uint64) int {
	var fd [4]byte
	local := []unix.Iovec{{Base: &fd[0]}}
	local[0].SetLen(len(fd))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(fd)}}, 0)
	if err != nil || n != len(fd) {
		return -1
	}
	return int(int32(binary.NativeEndian.Uint32(fd[:])))
}

// openOn says what a descriptor of a process is open on: a path, or to whom a socket is
// connected; "": there is no such descriptor, or /proc does not say.
func openOn(pid, fd int) string {
	target, err := os.Readlink(filepath.Join(procDir(pid), "fd", strconv.Itoa(fd)))
	if err != nil {
		return ""
	}
	inode, isSocket := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
	if !isSocket {
		return target
	}
	for _, network := range []string{"tcp", "tcp6", "udp", "udp6"} {
		if peer := peerOf(pid, network, inode); peer != "" {
			return peer
		}
	}
	return "socket"
}

// peerOf finds a socket by its inode in /proc/PID/net; "": it is none of network.
func peerOf(pid int, network, inode string) string {
	const at, least = 9, 10 // of the inode; proc_pid_net(5)
	table, _ := os.ReadFile(filepath.Join(procDir(pid), "net", network))
	for line := range bytes.Lines(table) {
		if f := bytes.Fields(line); len(f) >= least && string(f[at]) == inode {
			if peer, ok := parseHexAddr(string(f[2])); ok {
				return strings.TrimSuffix(network, "6") + " " + peer.String()
			}
		}
	}
	return ""
}

// parseHexAddr reads an address as /proc/net has it: words of 32 bits in the machine's order, and a port.
func parseHexAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	ip, err := hex.DecodeString(host)
	if err != nil || len(ip)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(ip, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, ok := netip.AddrFromSlice(ip)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok && err == nil
}
