// Package qcow2 reads and writes disk images in QEMU's format, versions 2 and 3 (QEMU docs/interop/qcow2.txt).
//
// An image is a file of clusters, all of one size from 512 bytes to 2 MiB. Cluster 0 is the header:
//
//	00  magic (4) "QFI\xfb", version (4)
//	08  backing_file_offset (8), backing_file_size (4)   a name, in this cluster
//	14  cluster_bits (4), size (8)                       size is the disk's, in bytes
//	20  crypt_method (4)                                 0; others are refused
//	24  l1_size (4), l1_table_offset (8)
//	30  refcount_table_offset (8), refcount_table_clusters (4)
//	3c  nb_snapshots (4), snapshots_offset (8)
//	48  incompatible, compatible, autoclear features (8 each; from version 3 on, as what follows)
//	60  refcount_order (4), header_length (4), compression_type (1)
//
// The L1 table leads to L2 tables, of a cluster each, and these lead to the disk's clusters. The refcount table leads to
// refcount blocks, of a cluster each, which count how often each cluster of the file is referred to. An entry of an L2 table
// has the offset in the file in its bits 9 to 55, and
//
//	bit 63  COPIED: nothing else refers to the cluster, so it can be written in place
//	bit 62  the cluster is compressed, and the other bits mean something else
//	bit 0   it reads as zeroes, whatever is at the offset
//
// # What is on the disk when
//
// Changed tables stay in memory until [Image.Sync], or until memory for them runs out. They are then written in an order that
// makes a crash lose no more than room, and nothing that was there before the last Sync:
//
//  1. refcounts of new clusters, and the entries that lead to new refcount blocks
//  2. L2 tables, which refer to the new clusters (their data was written before)
//  3. L1 entries, which refer to new L2 tables
//  4. after the next barrier, in memory again: refcounts of clusters that nothing refers to any more
//
// with a barrier between each two where both have something to write. A cluster is not used again before step 4, and not
// before each request is over that may still use it for what it was.
//
// # Deviations
//
//   - Refcounts are never written lazily, also where the image permits it.
//   - Persistent bitmaps are not kept up to date: opening for writing declares them invalid, as the format asks for.
//   - Clusters are not written compressed. Encryption, external data files and extended L2 entries are refused.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Storage is the file that an image is in. Its methods may be called by any number of goroutines. Where it has ReadVector and
// WriteVector with the meaning of preadv(2) and pwritev(2), as block.File does, these are used for what goes to the guest's
// memory.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	// Truncate makes the file longer, with zeroes, or shorter.
	Truncate(size int64) error
	// Sync returns when all writes that were complete before it are durable.
	Sync() error
}

type vectors interface {
	ReadVector(iov []unix.Iovec, off int64) (int, error)
	WriteVector(iov []unix.Iovec, off int64) (int, error)
}

// puncher can free a part of the file, which then reads as zeroes.
type puncher interface {
	Discard(off, n int64) error
}

// Backing is what the parts of the disk are read from that an image does not hold. It stays the caller's.
type Backing interface {
	io.ReaderAt
	Size() int64
}

// Options say how an image is opened.
type Options struct {
	ReadOnly bool
	// Backing opens the backing file by the name and the format (which may be empty) that the image has for it. Nil refuses
	// images with a backing file.
	Backing func(name, format string) (Backing, error)
}

// Errors that a caller may want to tell apart.
var (
	ErrFormat   = errors.New("not a qcow2 image")
	ErrCorrupt  = errors.New("image is corrupt")
	ErrReadOnly = errors.New("image is open for reading only")
)

const (
	maxSize   = 1 << 62 // of a disk in bytes: no sum of offsets overflows
	maxOffset = 1<<56 - 1

	offsetMask     = 0x00ff_ffff_ffff_fe00
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
	reservedL1     = 0x7f00_0000_0000_01ff
	reservedL2     = 0x3f00_0000_0000_01fe // of an entry that is not compressed
)

// cacheBytes is how much memory the tables of an image may take. It covers 256 GiB of a disk with the usual clusters.
const cacheBytes = 32 << 20

