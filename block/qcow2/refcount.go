package qcow2

import (
	"encoding/binary"
	"slices"
)

// growBytes is in which steps the file grows.
const growBytes = 4 << 20

// refBlock returns the refcount block for a cluster of the file, or nil where there is none: nothing uses such clusters. mu
// is held.
func (m *Image) refBlock(cluster uint64) (*table, error) {
	i := cluster >> m.refBits
	if i >= uint64(len(m.ref)) || m.ref[i] == 0 {
		return nil, nil
	}
	if t := m.refBlocks[i]; t != nil {
		t.used.Store(true)
		return t, nil
	}
	off := int64(m.ref[i])
	if off&(m.clusterSize-1) != 0 || off <= 0 || off > m.end.Load()-m.clusterSize {
		return nil, m.corrupt("refcount block %d is at %#x", i, off)
	}
	t, err := m.readCluster(off, int(i))
	if err != nil {
		return nil, err
	}
	m.refBlocks[i] = t
	m.loadedRefs = append(m.loadedRefs, t)
	return t, nil
}

// readCluster reads a table, after it has made room for it; mu is held.
func (m *Image) readCluster(off int64, index int) (*table, error) {
	if err := m.makeRoom(); err != nil {
		return nil, err
	}
	t := newTable(off, index, m.clusterSize)
	t.used.Store(true)
	n, err := readFull(m.file, t.bytes(), off)
	if err != nil || n < len(t.bytes()) && off+int64(n) < m.end.Load() {
		return nil, orShort(err)
	}
	return t, nil
}

func (m *Image) refcount(cluster uint64) (uint64, error) {
	t, err := m.refBlock(cluster)
	if t == nil {
		return 0, err
	}
	return t.refcount(cluster&(1<<m.refBits-1), m.refOrder), nil
}

// setRefcount changes a refcount whose block there is; mu is held.
func (m *Image) setRefcount(cluster, value uint64) error {
	t, err := m.refBlock(cluster)
	if err != nil {
		return err
	}
	t.setRefcount(cluster&(1<<m.refBits-1), m.refOrder, value)
	if value == 0 {
		m.hint = min(m.hint, cluster)
	}
	return nil
}

// allocate takes up to n free clusters, one after the other, into use. It returns the offset of the first, how many there
// are, and whether they read as zeroes because they were never written to. mu is held.
func (m *Image) allocate(n int64) (off, got int64, zeroed bool, err error) {
	first := m.hint
	for ; ; first++ {
		if int64(first) > maxOffset>>m.clusterBits {
			return 0, 0, false, m.corrupt("no offset is left for another cluster")
		}
		count, err := m.refcount(first)
		if err != nil {
			return 0, 0, false, err
		}
		if count > 0 {
			continue
		}
		grown, err := m.haveRefBlock(first)
		if err != nil {
			return 0, 0, false, err
		}
		if !grown {
			break
		}
		first-- // the block may have taken this cluster for itself
	}
	for got < n {
		cluster := first + uint64(got)
		if cluster>>m.refBits != first>>m.refBits {
			break // the next block's time will come
		}
		if count, err := m.refcount(cluster); err != nil {
			return 0, 0, false, err
		} else if count > 0 {
			break
		}
		got++
	}
	off = int64(first) << m.clusterBits
	if m.hasMeta(off, got) {
		return 0, 0, false, m.corrupt("cluster %#x holds a table, and its refcount is 0", off)
	}
	end := off + got<<m.clusterBits
	if err := m.grow(end); err != nil {
		return 0, 0, false, err
	}
	for i := range uint64(got) {
		if err := m.setRefcount(first+i, 1); err != nil {
			return 0, 0, false, err
		}
	}
	m.hint = first + uint64(got)
	zeroed = off >= m.virgin
	m.virgin = max(m.virgin, end)
	return off, got, zeroed, nil
}

// grow makes the file at least end bytes long.
func (m *Image) grow(end int64) error {
	if end <= m.end.Load() {
		return nil
	}
	to := (end + growBytes - 1) &^ (growBytes - 1)
	if to <= m.file.Size() {
		to = m.file.Size() &^ (m.clusterSize - 1) // of a block device
	} else if err := m.file.Truncate(to); err != nil {
		if to = end; m.file.Truncate(to) != nil {
			return err
		}
	}
	m.end.Store(to)
	return nil
}

// haveRefBlock sees to it that there is a refcount block for the cluster, and reports whether it had to make one. mu is
// held.
func (m *Image) haveRefBlock(cluster uint64) (made bool, err error) {
	i := cluster >> m.refBits
	if i < uint64(len(m.ref)) && m.ref[i] != 0 {
		return false, nil
	}
	if i >= uint64(len(m.ref)) {
		return true, m.growRefTable(i)
	}
	// All clusters that the block is for are free, so that it can be one of them. Where the file has been in use beyond, it
	// is no good place: the refcounts were lost.
	self := i << m.refBits
	off := int64(self) << m.clusterBits
	if m.hasMeta(off, 1) {
		return false, m.corrupt("cluster %#x holds a table, and has no refcount", off)
	}
	if err := m.makeRoom(); err != nil {
		return false, err
	}
	if err := m.grow(off + m.clusterSize); err != nil {
		return false, err
	}
	m.virgin = max(m.virgin, off+m.clusterSize)
	m.addRefBlock(i, off)
	return true, nil
}

