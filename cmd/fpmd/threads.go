package main

import (
	"runtime"
	"sync"
)

// spareThreads is more than fpmd was ever seen to have at work.
const spareThreads = 16

// reserveThreads makes n threads that the runtime keeps for when it needs them.
// Where the user, or the control group, may have no more processes, it can't
// make one, and a Go program then ends at once: with it would go all pools.
func reserveThreads(n int) {
	var locked, done sync.WaitGroup
	release := make(chan struct{})
	for range n {
		locked.Add(1)
		done.Go(func() { // ends at release
			runtime.LockOSThread() // a thread that waits for this one alone can't run the next
			defer runtime.UnlockOSThread()
			locked.Done()
			<-release
		})
	}
	locked.Wait()
	close(release)
	done.Wait()
}