// Image is an open image. It is a disk: any goroutine may call any method, but Close must be the last.
type Image struct {
	file        Storage
	vec         vectors // file, or nil
	readOnly    bool
	backing     Backing // nil for none
	version     uint32
	clusterSize int64
	clusterBits uint
	l2Bits      uint // entries of an L2 table, and of the L1 table's piece of the disk
	refBits     uint // refcounts in a refcount block
	refOrder    uint32
	size        atomic.Int64
	notes       []string

	// users is held for reading by each request for as long as it uses what it has looked up in a table, so also while it
	// waits for the file. Whoever takes it for writing waits for all of them. Taken before all other locks.
	users sync.RWMutex
	// flushing lets one goroutine at a time write the tables and take clusters out of use. Taken before mu.
	flushing sync.Mutex
	// l2 are the L2 tables in memory; nil where one has to be looked for, and none where there is none. Replaced by who holds
	// users for writing.
	l2   []atomic.Pointer[table]
	none *table
	end  atomic.Int64 // of the file, in whole clusters: what lies behind reads as zeroes

	// mu guards what follows, and each change of a table. It is held while tables are read and written.
	mu         sync.Mutex
	h          *header
	l1         []uint64
	l1Dirty    map[int]struct{}
	ref        []uint64 // the refcount table
	refDirty   map[int]struct{}
	refBlocks  []*table
	loaded     []*table // L2 tables in memory, in no order
	loadedRefs []*table
	hand       int               // of the clock that evicts from loaded
	handRefs   int               // and from loadedRefs
	hint       uint64            // no cluster before it is free
	virgin     int64             // from here on the file was never written to
	pending    map[uint64]*fresh // by cluster of the disk: those that a write is about to give room to
	freed      []extent          // of the file: not referred to any more, but perhaps still by the tables on the disk
	limit      int               // cacheBytes, in tables

	metaMu sync.RWMutex // guards meta; taken last
	meta   map[int64]struct{}

	broken  atomic.Pointer[error] // why nothing is written any more
	marking sync.Once

	unpacked unpacked
	buffers  sync.Pool // of *[]byte, a cluster long
}

// extent is n clusters of the file, from first on.
type extent struct{ first, n uint64 }

// Open opens the image in file, which stays the caller's, and must be used by nobody else. An image that was not closed
// properly is repaired if it is opened for writing; [Image.Notes] tells.
func Open(file Storage, o Options) (_ *Image, err error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	if !o.ReadOnly && h.incompatible&featureCorrupt != 0 {
		return nil, fmt.Errorf("%w, as its header says: it can be opened for reading only, or repaired", ErrCorrupt)
	}
	m := newImage(file, h, o.ReadOnly)
	if err := m.load(); err != nil {
		return nil, err
	}
	if h.backing != "" {
		if o.Backing == nil {
			return nil, fmt.Errorf("has a backing file, %q", h.backing)
		}
		if m.backing, err = o.Backing(h.backing, h.backingFormat); err != nil {
			return nil, err
		}
	}
	if o.ReadOnly {
		return m, nil
	}
	return m, m.beginWriting()
}

func newImage(file Storage, h *header, readOnly bool) *Image {
	m := &Image{
		file: file, readOnly: readOnly, h: h, version: h.version,
		clusterSize: h.clusterSize(), clusterBits: uint(h.clusterBits), l2Bits: uint(h.clusterBits - 3),
		refBits: uint(h.clusterBits + 3 - h.refcountOrder), refOrder: h.refcountOrder,
		l1Dirty: map[int]struct{}{}, refDirty: map[int]struct{}{}, pending: map[uint64]*fresh{}, meta: map[int64]struct{}{},
		limit: max(cacheBytes>>h.clusterBits, 8),
	}
	m.vec, _ = file.(vectors)
	m.none = newTable(0, -1, m.clusterSize)
	m.size.Store(int64(h.size))
	m.buffers.New = func() any { p := make([]byte, m.clusterSize); return &p }
	return m
}

// load reads the two tables that are always in memory, and notes where the image's structures are.
func (m *Image) load() (err error) {
	m.end.Store(m.file.Size() &^ (m.clusterSize - 1))
	if m.file.Size()&(m.clusterSize-1) != 0 {
		m.end.Store(m.file.Size()) // a last cluster that is cut short, for readers; a writer makes it whole
	}
	m.virgin = (m.file.Size() + m.clusterSize - 1) &^ (m.clusterSize - 1)
	if m.l1, err = m.readTable("L1 table", int64(m.h.l1Offset), int(m.h.l1Size)); err != nil {
		return err
	}
	m.l2 = make([]atomic.Pointer[table], len(m.l1))
	refs := int(m.h.refClusters) << (m.clusterBits - 3)
	if m.ref, err = m.readTable("refcount table", int64(m.h.refOffset), refs); err != nil {
		return err
	}
	m.refBlocks = make([]*table, refs)
	if m.readOnly {
		return nil
	}
	m.addMeta(0, 1)
	m.addMeta(int64(m.h.l1Offset), m.clusters(int64(len(m.l1))*8))
	m.addMeta(int64(m.h.refOffset), int64(m.h.refClusters))
	for _, e := range m.l1 {
		if e&offsetMask != 0 {
			m.addMeta(int64(e&offsetMask), 1)
		}
	}
	for _, e := range m.ref {
		if e != 0 {
			m.addMeta(int64(e), 1)
		}
	}
	snapshots, n, err := m.readSnapshots()
	if err != nil {
		return err
	}
	m.addMeta(int64(m.h.snapOffset), m.clusters(n))
	for _, s := range snapshots {
		m.addMeta(s.l1Offset, m.clusters(int64(s.l1Size)*8))
	}
	return nil
}

