package qcow2

import (
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// table is an L2 table or a refcount block in memory: one cluster, in the file's byte order.
type table struct {
	off   int64    // in the file
	index int      // of the entry that leads to it, in the L1 or the refcount table
	words []uint64 // L2 entries are read and written atomically; refcounts are under the image's mu
	used  atomic.Bool

	// What differs from the file, in bytes: [from, to). Guarded by the image's mu.
	from, to int
}

func newTable(off int64, index int, size int64) *table {
	return &table{off: off, index: index, words: make([]uint64, size/8)}
}

func (t *table) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(t.words))), len(t.words)*8)
}

// entry is the L2 entry i. Any goroutine may call it.
func (t *table) entry(i uint64) uint64 { return bigEndian(atomic.LoadUint64(&t.words[i])) }

// setEntry changes the L2 entry i; the image's mu is held.
func (t *table) setEntry(i, value uint64) {
	atomic.StoreUint64(&t.words[i], bigEndian(value))
	t.touch(int(i)*8, 8)
}

// touch notes that n bytes have changed.
func (t *table) touch(at, n int) {
	if !t.dirty() {
		t.from, t.to = at, at+n
		return
	}
	t.from, t.to = min(t.from, at), max(t.to, at+n)
}

func (t *table) dirty() bool { return t.to > t.from }

// refcount is that of the i-th cluster of a refcount block (qcow2 specification, "Refcounts").
func (t *table) refcount(i uint64, order uint32) uint64 {
	p := t.bytes()
	switch order {
	case 0, 1, 2:
		width := uint64(1) << order
		return uint64(p[i*width/8]) >> (i * width % 8) & (1<<width - 1)
	case 3:
		return uint64(p[i])
	case 4:
		return uint64(p[2*i])<<8 | uint64(p[2*i+1])
	case 5:
		w := t.words[i/2]
		return bigEndian(w) >> (32 * (1 - i%2)) & 0xffff_ffff
	}
	return bigEndian(t.words[i])
}

func (t *table) setRefcount(i uint64, order uint32, value uint64) {
	p := t.bytes()
	switch order {
	case 0, 1, 2:
		width := uint64(1) << order
		at, shift := i*width/8, i*width%8
		mask := byte(1<<width-1) << shift
		p[at] = p[at]&^mask | byte(value)<<shift
		t.touch(int(at), 1)
	case 3:
		p[i] = byte(value)
		t.touch(int(i), 1)
	case 4:
		p[2*i], p[2*i+1] = byte(value>>8), byte(value)
		t.touch(int(2*i), 2)
	case 5:
		shift := 32 * (1 - i%2)
		w := bigEndian(t.words[i/2])
		t.words[i/2] = bigEndian(w&^(0xffff_ffff<<shift) | value<<shift)
		t.touch(int(4*i), 4)
	default:
		t.words[i] = bigEndian(value)
		t.touch(int(8*i), 8)
	}
}

// bigEndian turns the file's order into the processor's, and back: this package is for little-endian processors.
func bigEndian(w uint64) uint64 { return bits.ReverseBytes64(w) }
