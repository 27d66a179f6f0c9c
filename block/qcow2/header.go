package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Magic is what an image begins with.
const Magic = "QFI\xfb"

// Lengths of the header in bytes, without its extensions.
const (
	headerV2      = 72
	headerV3      = 104
	headerV3Typed = 112 // with the compression type, padded
)

// Limits that an image is refused beyond. They are QEMU's, so that no tool's images are shut out.
const (
	minClusterBits     = 9
	maxClusterBits     = 21
	maxRefcountOrder   = 6
	maxL1Bytes         = 32 << 20
	maxRefTableBytes   = 8 << 20
	maxSnapshots       = 65536
	maxSnapshotBytes   = 64 << 20 // of the snapshot table
	maxSnapshotL1Bytes = 256 << 20
	maxBackingName     = 1023
	maxExtension       = 1 << 20
)

// Incompatible features: who does not know one of them must not touch the image.
const (
	featureDirty       = 1 << 0 // the refcounts may be wrong
	featureCorrupt     = 1 << 1 // any structure may be wrong
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4

	featuresKnown = featureDirty | featureCorrupt | featureCompression
)

// featureLazy is the compatible feature that permits refcounts to be behind, while featureDirty is set.
const featureLazy = 1 << 0

// autoclearBitmaps says that the bitmaps extension is up to date.
const autoclearBitmaps = 1 << 0

// Types of header extensions.
const (
	extEnd          = 0
	extBackingFmt   = 0xe2792aca
	extFeatureNames = 0x6803f857
	extBitmaps      = 0x23852875
)

// CompressionType is how compressed clusters are compressed.
type CompressionType uint8

// The compression types.
const (
	Deflate CompressionType = 0 // "zlib" in QEMU's words, but raw deflate
	Zstd    CompressionType = 1
)

func (c CompressionType) String() string {
	switch c {
	case Deflate:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("type %d", uint8(c))
}

// header is the fixed part of the first cluster, and what its extensions say.
type header struct {
	version       uint32
	backingOffset uint64
	backingSize   uint32
	clusterBits   uint32
	size          uint64
	crypt         uint32
	l1Size        uint32 // entries
	l1Offset      uint64
	refOffset     uint64
	refClusters   uint32
	snapshots     uint32
	snapOffset    uint64

	incompatible, compatible, autoclear uint64
	refcountOrder                       uint32
	length                              uint32
	compression                         CompressionType

	backing       string // the file's name, as it is stored
	backingFormat string
	extensions    []extension
	fixed         []byte // as it was read: later versions may have put more into it
	featureNames  map[featureBit]string
}

type extension struct {
	kind uint32
	data []byte
}

// featureBit is a key of the feature name table.
type featureBit struct{ kind, bit uint8 }

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }

// readHeader reads and checks the header of the image in file.
func readHeader(file Storage) (*header, error) {
	fixed := make([]byte, headerV3Typed)
	n, err := readFull(file, fixed, 0)
	switch {
	case err != nil:
		return nil, err
	case n < headerV2 || !bytes.HasPrefix(fixed, []byte(Magic)):
		return nil, ErrFormat
	}
	be := binary.BigEndian
	h := &header{
		version:       be.Uint32(fixed[4:]),
		backingOffset: be.Uint64(fixed[8:]),
		backingSize:   be.Uint32(fixed[16:]),
		clusterBits:   be.Uint32(fixed[20:]),
		size:          be.Uint64(fixed[24:]),
		crypt:         be.Uint32(fixed[32:]),
		l1Size:        be.Uint32(fixed[36:]),
		l1Offset:      be.Uint64(fixed[40:]),
		refOffset:     be.Uint64(fixed[48:]),
		refClusters:   be.Uint32(fixed[56:]),
		snapshots:     be.Uint32(fixed[60:]),
		snapOffset:    be.Uint64(fixed[64:]),
		refcountOrder: 4,
		length:        headerV2,
	}
	switch h.version {
	case 2:
	case 3:
		h.incompatible = be.Uint64(fixed[72:])
		h.compatible = be.Uint64(fixed[80:])
		h.autoclear = be.Uint64(fixed[88:])
		h.refcountOrder = be.Uint32(fixed[96:])
		h.length = be.Uint32(fixed[100:])
		if h.length > headerV3 {
			h.compression = CompressionType(fixed[104])
		}
	default:
		return nil, fmt.Errorf("version %d of qcow2: not 2 or 3", h.version)
	}
	if err := h.check(file); err != nil {
		return nil, err
	}
	return h, h.checkFeatures()
}

