package virtiotest

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"vmm/internal/eventfd"
	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// Flags of a [Desc] (virtio 1.2 §2.7.5).
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Desc is a descriptor.
type Desc struct {
	Addr  memory.GPA
	Len   uint32
	Flags uint16
	Next  uint16
}

// Bytes is the descriptor as it lies in memory.
func (d Desc) Bytes() []byte {
	var b []byte
	b = binary.LittleEndian.AppendUint64(b, uint64(d.Addr))
	b = binary.LittleEndian.AppendUint32(b, d.Len)
	b = binary.LittleEndian.AppendUint16(b, d.Flags)
	return binary.LittleEndian.AppendUint16(b, d.Next)
}

// Used is an element of the used ring.
type Used struct{ ID, Len uint32 }

// Queue is the driver's side of one queue.
type Queue struct {
	// Indirect makes each request one indirect table, if the feature was negotiated.
	Indirect bool

	t    testing.TB
	d    *Driver
	size uint16

	descAddr, availAddr, usedAddr memory.GPA
	desc, avail, used             []byte
	eventIdx, indirect            bool // negotiated

	kick      *eventfd.EventFD
	interrupt *interrupt

	mu        sync.Mutex // guards what follows
	freeDescs []uint16
	requests  map[uint32]*Request // by head
	strays    []Used              // of heads that no Request has
	stray     *sync.Cond          // told of each
	availIdx  uint16
	usedIdx   uint16 // the next to collect

	stop      chan struct{} // nil while nobody collects
	collected sync.WaitGroup
}

// interrupt counts the used-buffer notifications.
type interrupt struct {
	*eventfd.EventFD
	n atomic.Uint64
}

func (i *interrupt) Signal() {
	i.n.Add(1)
	i.EventFD.Signal()
}

func newQueue(t testing.TB, d *Driver, size uint16) *Queue {
	q := &Queue{t: t, d: d, size: size}
	q.stray = sync.NewCond(&q.mu)
	// Pages of their own, whatever the size: the rings' alignment is §2.7's.
	q.descAddr, q.desc = d.Alloc(max(16*int(size), 4096))
	q.availAddr, q.avail = d.Alloc(max(4+2*int(size)+2, 4096))
	q.usedAddr, q.used = d.Alloc(max(4+8*int(size)+2, 4096))
	var err error
	q.kick, err = eventfd.New()
	require.NoError(t, err)
	e, err := eventfd.New()
	require.NoError(t, err)
	q.interrupt = &interrupt{EventFD: e}
	return q
}

func (q *Queue) close() {
	_ = q.kick.Close()
	_ = q.interrupt.Close()
}

// reset empties the queue and returns what the device is told of it.
func (q *Queue) reset(f virtio.Features) virtqueue.Config {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.desc)
	clear(q.avail)
	clear(q.used)
	q.eventIdx, q.indirect = f.Has(virtio.EventIdx), f.Has(virtio.IndirectDesc)
	q.freeDescs = q.freeDescs[:0]
	for i := range q.size {
		q.freeDescs = append(q.freeDescs, q.size-1-i)
	}
	q.requests = map[uint32]*Request{}
	q.strays = nil
	q.availIdx, q.usedIdx = 0, 0
	return virtqueue.Config{
		Memory: q.d.mem, Size: q.size, Desc: q.descAddr, Avail: q.availAddr, Used: q.usedAddr,
		EventIdx: q.eventIdx, Indirect: q.indirect, Kick: q.kick, Interrupt: q.interrupt,
	}
}

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

// Interrupts is how often the device has notified the driver.
func (q *Queue) Interrupts() uint64 { return q.interrupt.n.Load() }

// word is the aligned word at off of a ring.
func word(ring []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&ring[off&^3])) }

func loadHalf(ring []byte, off int) uint16 {
	return uint16(atomic.LoadUint32(word(ring, off)) >> (8 * (off & 2)))
}

