package protocol

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watchAfter is how long an exchange goes on before anybody looks whether its
// client is still there. Most are over by then.
const watchAfter = 2 * time.Millisecond

// A watcher tells exchanges that the supervisor has closed their connection,
// without reading from it: that is the body's reader's to do. One goroutine
// does it for all, by an epoll instance in Go's own.
type watcher struct {
	mu      sync.Mutex // guards what follows, held over epoll_ctl, which does not block
	wg      sync.WaitGroup
	poll    *os.File // nil until the first exchange takes longer
	fd      int      // of poll
	last    uint64
	watches map[uint64]*watch
}

// A watch is one exchange's.
type watch struct {
	w     *watcher
	fd    int
	gone  func()
	timer *time.Timer
	over  bool   // guarded by w.mu
	id    uint64 // 0 until it is in w.watches; guarded by w.mu
}

func (w *watcher) watch(fd uintptr, gone func()) *watch {
	h := &watch{w: w, fd: int(fd), gone: gone}
	h.timer = time.AfterFunc(watchAfter, h.begin)
	return h
}

func (h *watch) begin() {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.over || w.openLocked() != nil {
		// Without a poller (no descriptors are left) the client's leaving is
		// noticed at the next read or write, as it would be in most servers.
		return
	}
	w.last++
	event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(w.last), Pad: int32(w.last >> 32)}
	if unix.EpollCtl(w.fd, unix.EPOLL_CTL_ADD, h.fd, &event) == nil {
		h.id = w.last
		w.watches[h.id] = h
	}
}

// stop ends the watch, while the descriptor is still the exchange's.
func (h *watch) stop() {
	if h.timer.Stop() {
		return
	}
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	h.over = true
	if h.id != 0 {
		_ = unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, h.fd, nil)
		delete(w.watches, h.id)
	}
}

// openLocked makes the poller.
func (w *watcher) openLocked() error {
	if w.poll != nil {
		return nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch for clients that leave: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for Go's poller to take it
		unix.Close(fd)
		return err
	}
	w.poll, w.fd, w.watches = os.NewFile(uintptr(fd), "epoll"), fd, make(map[uint64]*watch)
	raw, err := w.poll.SyscallConn()
	if err != nil {
		return err
	}
	w.wg.Go(func() { w.run(raw) }) // ends with close
	return nil
}

func (w *watcher) run(raw syscall.RawConn) {
	var events [32]unix.EpollEvent
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			w.mu.Lock()
			h := w.watches[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			w.mu.Unlock()
			if h != nil { // or its exchange has ended meanwhile
				h.gone()
			}
		}
	}
}

// close ends the watcher. No exchange is under way.
func (w *watcher) close() {
	w.mu.Lock()
	if w.poll != nil {
		w.poll.Close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}