// check checks the fixed fields, and reads what lies behind them in the first cluster.
func (h *header) check(file Storage) error {
	switch {
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return fmt.Errorf("cluster size of 2^%d bytes: not between 2^%d and 2^%d", h.clusterBits, minClusterBits, maxClusterBits)
	case h.version == 3 && (h.length < headerV3 || h.length%8 != 0 || int64(h.length) > h.clusterSize()):
		return fmt.Errorf("header of %d bytes", h.length)
	case h.refcountOrder > maxRefcountOrder:
		return fmt.Errorf("refcounts of 2^%d bits: at most 2^%d", h.refcountOrder, maxRefcountOrder)
	case h.size > maxSize:
		return fmt.Errorf("size of %d bytes: more than a disk can have", h.size)
	case uint64(h.l1Size)*8 > maxL1Bytes:
		return fmt.Errorf("L1 table of %d entries: at most %d", h.l1Size, maxL1Bytes/8)
	case uint64(h.l1Size) < h.l1Need(h.size):
		return fmt.Errorf("L1 table of %d entries: %d bytes need %d", h.l1Size, h.size, h.l1Need(h.size))
	case int64(h.refClusters)<<h.clusterBits > maxRefTableBytes:
		return fmt.Errorf("refcount table of %d clusters: at most %d", h.refClusters, maxRefTableBytes>>h.clusterBits)
	case h.refClusters == 0:
		return errors.New("no refcount table")
	case h.snapshots > maxSnapshots:
		return fmt.Errorf("%d snapshots: at most %d", h.snapshots, maxSnapshots)
	case h.backingOffset != 0 && (h.backingSize > maxBackingName || h.backingOffset < uint64(h.length) ||
		h.backingOffset+uint64(h.backingSize) > uint64(h.clusterSize()) || h.backingOffset > uint64(h.clusterSize())):
		return errors.New("the backing file's name is not in the first cluster")
	}
	for _, at := range []struct {
		name   string
		offset uint64
		bytes  int64
	}{
		{"L1 table", h.l1Offset, int64(h.l1Size) * 8},
		{"refcount table", h.refOffset, int64(h.refClusters) << h.clusterBits},
		{"snapshot table", h.snapOffset, min(int64(h.snapshots), 1)},
	} {
		if at.bytes > 0 && (at.offset == 0 || at.offset%uint64(h.clusterSize()) != 0 || at.offset > maxOffset) {
			return fmt.Errorf("%s at %#x: not the start of a cluster behind the header", at.name, at.offset)
		}
	}
	h.fixed = make([]byte, h.length)
	if _, err := readFull(file, h.fixed, 0); err != nil {
		return err
	}
	return h.readExtensions(file)
}

// l1Need is how many L1 entries a disk of size bytes has.
func (h *header) l1Need(size uint64) uint64 {
	perL1 := uint64(1) << (2*h.clusterBits - 3) // bytes of the disk
	return (size + perL1 - 1) / perL1
}

func (h *header) readExtensions(file Storage) error {
	end := h.clusterSize()
	if h.backingOffset != 0 {
		name := make([]byte, h.backingSize)
		if n, err := readFull(file, name, int64(h.backingOffset)); err != nil || n < len(name) {
			return fmt.Errorf("backing file's name: %w", orShort(err))
		}
		h.backing = string(name)
		end = int64(h.backingOffset)
	}
	at := int64(h.length)
	for at+8 <= end {
		var head [8]byte
		if n, err := readFull(file, head[:], at); err != nil {
			return err
		} else if n < len(head) {
			return nil // an image of nothing but a header ends here
		}
		kind, n := binary.BigEndian.Uint32(head[:]), int64(binary.BigEndian.Uint32(head[4:]))
		at += 8
		if kind == extEnd {
			return nil
		}
		if n > maxExtension || at+n > end {
			return fmt.Errorf("header extension %#x: %d bytes do not fit the first cluster", kind, n)
		}
		data := make([]byte, n)
		if m, err := readFull(file, data, at); err != nil || int64(m) < n {
			return fmt.Errorf("header extension %#x: %w", kind, orShort(err))
		}
		h.extensions = append(h.extensions, extension{kind, data})
		switch kind {
		case extBackingFmt:
			h.backingFormat = string(data)
		case extFeatureNames:
			h.featureNames = map[featureBit]string{}
			for entry := range slices.Chunk(data, 48) {
				if len(entry) == 48 {
					h.featureNames[featureBit{entry[0], entry[1]}] = string(bytes.TrimRight(entry[2:], "\x00"))
				}
			}
		}
		at += (n + 7) &^ 7
	}
	return nil
}

