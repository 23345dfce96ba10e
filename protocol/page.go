package protocol

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// A Page is the memory that a supervisor shares with one worker
// (PROTOCOL.md section 6): two words for each slot. Its methods may be called
// by any goroutine, until Close.
type Page struct {
	mem []byte
}

// NewPage makes a page and the descriptor that a worker maps it by, which the
// caller closes once the worker has it. The descriptor is sealed against
// resizing: a worker that could truncate it would kill its supervisor with
// SIGBUS.
func NewPage() (*Page, *os.File, error) {
	fd, err := unix.MemfdCreate("fpmd-page", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create for a worker's page: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fpmd-page")
	if err := f.Truncate(PageSize); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("size a worker's page: %w", err), f.Close())
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("seal a worker's page: %w", err), f.Close())
	}
	p, err := MapPage(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return p, f, nil
}

// MapPage maps the page behind f, which may be closed afterwards.
func MapPage(f *os.File) (*Page, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the page shared with the supervisor: %w", err)
	}
	return &Page{mem: mem}, nil
}

// Close unmaps the page. No method may be called afterwards.
func (p *Page) Close() error {
	mem := p.mem
	p.mem = nil
	return unix.Munmap(mem)
}

func (p *Page) begun(slot int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&p.mem[16*slot]))
}

func (p *Page) withdrawn(slot int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&p.mem[16*slot+8]))
}

// Begin is the worker's side: it records that the application is about to be
// called for exchange number on slot, and reports whether it may be: false
// means that the supervisor has taken the exchange back.
func (p *Page) Begin(slot int, number uint64) bool {
	p.begun(slot).Store(number)
	return p.withdrawn(slot).Load() != number
}

// Begun reports whether the worker has stored number for slot, or that of a
// later exchange. Once the process is dead, false proves that the exchange
// never started.
func (p *Page) Begun(slot int, number uint64) bool {
	return p.begun(slot).Load() >= number
}

// Withdraw takes an exchange back that was sent behind another. True: the
// worker will not begin it, whatever it does next. False: it has begun, or it
// is just finding out that it must not; its answer or its WITHDRAWN follows.
func (p *Page) Withdraw(slot int, number uint64) bool {
	p.withdrawn(slot).Store(number)
	// The worker stores begun and then loads withdrawn with no barrier between
	// the two (an interpreter has none to give), so this side pays for both.
	return barrier() && !p.Begun(slot, number)
}

func barrier() bool {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	return errno == 0
}

// CanWithdraw reports whether the kernel lets Withdraw work. Where it does not
// (a processor without its tick, a filter of system calls), nothing is to be
// sent behind another exchange.
var CanWithdraw = sync.OnceValue(barrier)
