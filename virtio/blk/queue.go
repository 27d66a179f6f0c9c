package blk

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/internal/iouring"
	"vmm/internal/iovec"
	"vmm/virtio/virtqueue"
)

// maxWorkers bounds the goroutines that do for one queue what the ring doesn't.
const maxWorkers = 16

// kicked is the ring's name for the guest's kick; the others are the requests' slots.
const kicked = ^uint64(0)

// queue serves one virtqueue. All is its goroutine's, but for the two channels.
type queue struct {
	d *Device
	q *virtqueue.Queue

	requests []request
	free     []*request // slots without a request
	inflight int

	ring     *iouring.Ring // nil where there is none
	align    int           // of memory, for the ring
	from     int64         // where writes by the ring may begin
	mapped   MappedBackend // tells where in the file the disk's data is; nil where it is at the same offset
	inRing   int           // requests
	counter  uint64        // what the ring reads from the kick
	watching bool          // the ring waits for the kick

	workers int
	todo    chan *request // to the workers
	done    chan *request // from them; has room for all
	working sync.WaitGroup
}

// serveQueue serves q until ctx ends and nothing is in flight.
func (d *Device) serveQueue(ctx context.Context, q *virtqueue.Queue) error {
	n := int(q.Size())
	s := &queue{
		d: d, q: q, requests: make([]request, n),
		todo: make(chan *request, n), done: make(chan *request, n),
	}
	for i := range s.requests {
		s.requests[i].slot = uint64(i)
		s.free = append(s.free, &s.requests[i])
	}
	s.openRing()
	defer s.close()
	return s.loop(ctx)
}

// openRing makes the ring, if the back end is a file and the host allows it.
func (s *queue) openRing() {
	if s.d.cfg.NoRing {
		return
	}
	var fd, align int
	var mapped MappedBackend
	switch b := s.d.cfg.Backend.(type) {
	case DirectBackend:
		fd, align = b.Direct()
	case MappedBackend:
		var ok bool
		if fd, align, ok = b.MappedFile(); !ok {
			return
		}
		mapped = b
	default:
		return
	}
	ring, err := iouring.New(uint32(2 * max(len(s.requests), 2)))
	if err != nil {
		return // the workers do it all
	}
	if ring.RegisterFile(fd) != nil {
		_ = ring.Close()
		return
	}
	s.ring, s.align, s.mapped = ring, align, mapped
	if g, ok := s.d.cfg.Backend.(Guarded); ok {
		s.from = g.DirectFrom()
	}
}

// close ends the workers and the ring, in which nothing but a wait for a kick may be left.
func (s *queue) close() {
	close(s.todo)
	s.working.Wait()
	if s.ring == nil {
		return
	}
	for s.watching || s.inRing > 0 {
		s.q.Wake()
		if s.ring.Enter(1) != nil {
			break
		}
		s.reapRing()
	}
	_ = s.ring.Close()
}

func (s *queue) loop(ctx context.Context) (err error) {
	for {
		ended := ctx.Err() != nil || err != nil
		if ended && s.inflight == 0 {
			return err
		}
		if !ended {
			s.q.DisableKicks()
			if err = s.take(); err != nil {
				continue
			}
		}
		if s.ring != nil && s.ring.Queued() > 0 {
			if err := s.ring.Enter(0); err != nil {
				return err
			}
		}
		if s.reap() {
			s.q.Notify()
			continue // what came meanwhile goes with the next notification
		}
		s.q.Notify()
		if !ended && len(s.free) > 0 && s.q.EnableKicks() {
			continue
		}
		if err := s.wait(); err != nil {
			return err
		}
	}
}

// take starts what the guest has made available, as far as there are slots. It returns after a queue full of requests, also
// where they need no slot: a driver can be as fast as we are, and the caller has to look at whether it shall end.
func (s *queue) take() error {
	for range s.q.Size() {
		if len(s.free) == 0 {
			return nil
		}
		r := s.free[len(s.free)-1]
		ok, err := s.q.Pop(&r.chain)
		if !ok || err != nil {
			return err
		}
		if !r.parse(s.d) {
			s.answer(r)
			continue
		}
		s.free = s.free[:len(s.free)-1]
		s.inflight++
		s.start(r)
	}
	return nil
}

