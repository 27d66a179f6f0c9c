// Package virtqueue is the device's side of a split virtqueue (Virtual I/O Device 1.2 §2.7).
//
// The parts of a queue, in guest memory:
//
//	descriptor table  16 bytes each: 0 address (8), 8 length (4), 12 flags (2), 14 next (2); read here
//	avail ring        0 flags (2), 2 idx (2), 4 ring (2 each), then used_event (2); read here
//	used ring         0 flags (2), 2 idx (2), 4 ring (8 each: id, length), then avail_event (2); written here
//
// A device's loop:
//
//	for ctx.Err() == nil {
//		ok, err := q.Pop(&chain)
//		switch {
//		case err != nil:
//			return err // the ring is broken
//		case ok:
//			q.Push(&chain, handle(&chain))
//		default: // all that there was is done
//			q.Sleep()
//		}
//	}
//
// which is what [Queue.Serve] does for devices that need no more.
//
// # What a hostile guest can do
//
// A descriptor is read once into a local before it is checked, since the guest can change it between two reads. A chain
// that is malformed (a loop, memory that is not there, an empty buffer, a device-readable buffer after a device-writable
// one, a bad indirect table) goes back to the driver at once with a length of zero, and is counted; the device does not
// see it. Rings that make no sense (an index that has run away, a head that is no descriptor) are an [*Error], after
// which the queue is of no use. A chain has at most as many buffers as the queue has entries (§2.7.5.3.1), so that
// nothing grows with what the guest writes.
package virtqueue

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"vmm/internal/eventfd"
	"vmm/internal/timeslice"
	"vmm/memory"
)

// MaxSize is the greatest number of entries in a split queue (§2.7).
const MaxSize = 32768

// Flags of a descriptor (§2.7.5), the avail ring (§2.7.6) and the used ring (§2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1

	descSize = 16
)

// Interrupt delivers the device's used-buffer notifications to the driver. *eventfd.EventFD is one.
type Interrupt interface {
	// Signal notifies the driver. Any goroutine may call it.
	Signal()
	// FD is an eventfd with the same effect, for a device half that lives in the host's kernel.
	FD() int
}

// Config is a queue as the driver has set it up.
type Config struct {
	Memory *memory.Memory
	Size   uint16     // entries, a power of two
	Desc   memory.GPA // the descriptor table: "descriptor area"
	Avail  memory.GPA // the avail ring: "driver area"
	Used   memory.GPA // the used ring: "device area"

	EventIdx bool // VIRTIO_F_EVENT_IDX was negotiated
	Indirect bool // VIRTIO_F_INDIRECT_DESC was negotiated

	Kick      *eventfd.EventFD // signalled when the driver has made buffers available
	Interrupt Interrupt
}

// Error says that a queue cannot be used (any longer): the driver set it up wrongly or broke its rings.
type Error struct{ What string }

func (e *Error) Error() string { return "virtqueue: " + e.What }

func errorf(format string, args ...any) error { return &Error{What: fmt.Sprintf(format, args...)} }

// Queue is the device's side of one queue. It belongs to one goroutine at a time, but for [Queue.Wake] and
// [Queue.Malformed].
type Queue struct {
	cfg Config

	desc  []byte // the table
	avail []byte // the whole ring
	used  []byte // the whole ring

	// Go has no 16-bit atomics. The indices that both sides use are read and written with the aligned 32-bit word that
	// holds them.
	availIdx   half    // avail.idx
	usedEvent  half    // used_event
	availFlags half    // avail.flags
	usedHead   *uint32 // used.flags and used.idx, which are both ours
	availEvent *uint32 // avail_event and two bytes that are not ours

	nextAvail  uint16 // of the next chain to pop
	availSeen  uint16 // avail.idx when last read
	nextUsed   uint16 // of the next element to add
	published  uint16 // used.idx as the driver sees it
	signalled  uint16 // used.idx when the driver was last notified, or did not want to be
	usedFlags  uint16
	eventShown uint16 // avail_event as the driver sees it

	slice     timeslice.Slice // of the queue's thread
	malformed atomic.Uint64
}

// half is a 16-bit value and the aligned 32-bit word that it is in.
type half struct {
	word  *uint32
	shift uint8
}

func (h half) load() uint16 { return uint16(atomic.LoadUint32(h.word) >> h.shift) }