// addRefBlock enters an empty refcount block, which counts itself where it is one of its own clusters.
func (m *Image) addRefBlock(i uint64, off int64) {
	t := newTable(off, int(i), m.clusterSize)
	t.used.Store(true)
	t.touch(0, int(m.clusterSize))
	m.refBlocks[i] = t
	m.loadedRefs = append(m.loadedRefs, t)
	m.ref[i] = uint64(off)
	m.refDirty[int(i)] = struct{}{}
	m.addMeta(off, 1)
	if self := uint64(off) >> m.clusterBits; self>>m.refBits == i {
		t.setRefcount(self&(1<<m.refBits-1), m.refOrder, 1)
	}
}

// growRefTable moves the refcount table, enlarged so that it has an entry i, to where no refcounts are yet. mu is held.
func (m *Image) growRefTable(i uint64) error {
	base := max(i, uint64(len(m.ref))) << m.refBits // the first cluster of the new block
	perCluster := uint64(1) << (m.clusterBits - 3)  // entries
	blocks := uint64(1)
	var entries, tableClusters uint64
	for {
		entries = (base>>m.refBits + blocks) * 3 / 2
		tableClusters = (entries + perCluster - 1) / perCluster
		need := (blocks + tableClusters + 1<<m.refBits - 1) >> m.refBits
		if need <= blocks {
			break
		}
		blocks = need
	}
	entries = tableClusters * perCluster
	if entries*8 > maxRefTableBytes {
		return m.tooLong()
	}
	off := int64(base) << m.clusterBits
	end := off + int64(blocks+tableClusters)<<m.clusterBits
	if m.hasMeta(off, int64(blocks+tableClusters)) {
		return m.corrupt("cluster %#x holds a table, and has no refcount", off)
	}
	if err := m.grow(end); err != nil {
		return err
	}
	// The table is written at once: this happens once for as many clusters as all before together.
	if err := m.flushTables(); err != nil {
		return err
	}
	old, oldOff, oldClusters := m.ref, int64(m.h.refOffset), int64(m.h.refClusters)
	m.ref = append(slices.Clone(old), make([]uint64, entries-uint64(len(old)))...)
	m.refBlocks = append(m.refBlocks, make([]*table, entries-uint64(len(old)))...)
	for b := range blocks {
		m.addRefBlock(base>>m.refBits+b, off+int64(b)<<m.clusterBits)
	}
	for c := range blocks + tableClusters {
		if err := m.setRefcount(base+c, 1); err != nil {
			return err
		}
	}
	m.virgin = max(m.virgin, end)
	tableOff := off + int64(blocks)<<m.clusterBits
	m.addMeta(tableOff, int64(tableClusters))

	p := make([]byte, entries*8)
	for i, e := range m.ref {
		binary.BigEndian.PutUint64(p[i*8:], e)
	}
	err := m.writeRefBlocks()
	if err == nil {
		err = m.writeFull(p, tableOff)
	}
	if err == nil {
		err = m.file.Sync()
	}
	if err == nil {
		m.h.refOffset, m.h.refClusters = uint64(tableOff), uint32(tableClusters)
		err = m.writeHeader()
	}
	if err != nil {
		// Which of the two tables the file has is not known: no more of it, then.
		m.fail(err)
		return err
	}
	clear(m.refDirty)
	m.removeMeta(oldOff, oldClusters)
	m.freed = append(m.freed, extent{uint64(oldOff) >> m.clusterBits, uint64(oldClusters)})
	return nil
}

// needRefBlock sees to it that there is a refcount block for the cluster: where there is none, it puts one behind all that is
// in use. mu is held.
func (m *Image) needRefBlock(cluster uint64) error {
	i := cluster >> m.refBits
	for i >= uint64(len(m.ref)) {
		if err := m.growRefTable(i); err != nil {
			return err
		}
	}
	if m.ref[i] != 0 {
		return nil
	}
	off := m.virgin
	if self := uint64(off) >> m.clusterBits >> m.refBits; self >= uint64(len(m.ref)) {
		if err := m.growRefTable(self); err != nil {
			return err
		}
		return m.needRefBlock(cluster)
	}
	if err := m.makeRoom(); err != nil {
		return err
	}
	if err := m.grow(off + m.clusterSize); err != nil {
		return err
	}
	m.virgin = off + m.clusterSize
	m.addRefBlock(i, off)
	self := uint64(off) >> m.clusterBits
	if err := m.needRefBlock(self); err != nil {
		return err
	}
	return m.setRefcount(self, 1)
}

// allocateRun allocates n clusters, one after the other, behind all that is in use. mu is held.
func (m *Image) allocateRun(n uint64) (off int64, err error) {
	first := uint64(m.virgin) >> m.clusterBits
	for cluster := first; cluster < first+n; {
		i := cluster >> m.refBits
		if i < uint64(len(m.ref)) && m.ref[i] != 0 {
			cluster = (i + 1) << m.refBits
			continue
		}
		if err := m.needRefBlock(cluster); err != nil {
			return 0, err
		}
		first = uint64(m.virgin) >> m.clusterBits // the block, or a longer table, is there now
		cluster = first
	}
	off = int64(first) << m.clusterBits
	end := off + int64(n)<<m.clusterBits
	if err := m.grow(end); err != nil {
		return 0, err
	}
	m.virgin = end
	for i := range n {
		if err := m.setRefcount(first+i, 1); err != nil {
			return 0, err
		}
	}
	return off, nil
}

// unreference takes back one reference to each of the clusters; mu is held.
func (m *Image) unreference(freed []extent) error {
	for _, e := range freed {
		for cluster := e.first; cluster < e.first+e.n; cluster++ {
			count, err := m.refcount(cluster)
			if err != nil {
				return err
			}
			if count == 0 {
				return m.corrupt("cluster %#x was in use, and its refcount is 0", cluster<<m.clusterBits)
			}
			if err := m.setRefcount(cluster, count-1); err != nil {
				return err
			}
		}
	}
	return nil
}
