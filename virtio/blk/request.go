package blk

import (
	"encoding/binary"
	"errors"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/virtio/virtqueue"
)

// Types of requests (§5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Statuses.
const (
	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const (
	headerSize  = 16
	segmentSize = 16 // of DISCARD and WRITE_ZEROES: sector (8), number of sectors (4), flags (4)
	flagUnmap   = 1
)

// segment is a range to discard or to make zero, in bytes.
type segment struct {
	off, n int64
	unmap  bool
}

// request is a slot for one request in flight. It keeps its space from one to the next.
type request struct {
	slot   uint64
	chain  virtqueue.Chain
	length uint32 // of the device-writable part, status included
	status []byte // one byte of guest memory

	kind     uint32
	off      int64 // in bytes
	size     int64 // of a read or a write, in bytes
	at       int64 // off in the file that the ring reads and writes
	iov      []unix.Iovec
	left     []unix.Iovec // of iov: what the ring has still to do
	done     int          // bytes that it has done
	segments [maxSegments]segment
	count    int // of segments

	result uint8
}

// parse reads the request out of its chain, and sets what is left to do. It returns false where there is nothing to do:
// the result is set, but for a request without room for a status.
func (r *request) parse(d *Device) (todo bool) {
	w := r.chain.Writable
	r.length, r.status = uint32(w.Len()), nil
	if len(w) > 0 {
		last := &w[len(w)-1]
		n := len(*last) - 1
		r.status = (*last)[n:]
		if *last = (*last)[:n]; n == 0 {
			w = w[:len(w)-1]
		}
	}
	r.chain.Writable = w
	r.result = statusIOErr
	var header [headerSize]byte
	if r.status == nil {
		return false
	}
	if n, _ := r.chain.Readable.Read(header[:]); n < headerSize {
		return false
	}
	r.kind = binary.LittleEndian.Uint32(header[:])
	sector := binary.LittleEndian.Uint64(header[8:])
	c := &d.counters
	switch r.kind {
	case typeIn:
		c.reads.Add(1)
		return r.transfer(d, sector, r.chain.Writable)
	case typeOut:
		c.writes.Add(1)
		return !d.cfg.ReadOnly && r.transfer(d, sector, r.chain.Readable)
	case typeFlush:
		c.flushes.Add(1)
		return true
	case typeGetID:
		c.ids.Add(1)
		if _, err := r.chain.Writable.Write(d.serial[:]); err == nil || errors.Is(err, io.ErrShortWrite) {
			r.result = statusOK
		}
		return false
	case typeDiscard, typeWriteZeroes:
		return r.ranges(d)
	}
	r.result = statusUnsupp
	return false
}

// transfer prepares a read or a write.
func (r *request) transfer(d *Device, sector uint64, data virtqueue.Buffers) bool {
	n := uint64(data.Len())
	if n%SectorSize != 0 || !d.inside(sector, n/SectorSize) {
		return false
	}
	r.off, r.size = int64(sector*SectorSize), int64(n)
	r.iov = data.AppendIovecs(r.iov[:0])
	r.left, r.done = r.iov, 0
	if n == 0 {
		r.result = statusOK
	}
	return n != 0
}

// inside tells whether the sectors are the disk's. The disk's size is below 2^63 bytes.
func (d *Device) inside(sector, n uint64) bool {
	capacity := d.capacity.Load()
	return sector <= capacity && n <= capacity-sector
}

// ranges prepares a DISCARD or WRITE_ZEROES (§5.2.6.2).
func (r *request) ranges(d *Device) bool {
	most := uint64(maxDiscardSectors)
	if r.kind == typeDiscard {
		d.counters.discards.Add(1)
		if d.discard == nil {
			r.result = statusUnsupp
			return false
		}
	} else {
		d.counters.zeroes.Add(1)
		if most = maxZeroSectors; d.zeroes == nil {
			r.result = statusUnsupp
			return false
		}
	}
	size := r.chain.Readable.Len()
	if size == 0 || size%segmentSize != 0 || size/segmentSize > maxSegments {
		return false
	}
	r.count = size / segmentSize
	for i := range r.count {
		var b [segmentSize]byte
		if _, err := io.ReadFull(&r.chain.Readable, b[:]); err != nil {
			return false
		}
		sector, n := binary.LittleEndian.Uint64(b[:]), uint64(binary.LittleEndian.Uint32(b[8:]))
		flags := binary.LittleEndian.Uint32(b[12:])
		if flags&^flagUnmap != 0 || r.kind == typeDiscard && flags != 0 {
			r.result = statusUnsupp // as §5.2.6.2 wants it
			return false
		}
		if n > most || !d.inside(sector, n) {
			return false
		}
		r.segments[i] = segment{
			off: int64(sector * SectorSize), n: int64(n * SectorSize), unmap: flags&flagUnmap != 0 && d.cfg.Discard,
		}
	}
	return true
}

// execute does the request, or what the ring has left of it. A worker calls it.
func (r *request) execute(d *Device) {
	if err := r.perform(d); err == nil {
		r.result = statusOK
	} else if errors.Is(err, errors.ErrUnsupported) {
		r.result = statusUnsupp
	}
}

func (r *request) perform(d *Device) error {
	switch r.kind {
	case typeFlush:
		return d.cfg.Backend.Sync()
	case typeIn, typeOut:
		return r.move(d.cfg.Backend)
	}
	for _, s := range r.segments[:r.count] {
		var err error
		if r.kind == typeDiscard {
			err = d.discard.Discard(s.off, s.n)
		} else {
			err = d.zeroes.WriteZeroes(s.off, s.n, s.unmap)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// move reads or writes by the back end's methods.
func (r *request) move(b Backend) error {
	off := r.off + int64(r.done)
	if v, ok := b.(VectorBackend); ok {
		var err error
		if r.kind == typeIn {
			_, err = v.ReadVector(r.left, off)
		} else {
			_, err = v.WriteVector(r.left, off)
		}
		return err
	}
	for _, v := range r.left {
		p := unsafe.Slice(v.Base, v.Len)
		var n int
		var err error
		if r.kind == typeIn {
			n, err = b.ReadAt(p, off)
		} else {
			n, err = b.WriteAt(p, off)
		}
		if n < len(p) {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		off += int64(n)
	}
	return nil
}