// New returns the queue that cfg describes, with nothing taken from it yet. It fails with an [*Error] where the driver's
// values make no queue: the device then needs a reset.
func New(cfg Config) (*Queue, error) {
	if cfg.Size == 0 || cfg.Size > MaxSize || cfg.Size&(cfg.Size-1) != 0 {
		return nil, errorf("size %d: not a power of two up to %d", cfg.Size, MaxSize)
	}
	q := &Queue{cfg: cfg}
	n := uint64(cfg.Size)
	event := uint64(0) // bytes of used_event and avail_event
	if cfg.EventIdx {
		event = 2
	}
	for _, part := range []struct {
		name  string
		dst   *[]byte
		addr  memory.GPA
		size  uint64
		align memory.GPA // §2.7
	}{
		{"descriptor table", &q.desc, cfg.Desc, descSize * n, 16},
		{"avail ring", &q.avail, cfg.Avail, 4 + 2*n + event, 2},
		{"used ring", &q.used, cfg.Used, 4 + 8*n + event, 4},
	} {
		if part.addr%part.align != 0 {
			return nil, errorf("%s at %#x: not a multiple of %d", part.name, uint64(part.addr), part.align)
		}
		// The 32-bit words that hold the ring's first and last half-words have to be RAM too, as they are in any region
		// that is made of pages.
		first := part.addr &^ 3
		last := (part.addr + memory.GPA(part.size) + 3) &^ 3
		whole, err := cfg.Memory.Slice(first, uint64(last-first))
		if err != nil {
			return nil, errorf("%s: %v", part.name, err)
		}
		*part.dst = whole[part.addr-first:][:part.size]
	}
	q.availFlags = halfAt(q.avail, 0)
	q.availIdx = halfAt(q.avail, 2)
	q.usedHead = wordAt(q.used, 0)
	if cfg.EventIdx {
		q.usedEvent = halfAt(q.avail, 4+2*n)
		q.availEvent = wordAt(q.used, 4+8*n)
		q.eventShown = uint16(atomic.LoadUint32(q.availEvent))
	}
	return q, nil
}

// wordAt returns the word at off, which is aligned.
func wordAt(p []byte, off uint64) *uint32 {
	return (*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(p)), off))
}

// halfAt returns the half-word at off, which is aligned; x86 is little-endian, as virtio is.
func halfAt(p []byte, off uint64) half {
	at := unsafe.Add(unsafe.Pointer(unsafe.SliceData(p)), off)
	odd := uintptr(at) & 2
	return half{word: (*uint32)(unsafe.Add(at, -int(odd))), shift: uint8(8 * odd)}
}

// Config returns what the queue was made from, for a device half in the host's kernel.
func (q *Queue) Config() Config { return q.cfg }

// Size returns the number of entries.
func (q *Queue) Size() uint16 { return q.cfg.Size }

// Malformed returns how many chains were so broken that the device did not see them.
func (q *Queue) Malformed() uint64 { return q.malformed.Load() }

// Pop takes the next chain that the driver has made available, and reports whether there was one. The chain is in use
// until [Queue.Push] or [Queue.Add] gives it back; several may be, and they may go back in any order. An error is an
// [*Error]. Malformed chains are given back and skipped; after a queue full of them Pop reports none, so that its caller
// gets to look at whether it shall end.
func (q *Queue) Pop(c *Chain) (bool, error) {
	for range q.cfg.Size {
		if q.nextAvail == q.availSeen {
			more, err := q.look()
			if !more || err != nil {
				return false, err
			}
		}
		slot := 4 + 2*int(q.nextAvail&(q.cfg.Size-1))
		head := binary.LittleEndian.Uint16(q.avail[slot:])
		if head >= q.cfg.Size {
			return false, errorf("head %d in avail ring: the queue has %d descriptors", head, q.cfg.Size)
		}
		q.nextAvail++
		if q.parse(c, head) {
			return true, nil
		}
		q.malformed.Add(1)
		q.Push(c, 0)
	}
	return false, nil
}

// look reads avail.idx and reports whether there is more than what was popped. The load is ordered before those of the
// ring and the descriptors: what the driver wrote before it moved the index is seen after it (§2.7.13.3).
func (q *Queue) look() (bool, error) {
	q.availSeen = q.availIdx.load()
	if n := q.availSeen - q.nextAvail; n > q.cfg.Size {
		return false, errorf("avail.idx is %d, %d ahead in a queue of %d", q.availSeen, n, q.cfg.Size)
	}
	return q.availSeen != q.nextAvail, nil
}

// Push gives a chain back, with written bytes of its device-writable buffers filled from their start on, and makes that
// visible. It does not notify; [Queue.Notify] does, for as many chains as there are.
func (q *Queue) Push(c *Chain, written uint32) {
	q.Add(c, written)
	q.Publish()
}

