package virtiotest

import (
	"testing"

	"vmm/memory"
	"vmm/virtio"
)

// Fuzz is a whole fuzz target: it takes the fuzzer's bytes for a program that a guest may run against the device that
// newDevice makes. The device must not panic, and must stop when told.
//
// The program builds chains that are well-formed, with any content, and rings that are not; it reads and writes the
// configuration space, and resets the device.
func Fuzz(f *testing.F, newDevice func(t testing.TB) virtio.Device) {
	f.Helper()
	f.Add([]byte{})
	f.Add([]byte{opChain, 0, 0x12, 8, 0, 0, 0, 0, 0, 0, 0, 0, opKick, 0})
	f.Add([]byte{opChain, 1, 0x21, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, opReset, opConfigRead, 0, 8, opConfigWrite, 0, 1, 1})
	f.Add([]byte{opDesc, 0, 0, 0, 0, 1, 0, 2, 1, opDesc, 0, 1, 0, 0, 1, 0, 3, 0, opOffer, 0, 0, opAvailIdx, 0, 7, opKick, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		d := New(t, newDevice(t), Options{QueueSize: 16, Memory: 2 << 20})
		d.Start()
		r := &run{d: d, program: program}
		r.scratch, r.scratchBytes = d.Alloc(256 << 10)
		for len(r.program) > 0 {
			r.step()
		}
		for _, q := range d.queues {
			q.Kick()
		}
		_ = d.Stop() // an error is right for a ring that is broken
	})
}

// What a program's first byte says.
const (
	opChain = iota
	opDesc
	opOffer
	opAvailIdx
	opKick
	opConfigRead
	opConfigWrite
	opReset
	opBytes
	numOps
)

type run struct {
	d            *Driver
	program      []byte
	scratch      memory.GPA
	scratchBytes []byte
	used         int // of the scratch memory, cyclic
}

func (r *run) byte() byte {
	if len(r.program) == 0 {
		return 0
	}
	b := r.program[0]
	r.program = r.program[1:]
	return b
}

func (r *run) uint16() uint16 { return uint16(r.byte()) | uint16(r.byte())<<8 }

func (r *run) bytes(n int) []byte {
	n = min(n, len(r.program))
	b := r.program[:n]
	r.program = r.program[n:]
	return b
}

func (r *run) queue() *Queue { return r.d.queues[int(r.byte())%len(r.d.queues)] }

// take returns n bytes of scratch memory.
func (r *run) take(n int) (memory.GPA, []byte) {
	if r.used+n > len(r.scratchBytes) {
		r.used = 0
	}
	at := r.used
	r.used += (n + 15) &^ 15
	return r.scratch + memory.GPA(at), r.scratchBytes[at : at+n]
}

func (r *run) step() {
	switch r.byte() % numOps {
	case opChain:
		r.chain(r.queue())
	case opDesc:
		q := r.queue()
		// An address near the scratch memory, or, with the top bit of the selector, far from it.
		i, addr := int(r.byte())%q.Size(), r.scratch+memory.GPA(r.uint16())
		sel := r.byte()
		if sel&0x80 != 0 {
			addr <<= sel & 0x3f
		}
		q.SetDesc(i, Desc{Addr: addr, Len: uint32(r.byte()) << (sel & 0x1f), Flags: uint16(r.byte()), Next: uint16(r.byte())})
	case opOffer:
		r.queue().Offer(uint16(r.byte()))
	case opAvailIdx:
		q := r.queue()
		q.SetAvailIdx(q.AvailIdx() + uint16(int8(r.byte())))
	case opKick:
		r.queue().Kick()
	case opConfigRead:
		off, n := uint32(r.uint16()), int(r.byte()%16)
		r.d.Config(off, n)
	case opConfigWrite:
		off, n := uint32(r.uint16()), int(r.byte()%16)
		r.d.WriteConfig(off, r.bytes(n))
	case opReset:
		_ = r.d.Stop()
		r.d.Start()
	case opBytes:
		at := int(r.uint16()) % (len(r.scratchBytes) - 256)
		copy(r.scratchBytes[at:], r.bytes(int(r.byte())))
	}
}

// chain offers a well-formed chain: a byte of how many pieces, then for each readable one a length and its content, and
// for each writable one a length.
func (r *run) chain(q *Queue) {
	shape := r.byte()
	var descs []Desc
	for range shape >> 4 & 3 {
		content := r.bytes(int(r.byte()))
		addr, b := r.take(max(len(content), 1))
		copy(b, content)
		descs = append(descs, Desc{Addr: addr, Len: uint32(len(b))})
	}
	for range shape & 3 {
		n := max(int(r.byte())<<(shape>>6), 1)
		addr, _ := r.take(n)
		descs = append(descs, Desc{Addr: addr, Len: uint32(n), Flags: Write})
	}
	first := int(shape>>2&3) * 4
	for i := range descs {
		if i+1 < len(descs) {
			descs[i].Flags |= Next
			descs[i].Next = uint16(first+i+1) % q.size
		}
		q.SetDesc((first+i)%q.Size(), descs[i])
	}
	if len(descs) > 0 {
		q.Offer(uint16(first % q.Size()))
	}
}
