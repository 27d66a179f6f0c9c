package net

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
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
	plain   bool // the driver knows no offload: what a back end has to say of one is not for it
	longest int  // bytes of a frame

	chains []virtqueue.Chain // a ring; those in use are from first on
	first  int
	count  int
	sizes  []int // of the chains
	room   int   // their sum
	iov    []unix.Iovec
	beyond [1]byte // takes what doesn't fit the driver's buffers, which tells that there was such
	meager bool    // the driver has fewer buffers than the longest frame needs, and does not add to them
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
		n, room, err := r.receive()
		switch {
		case err == nil:
			r.deliver(q, n, room)
		case errors.Is(err, unix.EAGAIN):
			q.Notify()
			waitFor(q, r.port.FD(), unix.POLLIN, forever)
		case errors.Is(err, unix.EINVAL):
			r.d.counters.unusable.Add(1)
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
	for range q.Size() { // then the caller looks at whether it shall end
		if r.ready() {
			return nil
		}
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

// receive reads a frame into the buffers at hand. It returns the frame's length and what there was room for, which is less
// if the frame was cut.
func (r *receiver) receive() (n, room int, err error) {
	chains := r.count
	if !r.merge {
		chains = 1
	}
	r.iov = r.iov[:0]
	for k := range chains {
		i := (r.first + k) % len(r.chains)
		if len(r.iov)+len(r.chains[i].Writable) >= maxIovecs { // a driver with such small buffers gets no long frames
			break
		}
		r.iov = r.chains[i].Writable.AppendIovecs(r.iov)
		room += r.sizes[i]
	}
	r.iov = append(r.iov, unix.Iovec{Base: &r.beyond[0], Len: 1})
	if r.d.cfg.Backend.Header() {
		n, err = r.port.Receive(r.iov)
		return n, room, err
	}
	n, err = r.port.Receive(iovec.Advance(r.iov, HeaderSize))
	return HeaderSize + n, room, err
}

// deliver gives the guest the n bytes that were received, in as many chains as they fill, all at once. A frame that it is
// not to see leaves the buffers for the next one.
func (r *receiver) deliver(q *virtqueue.Queue, n, room int) {
	switch {
	case n > room:
		r.d.counters.tooLong.Add(1)
		return
	case n < HeaderSize+ethernetHeader:
		r.d.counters.unusable.Add(1)
		return
	case !r.d.up.Load():
		return
	}
	chains := 0
	for left := n; left > 0; chains++ {
		left -= r.sizes[(r.first+chains)%len(r.chains)]
	}
	var header [HeaderSize]byte
	binary.LittleEndian.PutUint16(header[offNumBuffers:], uint16(chains))
	if r.plain { // §5.1.6.4.1: then flags and gso_type are zero, whatever the back end says
		r.put(0, header[:])
	} else {
		r.put(offNumBuffers, header[offNumBuffers:])
	}
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

// put writes b to the header at off, in whatever pieces of the first chain that is.
func (r *receiver) put(off int, b []byte) {
	for _, p := range r.chains[r.first].Writable {
		if off < len(p) {
			b = b[copy(p[off:], b):]
			off = 0
		} else {
			off -= len(p)
		}
		if len(b) == 0 {
			return
		}
	}
}
