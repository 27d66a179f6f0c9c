package qcow2

// kind says where a cluster of the disk is.
type kind int

const (
	absent     kind = iota // in the backing file, or nowhere
	zeroes                 // reads as zeroes; it may have a cluster of the file nevertheless
	data                   // in a cluster of the file
	compressed             // in a part of a cluster of the file, or of two
)

// mapping is where a piece of the disk is: n bytes, from the one that was asked for on.
type mapping struct {
	kind    kind
	n       int64
	off     int64  // in the file, of data
	inPlace bool   // data that can be written where it is
	entry   uint64 // of compressed, whose mapping ends with its cluster
}

// classify takes an L2 entry apart.
func (m *Image) classify(entry uint64) (k kind, off int64, err error) {
	if entry&flagCompressed != 0 {
		return compressed, 0, nil
	}
	off = int64(entry & offsetMask)
	reserved := uint64(reservedL2)
	if m.version < 3 {
		reserved |= flagZero
	}
	switch {
	case entry&reserved != 0 || off&(m.clusterSize-1) != 0:
		return 0, 0, m.corrupt("L2 entry %#x", entry)
	case entry&flagZero != 0:
		return zeroes, off, nil
	case off == 0:
		return absent, 0, nil
	}
	return data, off, nil
}

// lookup finds where the disk's bytes from off on are, at most n of them. users is held.
func (m *Image) lookup(off, n int64) (mapping, error) {
	cluster := uint64(off) >> m.clusterBits
	inside := off & (m.clusterSize - 1)
	t, err := m.l2Table(int(cluster >> m.l2Bits))
	if err != nil {
		return mapping{}, err
	}
	i := cluster & (1<<m.l2Bits - 1)
	entry := t.entry(i)
	k, at, err := m.classify(entry)
	if err != nil {
		return mapping{}, err
	}
	out := mapping{kind: k, n: m.clusterSize - inside, entry: entry, inPlace: entry&flagCopied != 0}
	if k == data {
		out.off = at + inside
	}
	for i++; k != compressed && out.n < n && i < 1<<m.l2Bits; i++ {
		next := t.entry(i)
		nextKind, nextAt, err := m.classify(next)
		if err != nil {
			return mapping{}, err
		}
		if nextKind != k || k == data && (nextAt != out.off+out.n || next&flagCopied != entry&flagCopied) {
			break
		}
		out.n += m.clusterSize
	}
	out.n = min(out.n, n)
	return out, nil
}

// l2Table returns the L2 table of the L1 entry i for reading: an empty one where there is none.
func (m *Image) l2Table(i int) (*table, error) {
	if t := m.l2[i].Load(); t != nil {
		if !t.used.Load() {
			t.used.Store(true)
		}
		return t, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadL2(i)
}

// loadL2 is l2Table; mu is held.
func (m *Image) loadL2(i int) (*table, error) {
	if t := m.l2[i].Load(); t != nil {
		return t, nil
	}
	off, err := m.l2Offset(i)
	if err != nil {
		return nil, err
	}
	if off == 0 {
		m.l2[i].Store(m.none)
		return m.none, nil
	}
	t, err := m.readCluster(off, i)
	if err != nil {
		return nil, err
	}
	m.loaded = append(m.loaded, t)
	m.l2[i].Store(t)
	return t, nil
}

// l2Offset is where the file has the L2 table of the L1 entry i, or 0.
func (m *Image) l2Offset(i int) (int64, error) {
	entry := m.l1[i]
	off := int64(entry & offsetMask)
	if entry&reservedL1 != 0 || off&(m.clusterSize-1) != 0 || off > m.end.Load()-m.clusterSize {
		return 0, m.corrupt("L1 entry %d is %#x", i, entry)
	}
	return off, nil
}

// ownL2 returns the L2 table of the L1 entry i for changes: made if there is none, copied if a snapshot refers to it too. mu
// is held.
func (m *Image) ownL2(i int) (*table, error) {
	t, err := m.loadL2(i)
	if err != nil || m.l1[i]&flagCopied != 0 && t != m.none {
		return t, err
	}
	old := m.l1[i] & offsetMask
	if err := m.makeRoom(); err != nil {
		return nil, err
	}
	off, _, _, err := m.allocate(1)
	if err != nil {
		return nil, err
	}
	m.addMeta(off, 1)
	// The old table stays as it is for whoever reads it just now.
	own := newTable(off, i, m.clusterSize)
	own.used.Store(true)
	copy(own.words, t.words)
	own.touch(0, int(m.clusterSize))
	m.forget(t)
	m.loaded = append(m.loaded, own)
	m.l1[i] = uint64(off) | flagCopied
	m.l1Dirty[i] = struct{}{}
	m.l2[i].Store(own)
	if old != 0 {
		m.removeMeta(int64(old), 1)
		m.freed = append(m.freed, extent{old >> m.clusterBits, 1})
	}
	return own, nil
}

// forget takes a table out of the list of those that may be written or evicted.
func (m *Image) forget(t *table) {
	for i, other := range m.loaded {
		if other == t {
			last := len(m.loaded) - 1
			m.loaded[i], m.loaded[last] = m.loaded[last], nil
			m.loaded = m.loaded[:last]
			return
		}
	}
}

// drop notes that an L2 entry of the disk's refers to its clusters no more; mu is held.
func (m *Image) drop(entry uint64) {
	if entry&flagCompressed != 0 {
		off, n := m.compressedRange(entry)
		first := uint64(off) >> m.clusterBits
		last := uint64(off+n-1) >> m.clusterBits
		m.freed = append(m.freed, extent{first, last - first + 1})
		return
	}
	if off := entry & offsetMask; off != 0 {
		m.freed = append(m.freed, extent{off >> m.clusterBits, 1})
	}
}

// compressedRange is where a compressed cluster is: offset and length in bytes, where the length is rounded up to sectors
// (qcow2 specification, "Compressed Clusters Descriptor").
func (m *Image) compressedRange(entry uint64) (off, n int64) {
	x := 62 - (m.clusterBits - 8)
	off = int64(entry & (1<<x - 1))
	sectors := int64(entry&^(flagCompressed|flagCopied)>>x) + 1
	return off, sectors*512 - off&511
}
