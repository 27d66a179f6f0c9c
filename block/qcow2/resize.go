package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// Resize changes the disk's size to size bytes, a multiple of 512. What is new reads as zeroes; what is cut off is lost.
// Requests wait meanwhile.
func (m *Image) Resize(size int64) error {
	if err := m.writable(); err != nil {
		return err
	}
	if size < 0 || size > maxSize || size%512 != 0 {
		return fmt.Errorf("size of %d bytes: not a multiple of 512, or too large", size)
	}
	old := m.Size()
	if size < old {
		// Zeroes behind the new end, for the day when the disk grows again; and nothing else, if possible.
		if err := m.WriteZeroes(size, old-size, true); err != nil {
			return err
		}
		if err := m.Sync(); err != nil {
			return err
		}
	}
	if err := m.setSize(size); err != nil {
		return err
	}
	if size > old && m.backing != nil && m.backing.Size() > old {
		return m.WriteZeroes(old, min(size, m.backing.Size())-old, true)
	}
	return nil
}

// setSize writes another size to the header, with a longer L1 table if that is needed.
func (m *Image) setSize(size int64) error {
	m.users.Lock()
	defer m.users.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	h := *m.h
	h.size = uint64(size)
	need := h.l1Need(h.size)
	if need*8 > maxL1Bytes {
		return fmt.Errorf("size of %d bytes: at most %d with clusters of %d", size, int64(maxL1Bytes/8)<<(2*m.clusterBits-3), m.clusterSize)
	}
	if need > uint64(len(m.l1)) {
		if err := m.growL1(&h, int(need)); err != nil {
			return err
		}
	}
	m.h = &h
	if err := m.writeHeader(); err != nil {
		m.fail(err) // which header the file has is not known
		return err
	}
	m.size.Store(size)
	return nil
}

// growL1 writes a longer copy of the L1 table, and enters it in h.
func (m *Image) growL1(h *header, entries int) error {
	if err := m.flushTables(); err != nil {
		return err
	}
	n := m.clusters(int64(entries) * 8)
	off, err := m.allocateRun(uint64(n))
	if err != nil {
		return err
	}
	p := make([]byte, n<<m.clusterBits)
	for i, e := range m.l1 {
		binary.BigEndian.PutUint64(p[i*8:], e)
	}
	if err := m.writeFull(p, off); err != nil {
		return err
	}
	if err := m.flushTables(); err != nil { // the refcounts of the new table
		return err
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	m.addMeta(off, n)
	m.removeMeta(int64(h.l1Offset), m.clusters(int64(len(m.l1))*8))
	if len(m.l1) > 0 {
		m.freed = append(m.freed, extent{h.l1Offset >> m.clusterBits, uint64(m.clusters(int64(len(m.l1)) * 8))})
	}
	m.l1 = append(m.l1, make([]uint64, entries-len(m.l1))...)
	m.l2 = growPointers(m.l2, entries)
	h.l1Offset, h.l1Size = uint64(off), uint32(entries)
	return nil
}

// growPointers returns a longer copy.
func growPointers(old []atomic.Pointer[table], n int) []atomic.Pointer[table] {
	out := make([]atomic.Pointer[table], n)
	for i := range old {
		out[i].Store(old[i].Load())
	}
	return out
}