// checkFeatures refuses what this package does not know, by the name that the image itself has for it.
func (h *header) checkFeatures() error {
	if h.crypt != 0 {
		return errors.New("is encrypted: not supported (qemu-img convert decrypts it)")
	}
	unknown := h.incompatible &^ featuresKnown
	if unknown == 0 {
		if h.incompatible&featureCompression != 0 && h.compression != Zstd || h.incompatible&featureCompression == 0 && h.compression != Deflate {
			return fmt.Errorf("compression %v: not supported (qemu-img convert makes an image without)", h.compression)
		}
		return nil
	}
	var names []string
	for bit := range uint8(64) {
		if unknown>>bit&1 == 0 {
			continue
		}
		name := h.featureNames[featureBit{0, bit}]
		switch {
		case name != "":
		case uint64(1)<<bit == featureDataFile:
			name = "external data file"
		case uint64(1)<<bit == featureExtendedL2:
			name = "extended L2 entries"
		default:
			name = fmt.Sprintf("feature %d", bit)
		}
		names = append(names, fmt.Sprintf("%q", name))
	}
	return fmt.Errorf("needs %s: not supported (qemu-img convert makes an image without)", strings.Join(names, ", "))
}

// encode is the first cluster: the fixed part, the extensions, the backing file's name.
func (h *header) encode() ([]byte, error) {
	p := append(make([]byte, 0, h.clusterSize()), make([]byte, h.length)...)
	copy(p, h.fixed)
	be := binary.BigEndian
	for _, e := range h.extensions {
		p = be.AppendUint32(p, e.kind)
		p = be.AppendUint32(p, uint32(len(e.data)))
		p = append(p, e.data...)
		p = append(p, make([]byte, -len(e.data)&7)...)
	}
	p = append(p, make([]byte, 8)...) // extEnd
	h.backingOffset, h.backingSize = 0, 0
	if h.backing != "" {
		h.backingOffset, h.backingSize = uint64(len(p)), uint32(len(h.backing))
		p = append(p, h.backing...)
	}
	if int64(len(p)) > h.clusterSize() {
		return nil, fmt.Errorf("header of %d bytes: does not fit a cluster of %d (use larger clusters, or a shorter name of the backing file)", len(p), h.clusterSize())
	}
	copy(p, Magic)
	be.PutUint32(p[4:], h.version)
	be.PutUint64(p[8:], h.backingOffset)
	be.PutUint32(p[16:], h.backingSize)
	be.PutUint32(p[20:], h.clusterBits)
	be.PutUint64(p[24:], h.size)
	be.PutUint32(p[32:], h.crypt)
	be.PutUint32(p[36:], h.l1Size)
	be.PutUint64(p[40:], h.l1Offset)
	be.PutUint64(p[48:], h.refOffset)
	be.PutUint32(p[56:], h.refClusters)
	be.PutUint32(p[60:], h.snapshots)
	be.PutUint64(p[64:], h.snapOffset)
	if h.version == 3 {
		be.PutUint64(p[72:], h.incompatible)
		be.PutUint64(p[80:], h.compatible)
		be.PutUint64(p[88:], h.autoclear)
		be.PutUint32(p[96:], h.refcountOrder)
		be.PutUint32(p[100:], h.length)
		if h.length > headerV3 {
			p[104] = byte(h.compression)
		}
	}
	return p, nil
}

// featureNames is the table for other tools, of the features that an image of ours can have.
func featureNames() []byte {
	var p []byte
	for _, f := range []struct {
		kind, bit uint8
		name      string
	}{{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 3, "compression type"}, {1, 0, "lazy refcounts"}} {
		p = append(p, f.kind, f.bit)
		p = append(p, f.name...)
		p = append(p, make([]byte, 46-len(f.name))...)
	}
	return p
}

// readFull reads as much of p as there is in file.
func readFull(file Storage, p []byte, off int64) (int, error) {
	size := file.Size()
	if off >= size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-off)]
	n, err := file.ReadAt(p, off)
	if n == len(p) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// orShort is err, or that something has ended too early.
func orShort(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
