package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Repair says what [Image.Check] shall mend.
type Repair struct {
	Leaks     bool // clusters that nothing refers to
	Refcounts bool // and refcounts that are too low, and what follows from them
}

// Result is what [Image.Check] has found.
type Result struct {
	Corruptions, CorruptionsFixed int64    // what can lose data
	Leaks, LeaksFixed             int64    // clusters that are lost as room
	Problems                      []string // the first of them, a line each

	TotalClusters      int64 // of the disk
	AllocatedClusters  int64 // that are in the file
	CompressedClusters int64 // of these
	FragmentedClusters int64 // that do not follow the one before
	EndOffset          int64 // of what is in use in the file, in bytes
}

// Clean tells whether nothing is left to mend.
func (r *Result) Clean() bool { return r.Corruptions == r.CorruptionsFixed && r.Leaks == r.LeaksFixed }

// maxProblems is how many lines a Result has.
const maxProblems = 100

// windowClusters is for how many clusters of the file references are counted at a time.
const windowClusters = 16 << 20

// Check compares the refcounts with what refers to each cluster, and mends what it is told to. Requests wait meanwhile.
func (m *Image) Check(repair Repair) (*Result, error) {
	if m.readOnly {
		repair = Repair{}
	}
	m.flushing.Lock()
	defer m.flushing.Unlock()
	m.users.Lock()
	defer m.users.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &checker{m: m, repair: repair, own: map[uint64]bool{}, r: &Result{TotalClusters: m.clusters(m.Size())}}
	if err := c.run(); err != nil {
		return nil, err
	}
	if m.readOnly {
		return c.r, nil
	}
	err := m.flushTables()
	if err == nil {
		err = m.file.Sync()
	}
	if err == nil && c.r.Clean() && repair.Refcounts && m.h.incompatible&(featureDirty|featureCorrupt) != 0 {
		m.h.incompatible &^= featureDirty | featureCorrupt
		err = m.writeHeader()
	}
	return c.r, err
}

// CheckFile is [Image.Check] of the image in file, which it opens whatever state that is in, and closes.
func CheckFile(file Storage, repair Repair) (*Result, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	m := newImage(file, h, repair == Repair{})
	if err := m.load(); err != nil {
		return nil, err
	}
	if !m.readOnly {
		if err := m.makeWhole(); err != nil {
			return nil, err
		}
	}
	r, err := m.Check(repair)
	if err != nil {
		return nil, err
	}
	return r, m.Close()
}

type checker struct {
	m         *Image
	repair    Repair
	r         *Result
	snapshots []Snapshot
	snapBytes int64

	first  bool // pass: problems are told once
	base   uint64
	counts []uint32
	own    map[uint64]bool // clusters that the repair itself took, and whose refcounts are right
}

func (c *checker) run() (err error) {
	m := c.m
	if !m.readOnly {
		// What was freed and is not out of use yet would look like a leak.
		if err := m.flushTables(); err != nil {
			return err
		}
		if err := m.file.Sync(); err != nil {
			return err
		}
		freed := m.freed
		m.freed = nil
		if err := m.unreference(freed); err != nil {
			return err
		}
	}
	if c.snapshots, c.snapBytes, err = m.readSnapshots(); err != nil {
		return err
	}
	c.first = true
	if err := c.refTable(); err != nil {
		return err
	}
	total := uint64(m.clusters(m.file.Size()))
	for c.base = 0; c.base < total; c.base += windowClusters {
		c.counts = make([]uint32, min(windowClusters, total-c.base))
		if err := c.walk(); err != nil {
			return err
		}
		if err := c.compare(); err != nil {
			return err
		}
		c.first = false
	}
	c.counts = nil
	if err := c.beyond(total); err != nil {
		return err
	}
	return c.flags()
}

