package balloon

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"vmm/virtio/virtqueue"
)

// Stats are what the guest says of its memory (§5.5.6.4). A value that it does not tell is zero, and has no bit in Has.
type Stats struct {
	SwapIn, SwapOut          uint64 // bytes
	MajorFaults, MinorFaults uint64
	Free, Total, Available   uint64 // bytes
	Caches                   uint64 // bytes
	HugePagesAllocated       uint64
	HugePagesFailed          uint64

	Has uint32 // bits by the tags of §5.5.6.4
}

// field returns the place for a tag, or nil.
func (s *Stats) field(tag uint16) *uint64 {
	fields := [...]*uint64{
		&s.SwapIn, &s.SwapOut, &s.MajorFaults, &s.MinorFaults, &s.Free, &s.Total, &s.Available, &s.Caches,
		&s.HugePagesAllocated, &s.HugePagesFailed,
	}
	if int(tag) < len(fields) {
		return fields[tag]
	}
	return nil
}

// ErrNoStats is what [Device.Stats] returns while no driver tells statistics.
var ErrNoStats = errors.New("the guest tells no statistics: it has no driver for its balloon")

// statistics is the statistics queue. The device keeps the driver's buffer; giving it back asks for news.
type statistics struct {
	mu       sync.Mutex // guards what follows
	news     *sync.Cond // told when any of it has changed
	queue    *virtqueue.Queue
	wanted   bool
	sequence uint64 // of what the driver has told
	last     Stats
}

// Stats asks the guest for its statistics and waits for them.
func (d *Device) Stats(ctx context.Context) (Stats, error) {
	s := &d.stats
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.news.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue == nil {
		return Stats{}, ErrNoStats
	}
	s.wanted = true
	s.queue.Wake()
	for before := s.sequence; s.sequence == before; {
		switch {
		case ctx.Err() != nil:
			return Stats{}, ctx.Err()
		case s.queue == nil:
			return Stats{}, ErrNoStats
		}
		s.news.Wait()
	}
	return s.last, nil
}

func (s *statistics) serve(ctx context.Context, q *virtqueue.Queue) error {
	s.attach(q)
	defer s.attach(nil)
	var c virtqueue.Chain
	held := false
	first := true // the first buffer is there to be kept, whatever is in it
	for ctx.Err() == nil {
		if !held {
			ok, err := q.Pop(&c)
			if err != nil {
				return err
			}
			if ok {
				held = true
				s.tell(&c, first)
				first = false
				continue
			}
		}
		if held && s.take() {
			held = false
			q.Push(&c, 0)
			q.Notify()
			continue
		}
		if err := q.Sleep(); err != nil {
			return err
		}
	}
	return nil
}

func (s *statistics) attach(q *virtqueue.Queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue, s.wanted = q, false
	s.news.Broadcast()
}

// take tells whether somebody wants news, once.
func (s *statistics) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := s.wanted
	s.wanted = false
	return wanted
}

// tell reads what the driver has written: tags (2) with values (8).
func (s *statistics) tell(c *virtqueue.Chain, first bool) {
	var news Stats
	var b [10]byte
	for range 64 { // there are ten tags
		if n, _ := c.Readable.Read(b[:]); n < len(b) {
			break
		}
		tag := binary.LittleEndian.Uint16(b[:])
		if to := news.field(tag); to != nil {
			*to = binary.LittleEndian.Uint64(b[2:])
			news.Has |= 1 << tag
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = news
	if !first {
		s.sequence++
		s.news.Broadcast()
	}
}