// start hands a request to the ring or to a worker.
func (s *queue) start(r *request) {
	if s.ring != nil && (r.kind == typeIn || r.kind == typeOut && r.off >= s.from) && iovec.Aligned(r.iov, s.align) && s.place(r) {
		s.d.counters.ring.Add(1)
		s.submit(r)
		return
	}
	s.delegate(r)
}

// place finds where in the file the request's data is, if the ring can have it.
func (s *queue) place(r *request) (ok bool) {
	r.at = r.off
	if s.mapped != nil {
		r.at, ok = s.mapped.Map(r.off, r.size, r.kind == typeOut)
		return ok
	}
	return true
}

// leave ends what place began.
func (s *queue) leave() {
	if s.mapped != nil {
		s.mapped.Unmap()
	}
}

// submit hands what is left of a request to the ring, whose submissions are enough for all slots and the kick.
func (s *queue) submit(r *request) {
	s.inRing++
	off := r.at + int64(r.done)
	if r.kind == typeIn {
		s.ring.Readv(r.left, off, r.slot)
	} else {
		s.ring.Writev(r.left, off, r.slot)
	}
}

// delegate hands a request to a worker. There are as many as were ever needed at once, up to maxWorkers.
func (s *queue) delegate(r *request) {
	if delegated := s.inflight - s.inRing; delegated > s.workers && s.workers < maxWorkers {
		s.workers++
		s.working.Go(s.work)
	}
	s.todo <- r
}

func (s *queue) work() {
	for r := range s.todo {
		r.execute(s.d)
		s.done <- r
		s.q.Wake()
	}
}

// answer gives a request back to the guest.
func (s *queue) answer(r *request) {
	if r.status == nil {
		s.d.counters.malformed.Add(1)
		s.q.Push(&r.chain, 0)
		return
	}
	switch r.result {
	case statusIOErr:
		s.d.counters.failed.Add(1)
	case statusUnsupp:
		s.d.counters.unsupported.Add(1)
	}
	r.status[0] = r.result
	s.q.Push(&r.chain, r.length)
}

// complete answers a request that was in flight.
func (s *queue) complete(r *request) {
	s.answer(r)
	s.inflight--
	s.free = append(s.free, r)
}

// reap completes what the ring and the workers have done, and reports whether there was anything.
func (s *queue) reap() bool {
	before := s.inflight
	if s.ring != nil {
		s.reapRing()
	}
	for {
		select {
		case r := <-s.done:
			s.complete(r)
			continue
		default:
		}
		return s.inflight != before
	}
}

func (s *queue) reapRing() {
	for {
		slot, n, ok := s.ring.Next()
		switch {
		case !ok:
			return
		case slot == kicked:
			s.watching = false
		default:
			s.inRing--
			s.landed(&s.requests[slot], int(n))
		}
	}
}

// landed handles what the ring says of a request: n bytes are done, or -n is an errno.
func (s *queue) landed(r *request, n int) {
	switch errno := unix.Errno(-n); {
	case n > 0:
		r.done += n
		r.left = iovec.Advance(r.left, n)
		if len(r.left) == 0 {
			s.leave()
			r.result = statusOK
			s.complete(r)
			return
		}
		s.submit(r)
	case n < 0 && (errors.Is(errno, unix.EINTR) || errors.Is(errno, unix.EAGAIN)):
		s.submit(r)
	case n == 0: // the end of the file: the back end knows what is there
		s.leave()
		s.delegate(r)
	default:
		s.leave()
		s.complete(r) // with IOERR
	}
}

// wait waits for a kick, a completion of the ring's, or a worker. A thread with nothing in the ring sleeps in the kick's
// own read, which wakes faster than the ring does.
func (s *queue) wait() error {
	if s.inRing == 0 && !s.watching {
		return s.q.Wait()
	}
	if !s.watching {
		s.watching = s.ring.ReadEvent(s.q.Config().Kick.FD(), &s.counter, kicked)
	}
	s.q.BeforeWait()
	return s.ring.Enter(1)
}
