package net

import (
	"context"
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/virtio/virtqueue"
)

// offNumBuffers is where the header tells how many chains a frame is in.
const offNumBuffers = 10

// receiver gives frames to the guest. It keeps buffers of the guest's at hand, as many as the longest frame may need, so
// that one system call puts a frame where it belongs.
type receiver struct {
	d       *Device
	port    Port
	pair    int
	merge   bool // VIRTIO_NET_F_MRG_RXBUF
	longest int  // bytes of a frame

	chains []virtqueue.Chain // a ring; those in use are from first on
	first  int
	count  int
	sizes  []int // of the chains
	room   int   // their sum
	iov    []unix.Iovec
	meager bool // the driver has fewer buffers than the longest frame needs, and does not add to them
}

// maxIovecs is what one system call takes (IOV_MAX).
const maxIovecs = 1024

// refill is how long a driver may take to give used buffers back before it counts as one that has no more, in
// milliseconds. A frame that is too long for what there is would be lost.
const refill = 20

func (r *receiver) serve(ctx context.Context, q *virtqueue.Queue) error {
	r.chains = make([]virtqueue.Chain, q.Size())
	r.sizes = make([]int, q.Size())
	for ctx.Err() == nil {
		if err := r.stock(q); err != nil {
			return err
		}
		switch {
		case r.d.dead.Load() || r.pair >= int(r.d.active.Load()):
			q.Notify()
			if err := q.Wait(); err != nil {
				return err
			}
			continue
		case r.ready():
			r.meager = false
			q.DisableKicks()
		default:
			q.Notify()
			if q.EnableKicks() {
				continue
			}
			if r.count == 0 {
				waitFor(q, -1, 0, forever)
				continue
			}
			if !r.meager {
				r.meager = !waitFor(q, -1, 0, refill)
				continue
			}
		}
		n, err := r.receive()
		switch {
		case err == nil:
			r.deliver(q, n)
		case errors.Is(err, unix.EAGAIN):
			q.Notify()
			waitFor(q, r.port.FD(), unix.POLLIN, forever)
		case errors.Is(err, unix.EINTR):
		default:
			r.d.lose()
		}
	}
	return nil
}

// ready tells whether there are enough buffers for any frame.
func (r *receiver) ready() bool {
	if !r.merge {
		return r.count > 0
	}
	return r.room >= r.longest || r.count == len(r.chains)
}

// stock takes buffers of the guest's until there are enough.
func (r *receiver) stock(q *virtqueue.Queue) error {
	for !r.ready() {
		i := (r.first + r.count) % len(r.chains)
		ok, err := q.Pop(&r.chains[i])
		if !ok || err != nil {
			return err
		}
		size := r.chains[i].Writable.Len()
		if size < HeaderSize {
			r.d.counters.malformed.Add(1)
			q.Push(&r.chains[i], 0)
			continue
		}
		r.sizes[i] = size
		r.room += size
		r.count++
	}
	return nil
}

// receive reads a frame into the buffers at hand, behind a header of zeroes where the back end has none.
func (r *receiver) receive() (int, error) {
	r.iov = r.iov[:0]
	chains := r.count
	if !r.merge {
		chains = 1
	}
	for k := range chains {
		r.iov = r.chains[(r.first+k)%len(r.chains)].Writable.AppendIovecs(r.iov)
	}
	iov := r.iov[:min(len(r.iov), maxIovecs)]
	if r.d.cfg.Backend.Header() {
		return r.port.Receive(iov)
	}
	var zeroes [HeaderSize]byte
	skip := fill(iov, zeroes[:])
	n, err := r.port.Receive(skip)
	return HeaderSize + n, err
}

// fill copies p to the front of iov and returns what is behind it; iov is changed.
func fill(iov []unix.Iovec, p []byte) []unix.Iovec {
	for len(p) > 0 && len(iov) > 0 {
		v := &iov[0]
		n := copy(unsafe.Slice(v.Base, v.Len), p)
		p = p[n:]
		if uint64(n) == v.Len {
			iov = iov[1:]
			continue
		}
		v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
		v.Len -= uint64(n)
	}
	return iov
}

// deliver gives the guest the n bytes that were received, in as many chains as they fill, all at once.
func (r *receiver) deliver(q *virtqueue.Queue, n int) {
	room := r.room
	if !r.merge {
		room = r.sizes[r.first]
	}
	if n > room || !r.d.wired.Load() {
		// The kernel tells the length of a frame that it had to cut. The buffers serve for the next one.
		if n > room {
			r.d.counters.tooLong.Add(1)
		}
		return
	}
	chains := 0
	for left := n; left > 0; chains++ {
		left -= r.sizes[(r.first+chains)%len(r.chains)]
	}
	r.setNumBuffers(uint16(chains))
	for left := n; left > 0; {
		size := min(left, r.sizes[r.first])
		q.Add(&r.chains[r.first], uint32(size))
		left -= size
		r.room -= r.sizes[r.first]
		r.first = (r.first + 1) % len(r.chains)
		r.count--
	}
	r.d.counters.received.Add(1)
	q.Publish()
	q.Notify()
}

// setNumBuffers writes the header's field, which may be in any piece of the first chain.
func (r *receiver) setNumBuffers(n uint16) {
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], n)
	at := 0
	for _, p := range r.chains[r.first].Writable {
		for i := range b {
			if off := offNumBuffers + i - at; off >= 0 && off < len(p) {
				p[off] = b[i]
			}
		}
		if at += len(p); at >= HeaderSize {
			return
		}
	}
}
