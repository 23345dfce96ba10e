package manager

import (
	"runtime"
	"sync"
	"testing"
)

// However many things are aside of the exchanges at once, and however often each says that it is done, Go has one
// processor more until the last one is, and then as many as before.
func TestAside(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := func(when string, n int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != n {
			t.Errorf("%s Go has %d processors, want %d", when, got, n)
		}
	}
	first := Aside()
	want("with one thing aside", 2)
	second := Aside()
	want("with two things aside", 2)
	first()
	first()
	want("with one of two done, twice", 2)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { // ends at once
			done := Aside()
			runtime.Gosched()
			done()
		})
	}
	wg.Wait()
	want("with one of many still aside", 2)
	second()
	want("with all done", 1)
}
