// Package ext4 reads ext2, ext3 and ext4 file systems that somebody else has made (Linux Documentation/filesystems/ext4). It
// believes nothing: what a guest has written there gives an error at worst, after a bounded time, in bounded memory.
//
// A file system that was not unmounted is read as it will be once the guest's kernel has replayed the journal.
//
// # Deviations
//
//   - Checksums are not verified: that is the guest's business, whose own kernel will refuse what it does not believe.
//   - Files inside inodes (inline_data), encrypted files and external journals are refused; fast commits are not replayed.
package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
)

// Limits of what is believed.
const (
	maxDirectory = 64 << 20 // bytes
	maxSymlink   = 4096     // bytes
	maxFollow    = 40       // symbolic links on one path, as in Linux
	maxDepth     = 5        // of an extent tree
	minBlockSize = 1 << 10
	maxBlockSize = 64 << 10
)

// superblockOffset is where the superblock is; Size is from where to where it, and so a file system, has to be.
const (
	superblockOffset = 1024
	superblockSize   = 1024
)

// magic is at byte 0x38 of the superblock.
const magic = 0xef53

// Features that a reader has to know (incompatible features).
const (
	incompatFiletype  = 0x2
	incompatRecover   = 0x4
	incompatMetaBG    = 0x10
	incompatExtents   = 0x40
	incompat64Bit     = 0x80
	incompatMMP       = 0x100
	incompatFlexBG    = 0x200
	incompatEAInode   = 0x400
	incompatCsumSeed  = 0x2000
	incompatLargeDir  = 0x4000
	incompatInline    = 0x8000
	incompatEncrypt   = 0x1_0000
	incompatCasefold  = 0x2_0000
	incompatSupported = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP | incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInline | incompatEncrypt | incompatCasefold

	roCompatSparseSuper = 0x1
)

// Flags of an inode.
const (
	inodeEncrypted = 0x800
	inodeExtents   = 0x8_0000
	inodeInline    = 0x1000_0000
)

// rootInode and the types in an inode's mode.
const (
	rootInode   = 2
	modeType    = 0xf000
	modeDir     = 0x4000
	modeRegular = 0x8000
	modeSymlink = 0xa000
)

// ErrFormat is the error of [Open] for what is no such file system.
var ErrFormat = errors.New("not an ext4 file system")

var errCorrupt = errors.New("file system is corrupt")

// FS is a file system. It may be used by one goroutine at a time.
type FS struct {
	r     io.ReaderAt
	label string
	uuid  [16]byte

	blockSize      int64
	blocks         uint64
	firstData      uint64
	blocksPerGroup uint64
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	descSize       int64
	wide           bool // 64-bit block numbers
	metaBG         bool
	firstMetaBG    uint64
	sparse         bool

	journal map[uint64]journalBlock // blocks whose contents are in the journal
}

