package protocol

import (
	"syscall"
	"unsafe"
)

// read and write are for non-blocking sockets, whose calls return at once.
// They do without what the runtime does around a call that may block: handing the
// processor to another thread, and watching, 50 times a millisecond, whether
// it should. With one processor that watching costs more than the calls.

func read(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func write(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// An iovec is one piece of memory for readv and writev.
type iovec struct {
	base unsafe.Pointer
	len  uint64
}

func iov(b []byte) iovec { return iovec{unsafe.Pointer(unsafe.SliceData(b)), uint64(len(b))} }

func readv(fd uintptr, v []iovec) (int, syscall.Errno) { return vector(syscall.SYS_READV, fd, v) }

func writev(fd uintptr, v []iovec) (int, syscall.Errno) { return vector(syscall.SYS_WRITEV, fd, v) }

func vector(trap, fd uintptr, v []iovec) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
