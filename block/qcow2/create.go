package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// CreateOptions describe a new image. Zero values are the defaults of qemu-img.
type CreateOptions struct {
	Size          int64 // of the disk in bytes, a multiple of 512
	Version       int   // 2 or 3, which is the default
	ClusterSize   int64 // bytes, a power of two from 512 to 2 MiB; 64 KiB
	RefcountBits  int   // a power of two up to 64; 16
	BackingFile   string
	BackingFormat string
	LazyRefcounts bool // permit others to let the refcounts be behind
	Compression   CompressionType
}

// Create writes an image without contents to file, which is empty, or whose contents are lost.
func Create(file Storage, o CreateOptions) error {
	h, err := o.header()
	if err != nil {
		return err
	}
	size := h.clusterSize()
	// The header, the refcount table, the refcount blocks for all this, the L1 table.
	perBlock := size * 8 >> h.refcountOrder
	l1 := (int64(h.l1Size)*8 + size - 1) / size
	table, blocks := int64(1), int64(1)
	for {
		need := (1 + table + blocks + l1 + perBlock - 1) / perBlock
		needTable := (need*8 + size - 1) / size
		if need <= blocks && needTable <= table {
			break
		}
		blocks, table = max(blocks, need), max(table, needTable)
	}
	h.refOffset, h.refClusters = uint64(size), uint32(table)
	h.l1Offset = uint64(1+table+blocks) * uint64(size)
	if h.l1Size == 0 {
		h.l1Offset = 0
	}
	first, err := h.encode()
	if err != nil {
		return err
	}
	total := 1 + table + blocks + l1
	if err := file.Truncate(0); err != nil {
		return err
	}
	if err := file.Truncate(total * size); err != nil {
		return err
	}
	write := func(p []byte, off int64) {
		if err == nil {
			_, err = file.WriteAt(p, off)
		}
	}
	entries := make([]byte, blocks*8)
	for b := range blocks {
		off := (1 + table + b) * size
		binary.BigEndian.PutUint64(entries[b*8:], uint64(off))
		block := newTable(off, int(b), size)
		for i := range min(perBlock, total-b*perBlock) {
			block.setRefcount(uint64(i), h.refcountOrder, 1)
		}
		write(block.bytes(), off)
	}
	write(entries, size)
	write(first, 0) // last, so that what is half made is no image
	if err != nil {
		return err
	}
	return file.Sync()
}

// header is that of the new image, without the places of its tables.
func (o CreateOptions) header() (*header, error) {
	h := &header{version: 3, clusterBits: 16, refcountOrder: 4, length: headerV3Typed, backing: o.BackingFile, backingFormat: o.BackingFormat}
	if o.Version != 0 {
		h.version = uint32(o.Version)
	}
	if o.ClusterSize != 0 {
		h.clusterBits = uint32(bits.TrailingZeros64(uint64(o.ClusterSize)))
	}
	if o.RefcountBits != 0 {
		h.refcountOrder = uint32(bits.TrailingZeros(uint(o.RefcountBits)))
	}
	switch {
	case o.Version != 0 && o.Version != 2 && o.Version != 3:
		return nil, fmt.Errorf("version %d: not 2 or 3", o.Version)
	case o.Size < 0 || o.Size > maxSize || o.Size%512 != 0:
		return nil, fmt.Errorf("size of %d bytes: not a multiple of 512, or too large", o.Size)
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits || o.ClusterSize != 0 && o.ClusterSize != 1<<h.clusterBits:
		return nil, fmt.Errorf("cluster size %d: not a power of two from 512 to 2 MiB", o.ClusterSize)
	case h.refcountOrder > maxRefcountOrder || o.RefcountBits != 0 && o.RefcountBits != 1<<h.refcountOrder:
		return nil, fmt.Errorf("refcounts of %d bits: not a power of two up to 64", o.RefcountBits)
	case len(o.BackingFile) > maxBackingName:
		return nil, fmt.Errorf("name of the backing file of %d bytes: at most %d", len(o.BackingFile), maxBackingName)
	case o.BackingFormat != "" && o.BackingFile == "":
		return nil, errors.New("a format of the backing file, and no backing file")
	case h.version == 2 && (o.LazyRefcounts || o.Compression != Deflate || h.refcountOrder != 4):
		return nil, errors.New("lazy refcounts, other refcounts than of 16 bits, and other compression than zlib: version 3 only")
	}
	h.size = uint64(o.Size)
	need := h.l1Need(h.size)
	if need*8 > maxL1Bytes {
		return nil, fmt.Errorf("size of %d bytes: at most %d with clusters of %d", o.Size, int64(maxL1Bytes/8)<<(2*h.clusterBits-3), h.clusterSize())
	}
	h.l1Size = uint32(max(need, 1))
	if o.LazyRefcounts {
		h.compatible |= featureLazy
	}
	if h.compression = o.Compression; h.compression != Deflate {
		h.incompatible |= featureCompression
	}
	if h.version == 2 {
		h.length = headerV2
	}
	if o.BackingFormat != "" {
		h.extensions = append(h.extensions, extension{extBackingFmt, []byte(o.BackingFormat)})
	}
	if h.version == 3 {
		h.extensions = append(h.extensions, extension{extFeatureNames, featureNames()})
	}
	return h, nil
}

// Preallocate gives each cluster of the disk a place in the file, without writing to it.
func (m *Image) Preallocate() error {
	if err := m.writable(); err != nil {
		return err
	}
	m.users.RLock()
	defer m.users.RUnlock()
	for off := int64(0); off < m.Size(); {
		n := m.Size() - off
		at, err := m.lookup(off, n)
		if err != nil {
			return err
		}
		if at.kind == data {
			off += at.n
			continue
		}
		f, err := m.begin(uint64(off)>>m.clusterBits, off, n)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		end := f.end(m.clusterBits)
		for c := off; c < end && err == nil; c += m.clusterSize {
			err = m.copyOld(f, c, min(c+m.clusterSize, end))
		}
		if err != nil {
			m.abandon(f)
			return err
		}
		if err := m.commit(f); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// Info is what an image says of itself.
type Info struct {
	Version       int
	ClusterSize   int64
	RefcountBits  int
	Compression   CompressionType
	LazyRefcounts bool
	Corrupt       bool
	Snapshots     []Snapshot
}

// Info returns what the image says of itself.
func (m *Image) Info() (Info, error) {
	snapshots, err := m.Snapshots()
	m.mu.Lock()
	defer m.mu.Unlock()
	return Info{
		Version: int(m.h.version), ClusterSize: m.clusterSize, RefcountBits: 1 << m.h.refcountOrder, Compression: m.h.compression,
		LazyRefcounts: m.h.compatible&featureLazy != 0, Corrupt: m.h.incompatible&featureCorrupt != 0, Snapshots: snapshots,
	}, err
}