// Open reads the superblock, and what is needed of the journal. r is the file system from its first byte on.
func Open(r io.ReaderAt) (*FS, error) {
	var sb [superblockSize]byte
	if _, err := r.ReadAt(sb[:], superblockOffset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != magic {
		return nil, ErrFormat
	}
	f := &FS{
		r: r, label: string(bytes.TrimRight(sb[0x78:0x88], "\x00")), uuid: [16]byte(sb[0x68:0x78]),
		inodes: le.Uint32(sb[0:]), blocks: uint64(le.Uint32(sb[4:])), firstData: uint64(le.Uint32(sb[0x14:])),
		blocksPerGroup: uint64(le.Uint32(sb[0x20:])), inodesPerGroup: le.Uint32(sb[0x28:]), inodeSize: 128, descSize: 32,
		firstMetaBG: uint64(le.Uint32(sb[0x104:])), sparse: le.Uint32(sb[0x64:])&roCompatSparseSuper != 0,
	}
	logSize, incompat := le.Uint32(sb[0x18:]), le.Uint32(sb[0x60:])
	if le.Uint32(sb[0x4c:]) > 0 {
		f.inodeSize = int64(le.Uint16(sb[0x58:]))
	}
	f.metaBG = incompat&incompatMetaBG != 0
	if f.wide = incompat&incompat64Bit != 0; f.wide {
		f.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		f.descSize = int64(le.Uint16(sb[0xfe:]))
	}
	if unknown := incompat &^ incompatSupported; unknown != 0 {
		return nil, fmt.Errorf("ext4 with features %#x: not supported", unknown)
	}
	if logSize > 6 {
		return nil, fmt.Errorf("%w: blocks of 2^%d KiB", errCorrupt, logSize)
	}
	f.blockSize = minBlockSize << logSize
	switch {
	case f.inodeSize < 128 || f.inodeSize > f.blockSize || f.inodeSize&(f.inodeSize-1) != 0:
		return nil, fmt.Errorf("%w: inodes of %d bytes", errCorrupt, f.inodeSize)
	case f.descSize < 32 || f.descSize > f.blockSize || f.descSize&(f.descSize-1) != 0:
		return nil, fmt.Errorf("%w: group descriptors of %d bytes", errCorrupt, f.descSize)
	case f.blocksPerGroup == 0 || f.inodesPerGroup == 0 || f.blocks > math.MaxInt64/maxBlockSize:
		return nil, fmt.Errorf("%w: %d blocks, %d and %d inodes in a group", errCorrupt, f.blocks, f.blocksPerGroup, f.inodesPerGroup)
	}
	if incompat&incompatRecover != 0 {
		if err := f.loadJournal(le.Uint32(sb[0xe0:])); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	return f, nil
}

// Label is the file system's name, which may be empty.
func (f *FS) Label() string { return f.label }

// UUID is the file system's, in its usual form.
func (f *FS) UUID() string {
	u := f.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// readBlock fills p with the start of a block.
func (f *FS) readBlock(block uint64, p []byte) error {
	return f.readAt(p, block, 0)
}

// readAt fills p from a place inside a block on, up to its end at most.
func (f *FS) readAt(p []byte, block uint64, inside int64) error {
	if block == 0 || block >= f.blocks {
		return fmt.Errorf("%w: block %d of %d", errCorrupt, block, f.blocks)
	}
	replayed, is := f.journal[block]
	if is {
		block = replayed.at
	}
	if _, err := f.r.ReadAt(p, int64(block)*f.blockSize+inside); err != nil {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	if is && replayed.escaped && inside < 4 {
		copy(p, journalMagic[inside:])
	}
	return nil
}

// inode is what is needed of one.
type inode struct {
	number uint32
	mode   uint16
	flags  uint32
	size   int64
	block  [60]byte
}

func (f *FS) inode(number uint32) (*inode, error) {
	if number == 0 || number > f.inodes {
		return nil, fmt.Errorf("%w: inode %d of %d", errCorrupt, number, f.inodes)
	}
	table, err := f.inodeTable(uint64((number - 1) / f.inodesPerGroup))
	if err != nil {
		return nil, err
	}
	at := int64((number-1)%f.inodesPerGroup) * f.inodeSize
	var p [128]byte
	if err := f.readAt(p[:], table+uint64(at/f.blockSize), at%f.blockSize); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	i := &inode{number: number, mode: le.Uint16(p[0:]), flags: le.Uint32(p[0x20:]), block: [60]byte(p[0x28:0x64])}
	size := uint64(le.Uint32(p[4:])) | uint64(le.Uint32(p[0x6c:]))<<32
	if size > math.MaxInt64 {
		return nil, fmt.Errorf("%w: inode %d has a size of %d bytes", errCorrupt, number, size)
	}
	i.size = int64(size)
	return i, nil
}

// inodeTable is the first block of a group's inodes.
func (f *FS) inodeTable(group uint64) (uint64, error) {
	perBlock := uint64(f.blockSize / f.descSize)
	index := group / perBlock // of the block of descriptors
	block := f.firstData + 1 + index
	if f.metaBG && index >= f.firstMetaBG {
		// The descriptors of as many groups as fit a block are in the first of these.
		first := index * perBlock
		block = f.firstData + first*f.blocksPerGroup
		if f.hasSuper(first) {
			block++
		}
	}
	var p [64]byte
	d := p[:min(f.descSize, 64)]
	if err := f.readAt(d, block, int64(group%perBlock)*f.descSize); err != nil {
		return 0, err
	}
	table := uint64(binary.LittleEndian.Uint32(d[8:]))
	if f.wide && len(d) == 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	return table, nil
}

// hasSuper tells whether a group begins with a copy of the superblock.
func (f *FS) hasSuper(group uint64) bool {
	if !f.sparse || group <= 1 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

// run finds the blocks of a file from block on: n blocks from at on, or a hole of n blocks if at is 0.
func (f *FS) run(i *inode, block uint64) (at, n uint64, err error) {
	if i.flags&inodeExtents == 0 {
		at, err = f.indirect(i, block)
		return at, 1, err
	}
	node := i.block[:]
	le := binary.LittleEndian
	end := uint64(math.MaxUint32) + 1 // of the piece of the file that the node is for
	for depth := 0; ; depth++ {
		count, levels := int(le.Uint16(node[2:])), le.Uint16(node[6:])
		if le.Uint16(node) != 0xf30a || count > len(node)/12-1 || depth > maxDepth || int(levels) > maxDepth-depth {
			return 0, 0, fmt.Errorf("%w: extents of inode %d", errCorrupt, i.number)
		}
		// The last entry that does not begin behind the block.
		k := 0
		for k < count && uint64(le.Uint32(node[12+12*k:])) <= block {
			k++
		}
		if k < count {
			end = min(end, uint64(le.Uint32(node[12+12*k:])))
		}
		if k == 0 {
			return 0, end - block, nil
		}
		entry := node[12*k : 12*k+12]
		if levels > 0 {
			child := uint64(le.Uint32(entry[4:])) | uint64(le.Uint16(entry[8:]))<<32
			next := make([]byte, f.blockSize)
			if err := f.readBlock(child, next); err != nil {
				return 0, 0, err
			}
			node = next
			continue
		}
		first, length := uint64(le.Uint32(entry)), uint64(le.Uint16(entry[4:]))
		start := uint64(le.Uint32(entry[8:])) | uint64(le.Uint16(entry[6:]))<<32
		unwritten := length > 1<<15
		if unwritten {
			length -= 1 << 15
		}
		switch {
		case block >= first+length:
			return 0, end - block, nil
		case unwritten:
			return 0, first + length - block, nil
		}
		return start + block - first, first + length - block, nil
	}
}

// indirect finds a block of a file that has no extents.
func (f *FS) indirect(i *inode, block uint64) (uint64, error) {
	le := binary.LittleEndian
	if block < 12 {
		return uint64(le.Uint32(i.block[4*block:])), nil
	}
	block -= 12
	per := uint64(f.blockSize / 4)
	span := per // blocks that the tree is for
	for level := range uint64(3) {
		if block >= span {
			block -= span
			span *= per
			continue
		}
		at := uint64(le.Uint32(i.block[4*(12+level):]))
		for at != 0 {
			span /= per
			var p [4]byte
			if err := f.readAt(p[:], at, int64(block/span)*4); err != nil {
				return 0, err
			}
			at = uint64(le.Uint32(p[:]))
			block %= span
			if span == 1 {
				return at, nil
			}
		}
		return 0, nil
	}
	return 0, fmt.Errorf("%w: block %d of inode %d", errCorrupt, block, i.number)
}

// File is a regular file that can be read.
type File struct {
	f *FS
	i *inode
}

// Size is in bytes.
func (file *File) Size() int64 { return file.i.size }

// ReadAt implements io.ReaderAt.
func (file *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f, done := file.f, 0
	for done < len(p) && off < file.i.size {
		want := min(int64(len(p)-done), file.i.size-off)
		at, n, err := f.run(file.i, uint64(off/f.blockSize))
		if err != nil {
			return done, err
		}
		inside := off % f.blockSize
		if n < uint64(math.MaxInt64/f.blockSize) {
			want = min(want, int64(n)*f.blockSize-inside)
		}
		q := p[done : done+int(want)]
		if at == 0 {
			clear(q)
		} else if want, err = f.readRun(q, at, inside); err != nil {
			return done, err
		}
		done += int(want)
		off += want
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readRun reads from a place inside a block on, over the blocks behind it, as far as they are not in the journal.
func (f *FS) readRun(p []byte, block uint64, inside int64) (int64, error) {
	n := min(f.blockSize-inside, int64(len(p)))
	if len(f.journal) > 0 {
		return n, f.readAt(p[:n], block, inside)
	}
	blocks := uint64((inside + int64(len(p)) + f.blockSize - 1) / f.blockSize)
	if block == 0 || block >= f.blocks || blocks > f.blocks-block {
		return 0, fmt.Errorf("%w: blocks %d+%d of %d", errCorrupt, block, blocks, f.blocks)
	}
	if _, err := f.r.ReadAt(p, int64(block)*f.blockSize+inside); err != nil {
		return 0, fmt.Errorf("read block %d: %w", block, err)
	}
	return int64(len(p)), nil
}

// contents reads a whole file of at most limit bytes.
func (f *FS) contents(i *inode, limit int64) ([]byte, error) {
	if i.flags&inodeInline != 0 {
		return nil, fmt.Errorf("inode %d has its contents inside: not supported", i.number)
	}
	if i.size > limit {
		return nil, fmt.Errorf("%w: inode %d has %d bytes, at most %d", errCorrupt, i.number, i.size, limit)
	}
	p := make([]byte, i.size)
	_, err := (&File{f, i}).ReadAt(p, 0)
	return p, err
}

// entry is one of a directory.
type entry struct {
	inode uint32
	name  string
}

// entries reads a directory. The blocks of a hash tree's inside look like empty blocks of entries, as they are meant to.
func (f *FS) entries(i *inode) ([]entry, error) {
	p, err := f.contents(i, maxDirectory)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	var out []entry
	for block := range slices.Chunk(p, int(f.blockSize)) {
		for len(block) >= 8 {
			length, name := int(le.Uint16(block[4:])), int(block[6])
			if f.blockSize == maxBlockSize && (length == 0 || length == 65535) {
				length = len(block)
			}
			if length < 8 || length > len(block) || 8+name > length {
				return nil, fmt.Errorf("%w: directory of inode %d", errCorrupt, i.number)
			}
			if number := le.Uint32(block); number != 0 && name > 0 {
				out = append(out, entry{number, string(block[8 : 8+name])})
			}
			block = block[length:]
		}
	}
	return out, nil
}

// lookup finds the inode of a path from the root, following symbolic links.
func (f *FS) lookup(path string) (*inode, error) {
	left := strings.Split(path, "/")
	at, err := f.inode(rootInode)
	if err != nil {
		return nil, err
	}
	trail := []*inode{at} // from the root to here, for ".."
	for follows := 0; len(left) > 0; {
		name := left[0]
		left = left[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		here := trail[len(trail)-1]
		if here.mode&modeType != modeDir {
			return nil, fs.ErrNotExist
		}
		entries, err := f.entries(here)
		if err != nil {
			return nil, err
		}
		k := slices.IndexFunc(entries, func(e entry) bool { return e.name == name })
		if k < 0 {
			return nil, fs.ErrNotExist
		}
		next, err := f.inode(entries[k].inode)
		if err != nil {
			return nil, err
		}
		if next.mode&modeType != modeSymlink {
			trail = append(trail, next)
			continue
		}
		if follows++; follows > maxFollow {
			return nil, errors.New("too many symbolic links")
		}
		target, err := f.target(next)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			trail = trail[:1]
		}
		left = append(strings.Split(target, "/"), left...)
	}
	return trail[len(trail)-1], nil
}

// target is where a symbolic link leads to.
func (f *FS) target(i *inode) (string, error) {
	if i.size < int64(len(i.block)) && i.flags&(inodeExtents|inodeInline) == 0 || i.flags&inodeInline != 0 && i.size <= int64(len(i.block)) {
		return string(i.block[:i.size]), nil
	}
	p, err := f.contents(i, maxSymlink)
	return string(p), err
}

// Open opens a regular file by its path from the root. Symbolic links are followed, inside this file system. An error that
// is fs.ErrNotExist says that there is none.
func (f *FS) Open(path string) (*File, error) {
	i, err := f.lookup(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case i.mode&modeType != modeRegular:
		return nil, fmt.Errorf("%s: not a regular file", path)
	case i.flags&inodeEncrypted != 0:
		return nil, fmt.Errorf("%s: is encrypted", path)
	case i.flags&inodeInline != 0:
		return nil, fmt.Errorf("%s: its contents are inside its inode: not supported", path)
	}
	return &File{f, i}, nil
}

// ReadDir returns the names in a directory, sorted.
func (f *FS) ReadDir(path string) ([]string, error) {
	i, err := f.lookup(path)
	if err == nil && i.mode&modeType != modeDir {
		err = errors.New("not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	entries, err := f.entries(i)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var names []string
	for _, e := range entries {
		if e.name != "." && e.name != ".." {
			names = append(names, e.name)
		}
	}
	slices.Sort(names)
	return names, nil
}
