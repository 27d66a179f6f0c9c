package virtqueue

import (
	"encoding/binary"
	"math"

	"vmm/memory"
)

// Chain is a descriptor chain: one request of the driver's. A Chain can be used again and again, and keeps its space:
// [Queue.Pop] allocates only until the chain has met its longest request.
type Chain struct {
	Readable Buffers // what the driver wrote for the device
	Writable Buffers // what the device shall fill

	head uint16
	all  [][]byte // the space of both
}

// Head is the index of the chain's first descriptor, less than the queue's size: it tells apart the chains that are in
// use.
func (c *Chain) Head() uint16 { return c.head }

// descriptor is one entry of a table, read once.
type descriptor struct {
	addr  memory.GPA
	len   uint32
	flags uint16
	next  uint16
}

func readDescriptor(table []byte, i uint32) descriptor {
	d := table[descSize*i:][:descSize]
	addr := binary.LittleEndian.Uint64(d)
	rest := binary.LittleEndian.Uint64(d[8:])
	return descriptor{
		addr: memory.GPA(addr), len: uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48),
	}
}

// parse follows the chain at head and reports whether it is well-formed.
func (q *Queue) parse(c *Chain, head uint16) bool {
	c.head = head
	c.all = c.all[:0]
	c.Readable, c.Writable = nil, nil
	var (
		table    = q.desc
		entries  = uint32(q.cfg.Size) // of the table
		i        = uint32(head)
		indirect = false
		readable = 0
		total    = uint64(0)
	)
	// A chain has at most as many buffers as the queue has entries; one table more for the step into it.
	for range uint32(q.cfg.Size) + 1 {
		if i >= entries {
			return false
		}
		d := readDescriptor(table, i)
		if d.flags&descIndirect != 0 {
			// Descriptors of the queue's own table may come before it, none after it, and no table is in another
			// (§2.7.5.3).
			if indirect || !q.cfg.Indirect || d.flags&descNext != 0 || d.len == 0 || d.len%descSize != 0 || d.len/descSize > uint32(q.cfg.Size) {
				return false
			}
			t, err := q.cfg.Memory.Slice(d.addr, uint64(d.len))
			if err != nil {
				return false
			}
			table, entries, i, indirect = t, d.len/descSize, 0, true
			continue
		}
		if d.len == 0 || len(c.all) == int(q.cfg.Size) {
			return false
		}
		p, err := q.cfg.Memory.Slice(d.addr, uint64(d.len))
		if err != nil {
			return false
		}
		if d.flags&descWrite == 0 {
			if readable != len(c.all) { // after a writable one (§2.7.4.2)
				return false
			}
			readable++
		}
		c.all = append(c.all, p)
		total += uint64(d.len)
		if d.flags&descNext == 0 {
			if total > math.MaxUint32 { // §2.7.5.3.1
				return false
			}
			c.Readable, c.Writable = c.all[:readable:readable], c.all[readable:]
			return true
		}
		i = uint32(d.next)
	}
	return false
}