// beyond looks for refcounts of clusters from total on, behind the end of the file, which nothing can refer to.
func (c *checker) beyond(total uint64) error {
	m := c.m
	seen := map[uint64]bool{} // blocks: a hostile table may lead to one of them from everywhere
	for i := total >> m.refBits; i < uint64(len(m.ref)); i++ {
		t, err := m.refBlock(i << m.refBits)
		if err != nil || t == nil || seen[m.ref[i]] {
			if err != nil {
				return err
			}
			continue
		}
		seen[m.ref[i]] = true
		perWord := uint64(64) >> m.refOrder
		for w, word := range t.words {
			if word == 0 {
				continue
			}
			for k := uint64(w) * perWord; k < uint64(w+1)*perWord; k++ {
				if cluster := i<<m.refBits + k; cluster >= total && t.refcount(k, m.refOrder) != 0 {
					if err := c.judge(cluster, t.refcount(k, m.refOrder), 0); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// corruption notes a problem that can lose data.
func (c *checker) corruption(format string, args ...any) {
	c.r.Corruptions++
	c.tell("ERROR "+format, args...)
}

func (c *checker) tell(format string, args ...any) {
	if len(c.r.Problems) < maxProblems {
		c.r.Problems = append(c.r.Problems, fmt.Sprintf(format, args...))
	}
}

// refTable looks at the entries of the refcount table.
func (c *checker) refTable() error {
	m := c.m
	for i, e := range m.ref {
		if e == 0 || e&uint64(m.clusterSize-1) == 0 && e <= uint64(max(m.end.Load()-m.clusterSize, 0)) {
			continue
		}
		c.corruption("refcount block %d is at %#x", i, e)
		if c.repair.Refcounts {
			m.ref[i] = 0
			m.refDirty[i] = struct{}{}
			c.r.CorruptionsFixed++
		}
	}
	return nil
}

// refer counts a reference to each cluster of the file that has one of n bytes from off on.
func (c *checker) refer(what string, off, n int64) {
	if n <= 0 {
		return
	}
	m := c.m
	if off < 0 || off > maxOffset || off+n > m.clusters(m.file.Size())<<m.clusterBits {
		if c.first {
			c.corruption("%s at %#x is behind the end of the file", what, off)
		}
		return
	}
	for cluster := uint64(off) >> m.clusterBits; cluster <= uint64(off+n-1)>>m.clusterBits; cluster++ {
		if i := cluster - c.base; cluster >= c.base && i < uint64(len(c.counts)) && c.counts[i] < 1<<32-1 {
			c.counts[i]++
		}
	}
}

// walk counts all references to the clusters of the window.
func (c *checker) walk() error {
	m := c.m
	c.refer("header", 0, m.clusterSize)
	c.refer("L1 table", int64(m.h.l1Offset), int64(len(m.l1))*8)
	c.refer("refcount table", int64(m.h.refOffset), int64(m.h.refClusters)<<m.clusterBits)
	for _, e := range m.ref {
		if e != 0 && e&uint64(m.clusterSize-1) == 0 && e <= maxOffset {
			c.refer("refcount block", int64(e), m.clusterSize)
		}
	}
	if err := c.l1(m.l1, true); err != nil {
		return err
	}
	c.refer("snapshot table", int64(m.h.snapOffset), c.snapBytes)
	for _, s := range c.snapshots {
		c.refer("snapshot's L1 table", s.l1Offset, int64(s.l1Size)*8)
		l1, err := m.readTable("snapshot's L1 table", s.l1Offset, int(s.l1Size))
		if err != nil {
			return err
		}
		if err := c.l1(l1, false); err != nil {
			return err
		}
	}
	return c.bitmaps()
}

// l1 counts what an L1 table leads to.
func (c *checker) l1(l1 []uint64, active bool) error {
	m := c.m
	next := int64(0) // where the next cluster of the disk would be if the file was not fragmented
	for i, e := range l1 {
		off := int64(e & offsetMask)
		if off == 0 {
			continue
		}
		if e&reservedL1 != 0 || off&(m.clusterSize-1) != 0 {
			if c.first {
				c.corruption("L1 entry %d is %#x", i, e)
			}
			continue
		}
		c.refer("L2 table", off, m.clusterSize)
		if off > m.end.Load()-m.clusterSize {
			continue
		}
		t, err := c.l2(i, off, active)
		if err != nil {
			return err
		}
		for j := range uint64(len(t.words)) {
			entry := t.entry(j)
			if entry == 0 {
				continue
			}
			if entry&flagCompressed != 0 {
				at, n := m.compressedRange(entry)
				c.refer("compressed cluster", at, min(n, max(m.file.Size()-at, 1)))
				c.count(active, true, false)
				continue
			}
			at := int64(entry & offsetMask)
			reserved := uint64(reservedL2)
			if m.version < 3 {
				reserved |= flagZero
			}
			if entry&reserved != 0 || at&(m.clusterSize-1) != 0 {
				if c.first {
					c.corruption("entry %d of the L2 table at %#x is %#x", j, off, entry)
				}
				continue
			}
			if at != 0 {
				c.refer("cluster", at, m.clusterSize)
				c.count(active, false, next != 0 && at != next)
				next = at + m.clusterSize
			}
		}
	}
	return nil
}

// count is for the figures of the Result.
func (c *checker) count(active, compressed, fragmented bool) {
	if !c.first || !active {
		return
	}
	c.r.AllocatedClusters++
	if compressed {
		c.r.CompressedClusters++
		c.r.FragmentedClusters++ // it is somewhere in another's cluster
	} else if fragmented {
		c.r.FragmentedClusters++
	}
}

// l2 is the L2 table at off: that in memory, where it is the disk's.
func (c *checker) l2(i int, off int64, active bool) (*table, error) {
	if active {
		if t := c.m.l2[i].Load(); t != nil {
			return t, nil
		}
	}
	t := newTable(off, i, c.m.clusterSize)
	_, err := readFull(c.m.file, t.bytes(), off)
	return t, err
}

// bitmaps counts what the bitmaps extension refers to, where it is valid (qcow2 specification, "Bitmaps extension").
func (c *checker) bitmaps() error {
	m := c.m
	if m.h.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	be := binary.BigEndian
	for _, e := range m.h.extensions {
		if e.kind != extBitmaps || len(e.data) < 24 {
			continue
		}
		n, size, off := be.Uint32(e.data), int64(be.Uint64(e.data[8:])), int64(be.Uint64(e.data[16:]))
		if size < 0 || size > maxSnapshotBytes || off < 0 || off > m.file.Size()-size {
			return fmt.Errorf("%w: bitmap directory of %d bytes at %#x", ErrCorrupt, size, off)
		}
		c.refer("bitmap directory", off, size)
		dir := make([]byte, size)
		if _, err := readFull(m.file, dir, off); err != nil {
			return err
		}
		for range n {
			if len(dir) < 24 {
				return fmt.Errorf("%w: bitmap directory ends early", ErrCorrupt)
			}
			table, entries := int64(be.Uint64(dir)), int64(be.Uint32(dir[8:]))
			length := (24 + int64(be.Uint16(dir[18:])) + int64(be.Uint32(dir[20:])) + 7) &^ 7
			if length > int64(len(dir)) || entries*8 > maxL1Bytes || table < 0 || table > maxOffset {
				return fmt.Errorf("%w: bitmap with a table of %d entries at %#x", ErrCorrupt, entries, table)
			}
			dir = dir[length:]
			c.refer("bitmap table", table, entries*8)
			words, err := m.readTable("bitmap table", table, int(entries))
			if err != nil {
				return err
			}
			for _, w := range words {
				if at := int64(w & offsetMask); at != 0 {
					c.refer("bitmap", at, m.clusterSize)
				}
			}
		}
	}
	return nil
}

// compare compares the window's counts with the refcounts.
func (c *checker) compare() error {
	m := c.m
	for i, want := range c.counts {
		cluster := c.base + uint64(i)
		have, err := m.refcount(cluster)
		if err != nil {
			return err
		}
		if want > 0 || have > 0 {
			c.r.EndOffset = max(c.r.EndOffset, int64(cluster+1)<<m.clusterBits)
		}
		if err := c.judge(cluster, have, uint64(want)); err != nil {
			return err
		}
	}
	return nil
}

// judge compares the refcount that a cluster has with what refers to it.
func (c *checker) judge(cluster, have, want uint64) error {
	if have == want || c.own[cluster] {
		return nil
	}
	fix := c.repair.Refcounts
	if have > want {
		fix = fix || c.repair.Leaks
		c.r.Leaks++
		c.tell("Leaked cluster %d refcount=%d reference=%d", cluster, have, want)
	} else {
		c.corruption("cluster %d refcount=%d reference=%d", cluster, have, want)
	}
	if !fix || c.m.refOrder < 6 && want >= 1<<(1<<c.m.refOrder) {
		return nil // not to be mended, or not with refcounts of so few bits
	}
	if err := c.fixRefcount(cluster, want); err != nil {
		return err
	}
	if have > want {
		c.r.LeaksFixed++
	} else {
		c.r.CorruptionsFixed++
	}
	return nil
}

// fixRefcount sets a refcount, after it has made a refcount block for it if need be.
func (c *checker) fixRefcount(cluster, value uint64) error {
	before := uint64(c.m.virgin) >> c.m.clusterBits
	if err := c.m.needRefBlock(cluster); err != nil {
		return err
	}
	for own := before; own < uint64(c.m.virgin)>>c.m.clusterBits; own++ {
		c.own[own] = true
	}
	return c.m.setRefcount(cluster, value)
}

// flags compares the COPIED flags of the disk's tables with the refcounts.
func (c *checker) flags() error {
	m := c.m
	for i, e := range m.l1 {
		off := int64(e & offsetMask)
		if off == 0 || e&reservedL1 != 0 || off&(m.clusterSize-1) != 0 || off > m.end.Load()-m.clusterSize {
			continue
		}
		if fixed, err := c.flag("L1 entry", i, e); err != nil {
			return err
		} else if fixed != e {
			m.l1[i] = fixed
			m.l1Dirty[i] = struct{}{}
		}
		t, err := c.l2(i, off, true)
		if err != nil {
			return err
		}
		for j := range uint64(len(t.words)) {
			entry := t.entry(j)
			if entry&flagCompressed != 0 || entry&offsetMask == 0 || entry&offsetMask&uint64(m.clusterSize-1) != 0 {
				continue
			}
			fixed, err := c.flag("L2 entry", int(j), entry)
			if err != nil {
				return err
			}
			if fixed == entry {
				continue
			}
			t.setEntry(j, fixed)
		}
		if t.dirty() && m.l2[i].Load() != t {
			if err := m.writeTable(t); err != nil {
				return err
			}
		}
	}
	return nil
}

// flag returns the entry with the COPIED flag that it should have, if that is to be mended.
func (c *checker) flag(what string, i int, entry uint64) (uint64, error) {
	count, err := c.m.refcount(entry & offsetMask >> c.m.clusterBits)
	if err != nil {
		return entry, err
	}
	if (count == 1) == (entry&flagCopied != 0) {
		return entry, nil
	}
	c.corruption("%s %d is %#x, and its cluster has refcount %d", what, i, entry, count)
	if !c.repair.Refcounts {
		return entry, nil
	}
	c.r.CorruptionsFixed++
	return entry ^ flagCopied, nil
}
