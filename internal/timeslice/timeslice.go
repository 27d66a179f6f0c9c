// Package timeslice keeps the place that a thread has in Go's scheduler over the many short system calls in which it waits.
//
// A thread that sleeps in a system call keeps its place (its P) for 10 ms, in case that it is back soon, which for a queue's
// thread it is. But a goroutine that has run for 10 ms without having been scheduled anew counts as one that has used its slice
// up, and a locked one that only ever sleeps in system calls never is scheduled anew. From then on the runtime's monitor
// (sysmon) takes the place away at each of its looks, 20 µs after the call has begun, hands it on, wakes another thread for the
// poller that this one might have been, and looks again 20 µs later. That is two switches for each request, on a processor that
// has better things to do.
package timeslice

import (
	"runtime"
	"time"
)

// length is less than the slice of Go's scheduler (forcePreemptNS of package runtime).
const length = 4 * time.Millisecond

// Slice is the time slice of one goroutine. Its zero value is one that is used up.
type Slice struct{ begin time.Time }

// Renew is called before a system call that may wait. It has the goroutine scheduled anew where its slice is about to end,
// which for a locked one is as much as two switches between threads, a few hundred times a second at most.
func (s *Slice) Renew() {
	if now := time.Now(); now.Sub(s.begin) >= length {
		s.begin = now
		runtime.Gosched()
	}
}
