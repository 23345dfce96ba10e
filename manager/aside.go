package manager

import (
	"runtime"
	"sync"
)

// aside is how much goes on that is no exchange, and takes milliseconds at once.
var aside struct {
	mu sync.Mutex // held while Go's processors are counted anew
	n  int
}

// Aside gives Go one more processor until the function that it returns is called, for the first time: for work that is no
// exchange, and that exchanges would wait for where Go has a single one. Any goroutine may call both, at any time; several at
// once share it. Each first beginning and each last end stops the world, for some 10 µs, so it is for what takes far longer.
func Aside() (done func()) {
	count := func(by int) {
		aside.mu.Lock()
		defer aside.mu.Unlock()
		before := aside.n
		aside.n += by
		if (before == 0) != (aside.n == 0) {
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + by)
		}
	}
	count(1)
	return sync.OnceFunc(func() { count(-1) })
}