// readTable reads a table of n entries.
func (m *Image) readTable(name string, off int64, n int) ([]uint64, error) {
	if n == 0 {
		return nil, nil
	}
	if int64(n)*8 > m.file.Size()-off {
		return nil, fmt.Errorf("%w: its %s is behind the end of the file", ErrCorrupt, name)
	}
	p := make([]byte, n*8)
	if got, err := readFull(m.file, p, off); err != nil || got < len(p) {
		return nil, fmt.Errorf("read the %s: %w", name, orShort(err))
	}
	words := make([]uint64, n)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(p[i*8:])
	}
	return words, nil
}

// clusters is how many clusters n bytes take.
func (m *Image) clusters(n int64) int64 { return (n + m.clusterSize - 1) >> m.clusterBits }

// addMeta notes that n clusters, from that at off on, hold the image's structures.
func (m *Image) addMeta(off, n int64) {
	m.metaMu.Lock()
	defer m.metaMu.Unlock()
	for i := range n {
		m.meta[off>>m.clusterBits+i] = struct{}{}
	}
}

func (m *Image) removeMeta(off, n int64) {
	m.metaMu.Lock()
	defer m.metaMu.Unlock()
	for i := range n {
		delete(m.meta, off>>m.clusterBits+i)
	}
}

// hasMeta tells whether one of n clusters, from that at off on, holds a structure.
func (m *Image) hasMeta(off, n int64) bool {
	m.metaMu.RLock()
	defer m.metaMu.RUnlock()
	for i := range n {
		if _, is := m.meta[off>>m.clusterBits+i]; is {
			return true
		}
	}
	return false
}

// makeWhole completes a last cluster that was cut short.
func (m *Image) makeWhole() error {
	if m.file.Size() < m.virgin {
		if err := m.file.Truncate(m.virgin); err != nil {
			return err
		}
	}
	m.end.Store(m.virgin)
	return nil
}

// beginWriting brings the image in a state that can be written to.
func (m *Image) beginWriting() error {
	if err := m.makeWhole(); err != nil {
		return err
	}
	if m.h.incompatible&featureDirty != 0 {
		r, err := m.Check(Repair{Leaks: true, Refcounts: true})
		if err != nil {
			return fmt.Errorf("repair: %w", err)
		}
		if r.Corruptions > r.CorruptionsFixed {
			return fmt.Errorf("%w: %d errors that repair cannot mend", ErrCorrupt, r.Corruptions-r.CorruptionsFixed)
		}
		m.notes = append(m.notes, fmt.Sprintf("was not closed properly: repaired (%d wrong refcounts, %d leaked clusters)", r.CorruptionsFixed, r.LeaksFixed))
	}
	// What the format wants cleared by who does not maintain it.
	if m.h.autoclear != 0 {
		m.h.autoclear = 0
		return m.writeHeader()
	}
	return nil
}

// Notes are what the user should hear of, a sentence each.
func (m *Image) Notes() []string { return m.notes }

// Size is the disk's size in bytes.
func (m *Image) Size() int64 { return m.size.Load() }

// BackingFile is the name of the backing file as the image has it, and its format; both may be empty.
func (m *Image) BackingFile() (name, format string) { return m.h.backing, m.h.backingFormat }

// writeHeader writes the first cluster anew; mu is held, or nobody else has the image yet.
func (m *Image) writeHeader() error {
	p, err := m.h.encode()
	if err != nil {
		return err
	}
	if err := m.writeFull(p, 0); err != nil {
		return err
	}
	return m.file.Sync()
}

func (m *Image) writeFull(p []byte, off int64) error {
	n, err := m.file.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// writable returns why nothing can be written, or nil.
func (m *Image) writable() error {
	if m.readOnly {
		return ErrReadOnly
	}
	if err := m.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// corrupt notes, here and in the header, that the image makes no sense, and returns the error that says why.
func (m *Image) corrupt(format string, args ...any) error {
	err := fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	if m.readOnly {
		return err
	}
	m.broken.CompareAndSwap(nil, &err)
	m.marking.Do(func() {
		if m.version < 3 {
			return
		}
		var p [8]byte
		binary.BigEndian.PutUint64(p[:], m.h.incompatible|featureCorrupt)
		_ = m.writeFull(p[:], 72) // what can be done when that fails too?
	})
	return err
}

// Close writes what is in memory and makes it durable. The file stays open.
func (m *Image) Close() error {
	if m.readOnly || m.broken.Load() != nil {
		return nil
	}
	err := m.Sync()
	if err == nil {
		err = m.Sync() // the refcounts of what the first has freed
	}
	if m.virgin < m.file.Size() {
		err = errors.Join(err, m.file.Truncate(m.virgin))
	}
	return err
}