func storeHalf(ring []byte, off int, v uint16) {
	for shift := 8 * (off & 2); ; {
		old := atomic.LoadUint32(word(ring, off))
		if atomic.CompareAndSwapUint32(word(ring, off), old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

// Request is a chain of the driver's.
type Request struct {
	q      *Queue
	head   uint16
	descs  []uint16 // those taken from the table
	pieces []piece
	keep   bool // the chain stays for another Submit
	done   chan uint32
	timer  *time.Timer
	data   []byte
}

// piece is a part of the chain.
type piece struct {
	addr  memory.GPA
	bytes []byte
	write bool
}

// Submit makes a chain of device-readable pieces with these contents, and device-writable ones of these sizes, available
// to the device, and kicks it if it has asked for that.
func (q *Queue) Submit(readable [][]byte, writable ...int) *Request {
	q.t.Helper()
	r := q.prepare(false, readable, writable)
	r.Submit()
	return r
}

// Prepare is [Queue.Submit] without making the chain available, which [Request.Submit] does as often as the test likes,
// without allocating memory.
func (q *Queue) Prepare(readable [][]byte, writable ...int) *Request {
	q.t.Helper()
	return q.prepare(true, readable, writable)
}

func (q *Queue) prepare(keep bool, readable [][]byte, writable []int) *Request {
	q.t.Helper()
	r := &Request{q: q, keep: keep, done: make(chan uint32, 1), timer: time.NewTimer(patience)}
	r.timer.Stop()
	for _, p := range readable {
		addr, b := q.d.Alloc(len(p))
		copy(b, p)
		r.pieces = append(r.pieces, piece{addr, b, false})
	}
	for _, n := range writable {
		addr, b := q.d.Alloc(n)
		clear(b)
		r.pieces = append(r.pieces, piece{addr, b, true})
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.Indirect && q.indirect {
		r.layIndirect()
	} else {
		r.lay()
	}
	return r
}

// lay writes the chain into the queue's table.
func (r *Request) lay() {
	q := r.q
	n := len(r.pieces)
	if n > len(q.freeDescs) {
		panic("virtiotest: no free descriptors: Wait for a request")
	}
	r.descs = append(r.descs, q.freeDescs[len(q.freeDescs)-n:]...)
	q.freeDescs = q.freeDescs[:len(q.freeDescs)-n]
	for i := range r.pieces {
		next := uint16(0)
		if i+1 < n {
			next = r.descs[i+1]
		}
		copy(q.desc[16*int(r.descs[i]):], r.desc(i, next).Bytes())
	}
	r.head = r.descs[0]
}

// layIndirect writes the chain into a table of its own.
func (r *Request) layIndirect() {
	q := r.q
	if len(q.freeDescs) == 0 {
		panic("virtiotest: no free descriptors: Wait for a request")
	}
	last := len(q.freeDescs) - 1
	r.head = q.freeDescs[last]
	q.freeDescs = q.freeDescs[:last]
	r.descs = []uint16{r.head}
	addr, table := q.d.Alloc(16 * len(r.pieces))
	for i := range r.pieces {
		copy(table[16*i:], r.desc(i, uint16(i+1)).Bytes())
	}
	copy(q.desc[16*int(r.head):], Desc{Addr: addr, Len: uint32(len(table)), Flags: Indirect}.Bytes())
	r.pieces = append(r.pieces, piece{addr: addr, bytes: table}) // to be released with the others
}

func (r *Request) desc(i int, next uint16) Desc {
	p := r.pieces[i]
	d := Desc{Addr: p.addr, Len: uint32(len(p.bytes))}
	if p.write {
		d.Flags |= Write
	}
	if i+1 < len(r.pieces) {
		d.Flags |= Next
		d.Next = next
	}
	return d
}

// Submit makes the chain available. The last Submit's Wait must have returned.
func (r *Request) Submit() {
	q := r.q
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requests[uint32(r.head)] = r
	q.offer(r.head)
}

// offer makes heads available and kicks if the device has asked for it; mu is held.
func (q *Queue) offer(heads ...uint16) {
	old := q.availIdx
	for _, h := range heads {
		binary.LittleEndian.PutUint16(q.avail[4+2*int(q.availIdx%q.size):], h)
		q.availIdx++
	}
	storeHalf(q.avail, 2, q.availIdx)
	if q.eventIdx {
		event := loadHalf(q.used, 4+8*int(q.size))
		if q.availIdx-event-1 >= q.availIdx-old {
			return
		}
	} else if loadHalf(q.used, 0)&1 != 0 {
		return
	}
	q.kick.Signal()
}

// collect starts taking what the device has used.
func (q *Queue) collect() {
	q.stop = make(chan struct{})
	stop := q.stop
	q.collected.Go(func() {
		for {
			q.take()
			select {
			case <-stop:
				return
			default:
			}
			if err := q.interrupt.Wait(); err != nil {
				panic(err)
			}
		}
	})
}

func (q *Queue) stopCollecting() {
	close(q.stop)
	q.interrupt.EventFD.Signal()
	q.collected.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stray.Broadcast()
}

// take takes all that there is, and asks to be notified of the next.
func (q *Queue) take() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for q.usedIdx != loadHalf(q.used, 2) {
			at := 4 + 8*int(q.usedIdx%q.size)
			u := Used{binary.LittleEndian.Uint32(q.used[at:]), binary.LittleEndian.Uint32(q.used[at+4:])}
			q.usedIdx++
			r := q.requests[u.ID]
			if r == nil {
				q.strays = append(q.strays, u)
				q.stray.Broadcast()
				continue
			}
			delete(q.requests, u.ID)
			r.finish(u.Len)
		}
		if q.eventIdx {
			storeHalf(q.avail, 4+2*int(q.size), q.usedIdx)
		}
		if q.usedIdx == loadHalf(q.used, 2) {
			return
		}
	}
}

// finish keeps what the device wrote and gives back what the chain took; q.mu is held.
func (r *Request) finish(n uint32) {
	r.data = r.data[:0]
	for _, p := range r.pieces {
		if p.write {
			r.data = append(r.data, p.bytes...)
		}
	}
	if !r.keep {
		for _, p := range r.pieces {
			r.q.d.release(p.addr, len(p.bytes))
		}
		r.q.freeDescs = append(r.q.freeDescs, r.descs...)
	}
	r.done <- n
}

// Wait waits until the device has used the chain, and returns the length that it tells.
func (r *Request) Wait() uint32 {
	r.q.t.Helper()
	r.timer.Reset(patience)
	defer r.timer.Stop()
	select {
	case n := <-r.done:
		return n
	case <-r.timer.C:
		panic("virtiotest: the device does not complete the request") // with all stacks, to see why
	}
}

// Done tells whether a Wait would return at once.
func (r *Request) Done() bool { return len(r.done) > 0 }

// Bytes is the content of the device-writable pieces, all of them to their full length, when the device had used the
// chain. It is valid after Wait, until the next Submit.
func (r *Request) Bytes() []byte { return r.data }

// SetDesc writes a descriptor into the queue's table.
func (q *Queue) SetDesc(i int, d Desc) {
	q.mu.Lock()
	defer q.mu.Unlock()
	copy(q.desc[16*i:], d.Bytes())
}

// Offer makes heads available, whatever they are; what comes back of them is for [Queue.WaitUsed].
func (q *Queue) Offer(heads ...uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.offer(heads...)
}

// SetAvailIdx writes any value to avail.idx.
func (q *Queue) SetAvailIdx(idx uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.availIdx = idx
	storeHalf(q.avail, 2, idx)
}

// AvailIdx is the driver's avail.idx.
func (q *Queue) AvailIdx() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.availIdx
}

// Kick kicks the device, asked or not.
func (q *Queue) Kick() { q.kick.Signal() }

// WaitUsed waits for the next chain that the device gives back and that no [Request] is for.
func (q *Queue) WaitUsed() Used {
	q.t.Helper()
	timer := time.AfterFunc(patience, func() { panic("virtiotest: the device does not give the chain back") })
	defer timer.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.strays) == 0 {
		q.stray.Wait()
	}
	u := q.strays[0]
	q.strays = q.strays[1:]
	return u
}