// Add gives a chain back as Push does, but the driver sees it only after [Queue.Publish], with all that were added
// before: for a packet that takes several chains.
func (q *Queue) Add(c *Chain, written uint32) {
	slot := 4 + 8*int(q.nextUsed&(q.cfg.Size-1))
	binary.LittleEndian.PutUint64(q.used[slot:], uint64(c.head)|uint64(written)<<32)
	q.nextUsed++
}

// Publish makes visible what was added. The store of used.idx is ordered after those of the elements and of the buffers
// (§2.7.8.2).
func (q *Queue) Publish() {
	q.published = q.nextUsed
	q.storeUsedHead()
}

func (q *Queue) storeUsedHead() {
	atomic.StoreUint32(q.usedHead, uint32(q.usedFlags)|uint32(q.published)<<16)
}

// Notify tells the driver about what was published since the last Notify, if there is anything and the driver wants to
// know (§2.7.7.2). The atomic store of used.idx before it is a full fence: a driver that asks for a notification at the
// same time either sees the index or is seen here.
func (q *Queue) Notify() {
	old := q.signalled
	if q.published == old {
		return
	}
	q.signalled = q.published
	if q.cfg.EventIdx {
		if q.published-q.usedEvent.load()-1 >= q.published-old {
			return
		}
	} else if q.availFlags.load()&availNoInterrupt != 0 {
		return
	}
	q.cfg.Interrupt.Signal()
}

// EnableKicks asks the driver to kick when it makes the next chain available. It reports whether there is one already:
// then the driver may not kick for it, and the caller has to go on instead of waiting.
func (q *Queue) EnableKicks() (more bool) {
	if q.cfg.EventIdx {
		// One locked addition stores the 16 bits, leaves the two bytes beside them alone, and is the fence between
		// this store and the load of avail.idx below (§2.7.10.1): the sum of the word and (next - shown) has no carry
		// into its upper half.
		atomic.AddUint32(q.availEvent, uint32(q.nextAvail)-uint32(q.eventShown))
		q.eventShown = q.nextAvail
	} else if q.usedFlags != 0 {
		q.usedFlags = 0
		q.storeUsedHead()
	}
	return q.availIdx.load() != q.nextAvail
}

// DisableKicks tells the driver not to kick, while the caller looks at the queue by itself. It is a hint: the driver may
// kick all the same.
func (q *Queue) DisableKicks() {
	// With VIRTIO_F_EVENT_IDX the index that was shown last is behind, which has the same effect.
	if !q.cfg.EventIdx && q.usedFlags == 0 {
		q.usedFlags = usedNoNotify
		q.storeUsedHead()
	}
}

// Wait blocks its thread until the driver kicks or somebody calls [Queue.Wake].
func (q *Queue) Wait() error {
	q.BeforeWait()
	return q.cfg.Kick.Wait()
}

// BeforeWait is called before a system call that waits for something else along with the kick.
func (q *Queue) BeforeWait() { q.slice.Renew() }

// Wake makes one Wait return, at once or the next one. Any goroutine may call it.
func (q *Queue) Wake() { q.cfg.Kick.Signal() }

// WakeWhenDone wakes the queue when ctx ends. The caller must call stop, after which the queue is left alone.
func (q *Queue) WakeWhenDone(ctx context.Context) (stop func()) {
	woken := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(woken)
		q.Wake()
	})
	return func() {
		if !cancel() {
			<-woken
		}
	}
}

// Sleep is for a caller that has found no chain: it notifies the driver of what was published, asks for kicks, and waits
// for one, or for a [Queue.Wake], unless there is a chain by now.
func (q *Queue) Sleep() error {
	q.Notify()
	if q.EnableKicks() {
		return nil
	}
	err := q.Wait()
	q.DisableKicks()
	return err
}

// Serve hands each chain to handle, which returns the number of bytes that it wrote, and gives it back. It returns nil
// when ctx has ended and the queue is woken, and an [*Error] when the ring is broken. Handle must not block.
func (q *Queue) Serve(ctx context.Context, handle func(c *Chain) (written uint32)) error {
	var c Chain
	for ctx.Err() == nil {
		ok, err := q.Pop(&c)
		switch {
		case err != nil:
			return err
		case ok:
			q.Push(&c, handle(&c))
		default:
			if err := q.Sleep(); err != nil {
				return err
			}
		}
	}
	return nil
}
