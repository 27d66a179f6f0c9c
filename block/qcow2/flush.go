package qcow2

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"syscall"
)

// freedLimit is how many clusters may wait for a Sync before they are taken out of use by who has freed them.
const freedLimit = 1 << 14

// Sync makes all writes that were complete before it durable.
func (m *Image) Sync() error {
	if m.readOnly {
		return nil
	}
	if err := m.writable(); err != nil {
		return err
	}
	m.flushing.Lock()
	defer m.flushing.Unlock()
	m.mu.Lock()
	err := m.flushTables()
	freed := m.freed
	m.freed = nil
	m.mu.Unlock()
	if err == nil {
		err = m.file.Sync()
	}
	if err != nil {
		m.mu.Lock()
		m.freed = append(m.freed, freed...)
		m.mu.Unlock()
		return err
	}
	if len(freed) == 0 {
		return nil
	}
	// The tables on the disk don't refer to these clusters any more, but requests may still use them that are older than that.
	m.users.Lock()
	m.users.Unlock() //nolint:staticcheck // to wait for them is all
	m.punch(freed)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unreference(freed)
}

// punch gives the file's blocks back to the host where nothing else refers to them. Nothing depends on that.
func (m *Image) punch(freed []extent) {
	file, can := m.file.(puncher)
	if !can {
		return
	}
	slices.SortFunc(freed, func(a, b extent) int { return int(int64(a.first) - int64(b.first)) })
	var run extent
	flush := func() {
		if run.n > 0 {
			_ = file.Discard(int64(run.first)<<m.clusterBits, int64(run.n)<<m.clusterBits)
		}
		run = extent{}
	}
	for _, e := range freed {
		for cluster := e.first; cluster < e.first+e.n; cluster++ {
			m.mu.Lock()
			count, err := m.refcount(cluster)
			m.mu.Unlock()
			switch {
			case err != nil || count != 1:
				flush()
			case run.n > 0 && cluster == run.first+run.n:
				run.n++
			default:
				flush()
				run = extent{cluster, 1}
			}
		}
	}
	flush()
}

// flushTables writes what has changed in memory, in the order that the package comment gives. It leaves the last barrier to
// the caller. mu is held.
func (m *Image) flushTables() error {
	if err := m.writable(); err != nil {
		return err
	}
	refs := m.dirtyRefs() || len(m.refDirty) > 0
	var tables []*table
	for _, t := range m.loaded {
		if t.dirty() {
			tables = append(tables, t)
		}
	}
	if err := m.writeRefBlocks(); err != nil {
		return err
	}
	if len(m.refDirty) > 0 {
		if err := m.file.Sync(); err != nil {
			return err
		}
		if err := m.writeEntries(m.refDirty, m.ref, int64(m.h.refOffset)); err != nil {
			return err
		}
	}
	if refs && (len(tables) > 0 || len(m.l1Dirty) > 0) {
		if err := m.file.Sync(); err != nil {
			return err
		}
	}
	for _, t := range tables {
		if err := m.writeTable(t); err != nil {
			return err
		}
	}
	if len(m.l1Dirty) == 0 {
		return nil
	}
	if len(tables) > 0 {
		if err := m.file.Sync(); err != nil {
			return err
		}
	}
	return m.writeEntries(m.l1Dirty, m.l1, int64(m.h.l1Offset))
}

func (m *Image) dirtyRefs() bool {
	return slices.ContainsFunc(m.loadedRefs, (*table).dirty)
}

func (m *Image) writeRefBlocks() error {
	for _, t := range m.loadedRefs {
		if !t.dirty() {
			continue
		}
		if err := m.writeTable(t); err != nil {
			return err
		}
	}
	return nil
}

// tableUnit is in pieces of which size tables are written: what a disk writes whole.
const tableUnit = 512

// writeTable writes what has changed of a table.
func (m *Image) writeTable(t *table) error {
	from, to := t.from&^(tableUnit-1), min((t.to+tableUnit-1)&^(tableUnit-1), int(m.clusterSize))
	if err := m.writeFull(t.bytes()[from:to], t.off+int64(from)); err != nil {
		return err
	}
	t.from, t.to = 0, 0
	return nil
}

// writeEntries writes the entries of an L1 or refcount table that have changed.
func (m *Image) writeEntries(dirty map[int]struct{}, entries []uint64, off int64) error {
	for _, i := range slices.Sorted(maps.Keys(dirty)) {
		var p [8]byte
		binary.BigEndian.PutUint64(p[:], entries[i])
		if err := m.writeFull(p[:], off+int64(i)*8); err != nil {
			return err
		}
		delete(dirty, i)
	}
	return nil
}

// makeRoom takes tables out of memory until there is room for one more. mu is held.
func (m *Image) makeRoom() error {
	if len(m.loaded)+len(m.loadedRefs) < m.limit {
		return nil
	}
	evicted := m.evict()
	if evicted {
		return nil
	}
	if m.readOnly || m.broken.Load() != nil {
		return nil
	}
	if err := m.flushTables(); err != nil {
		return err
	}
	m.evict()
	return nil
}

// evict drops one table that the file has and nobody has used for a while. It leaves some refcount blocks, which each
// allocation needs.
func (m *Image) evict() bool {
	if len(m.loadedRefs) > m.limit/4 {
		if t := clock(&m.loadedRefs, &m.handRefs); t != nil {
			m.refBlocks[t.index] = nil
			return true
		}
	}
	if t := clock(&m.loaded, &m.hand); t != nil {
		m.l2[t.index].Store(nil)
		return true
	}
	return false
}

// clock removes the first clean table, from hand on, that was not used since the hand came by.
func clock(tables *[]*table, hand *int) *table {
	list := *tables
	for range 2 * len(list) {
		*hand = (*hand + 1) % len(list)
		t := list[*hand]
		if t.dirty() || t.used.Swap(false) {
			continue
		}
		last := len(list) - 1
		list[*hand] = list[last]
		list[last] = nil
		*tables = list[:last]
		return t
	}
	return nil
}

// fail ends all writing, because of err.
func (m *Image) fail(err error) { m.broken.CompareAndSwap(nil, &err) }

func (m *Image) tooLong() error {
	return errors.Join(syscall.EFBIG, errors.New("the refcount table cannot grow any more"))
}
