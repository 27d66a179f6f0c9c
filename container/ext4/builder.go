package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

var le = binary.LittleEndian

// builder is the making of one file system.
type builder struct {
	w       io.WriterAt
	options Options
	nodes   []*Node // by their inodes: the root, then from firstInode on
	parents []*Node // of the nodes

	groups         uint32
	blocks         uint32 // in all
	inodesPerGroup uint32
	blockBitmaps   uint32 // the first of as many blocks as there are groups
	inodeBitmaps   uint32
	tables         uint32
	next           uint32 // the first free block: all before it are in use, none behind it

	inodes bytes.Buffer // of the table, from the first inode on that is not yet written
	at     int64        // where they go
	buf    [256 * blockSize]byte
	// dirs counts the directories of each group.
	dirs []uint32
}

// plan lays the metadata out.
func (b *builder) plan() error {
	blocks := b.options.Size / blockSize
	if blocks > maxBlocks {
		return fmt.Errorf("a file system of %d bytes: at most %d", b.options.Size, int64(maxBlocks)*blockSize)
	}
	b.blocks = uint32(blocks)
	b.groups = (b.blocks + blocksPerGroup - 1) / blocksPerGroup
	if b.groups == 0 {
		return b.noRoom()
	}
	inodes := max(uint32(b.options.Size/bytesPerInode), firstInode+uint32(len(b.nodes)))
	perGroup := (inodes + b.groups - 1) / b.groups
	b.inodesPerGroup = (perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
	if b.inodesPerGroup > blocksPerGroup {
		return b.noRoom()
	}
	b.blockBitmaps = 1 + (b.groups+descriptors-1)/descriptors
	b.inodeBitmaps = b.blockBitmaps + b.groups
	b.tables = b.inodeBitmaps + b.groups
	end := uint64(b.tables) + uint64(b.groups)*uint64(b.inodesPerGroup/inodesPerBlock)
	if end+journalBlocks > uint64(b.blocks) {
		return b.noRoom()
	}
	b.next = uint32(end)
	b.dirs = make([]uint32, b.groups)
	return nil
}

func (b *builder) noRoom() error {
	return fmt.Errorf("%d files do not fit into a file system of %d bytes", len(b.nodes), b.options.Size)
}

// alloc takes that many blocks, which follow each other.
func (b *builder) alloc(n int64) (first uint32, err error) {
	if n > int64(b.blocks-b.next) {
		return 0, b.noRoom()
	}
	first = b.next
	b.next += uint32(n)
	return first, nil
}

// write writes all that is not zero.
func (b *builder) write() error {
	b.at = int64(b.tables) * blockSize
	if err := b.reserved(1, rootInode-1); err != nil {
		return err
	}
	for i, n := range b.nodes {
		if i == 1 {
			if err := b.reserved(rootInode+1, firstInode-1); err != nil {
				return err
			}
		}
		if err := b.node(n, b.parents[i]); err != nil {
			return err
		}
	}
	if len(b.nodes) == 1 {
		if err := b.reserved(rootInode+1, firstInode-1); err != nil {
			return err
		}
	}
	if err := b.flushInodes(0); err != nil {
		return err
	}
	if err := b.bitmaps(); err != nil {
		return err
	}
	return b.superblock()
}

// reserved writes the inodes that no file has, the journal's among them.
func (b *builder) reserved(from, to uint32) error {
	for i := from; i <= to; i++ {
		ino := inode{}
		if i == journalInode {
			first, err := b.alloc(journalBlocks)
			if err != nil {
				return err
			}
			if _, err := b.w.WriteAt(journalSuperblock(b.options.UUID), int64(first)*blockSize); err != nil {
				return err
			}
			ino.mode, ino.links, ino.size = typeFile|0o600, 1, journalBlocks*blockSize
			if err := b.extents(&ino, first, journalBlocks); err != nil {
				return err
			}
		}
		b.inodes.Write(ino.encode())
	}
	return nil
}

// node writes the node's inode and what belongs to it.
func (b *builder) node(n, parent *Node) error {
	ino := inode{mode: n.Mode, uid: n.UID, gid: n.GID, links: n.links, modified: n.Modified}
	var err error
	switch n.Mode & typeMask {
	case typeDir:
		b.dirs[(n.number-1)/b.inodesPerGroup]++
		if ino.links > maxLinks {
			ino.links = 1 // many (feature dir_nlink)
		}
		err = b.contents(&ino, bytes.NewReader(directory(n, parent)))
	case typeFile:
		if n.Size > 0 {
			err = b.contents(&ino, io.NewSectionReader(n.Data, 0, n.Size))
		} else {
			ino.flags, ino.block = extentsFlag, extentHeader(0, extentsInInode, 0)
		}
	case typeLink:
		if ino.size = int64(len(n.Target)); ino.size < int64(len(ino.block)) {
			copy(ino.block[:], n.Target)
		} else {
			err = b.contents(&ino, bytes.NewReader([]byte(n.Target)))
		}
	case typeChar, typeBlock:
		if n.Major < 256 && n.Minor < 256 {
			le.PutUint32(ino.block[0:], n.Major<<8|n.Minor)
		} else {
			le.PutUint32(ino.block[4:], n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
		}
	}
	if err == nil {
		err = b.xattrs(&ino, n.Xattrs)
	}
	if err != nil {
		return err
	}
	b.inodes.Write(ino.encode())
	return b.flushInodes(1 << 20)
}

// flushInodes writes the inodes that have come together, if they are more than limit bytes.
func (b *builder) flushInodes(limit int) error {
	if b.inodes.Len() <= limit {
		return nil
	}
	n, err := b.w.WriteAt(b.inodes.Bytes(), b.at)
	b.at += int64(n)
	b.inodes.Reset()
	return err
}

// sized is data that knows its size.
type sized interface {
	io.Reader
	Size() int64
}

// contents writes data to blocks of its own, and tells the inode.
func (b *builder) contents(ino *inode, data sized) error {
	ino.size = data.Size()
	count := (ino.size + blockSize - 1) / blockSize
	first, err := b.alloc(count)
	if err != nil {
		return err
	}
	at := int64(first) * blockSize
	for left := ino.size; left > 0; {
		piece := b.buf[:min(left, int64(len(b.buf)))]
		if _, err := io.ReadFull(data, piece); err != nil {
			return err
		}
		if err := b.writeNonzero(piece, at); err != nil {
			return err
		}
		at += int64(len(piece))
		left -= int64(len(piece))
	}
	return b.extents(ino, first, uint32(count))
}

// writeNonzero leaves out the blocks that hold nothing but zeros, which are there already.
func (b *builder) writeNonzero(data []byte, at int64) error {
	var zeros [blockSize]byte
	for len(data) > 0 {
		n := 0 // bytes up to a block of zeros
		for n < len(data) && !bytes.Equal(data[n:min(n+blockSize, len(data))], zeros[:min(blockSize, len(data)-n)]) {
			n = min(n+blockSize, len(data))
		}
		if n > 0 {
			if _, err := b.w.WriteAt(data[:n], at); err != nil {
				return err
			}
		}
		n = min(n+blockSize, len(data))
		data, at = data[n:], at+int64(n)
	}
	return nil
}

// extents has the inode's blocks be count ones from first on.
func (b *builder) extents(ino *inode, first, count uint32) error {
	ino.flags |= extentsFlag
	ino.sectors += uint64(count) * (blockSize / 512)
	var all []byte
	for logical := uint32(0); logical < count; logical += maxExtent {
		all = le.AppendUint32(all, logical)
		all = le.AppendUint16(all, uint16(min(maxExtent, count-logical)))
		all = le.AppendUint16(all, 0)
		all = le.AppendUint32(all, first+logical)
	}
	n := len(all) / 12
	if n <= extentsInInode {
		ino.block = extentHeader(n, extentsInInode, 0)
		copy(ino.block[12:], all)
		return nil
	}
	leaves := (n + extentsInBlock - 1) / extentsInBlock
	ino.block = extentHeader(leaves, extentsInInode, 1)
	for i := range leaves {
		at, err := b.alloc(1)
		if err != nil {
			return err
		}
		ino.sectors += blockSize / 512
		part := all[i*extentsInBlock*12 : min((i+1)*extentsInBlock*12, len(all))]
		header := extentHeader(len(part)/12, extentsInBlock, 0)
		if _, err := b.w.WriteAt(append(header[:12:12], part...), int64(at)*blockSize); err != nil {
			return err
		}
		index := ino.block[12+12*i:]
		copy(index, part[:4])
		le.PutUint32(index[4:], at)
	}
	return nil
}

// directory is a directory's contents: blocks, whose last entry reaches to their end.
func directory(n, parent *Node) []byte {
	var out []byte
	last := -1 // where the last entry begins
	add := func(number uint32, mode uint16, name string) {
		size := (8 + len(name) + 3) &^ 3
		if used := len(out) % blockSize; last >= 0 && used != 0 && used+size > blockSize {
			rest := blockSize - used
			le.PutUint16(out[last+4:], le.Uint16(out[last+4:])+uint16(rest))
			out = append(out, make([]byte, rest)...)
		}
		last = len(out)
		out = le.AppendUint32(out, number)
		out = le.AppendUint16(out, uint16(size))
		out = append(out, byte(len(name)), entryType(mode))
		out = append(out, name...)
		out = append(out, make([]byte, last+size-len(out))...)
	}
	add(n.number, typeDir, ".")
	add(parent.number, typeDir, "..")
	for _, name := range slices.Sorted(maps.Keys(n.Children)) {
		child := n.Children[name]
		add(child.number, child.Mode, name)
	}
	if rest := -len(out) & (blockSize - 1); rest > 0 {
		le.PutUint16(out[last+4:], le.Uint16(out[last+4:])+uint16(rest))
		out = append(out, make([]byte, rest)...)
	}
	return out
}

// bitmaps writes the bitmaps of all groups and what the groups' descriptors say.
func (b *builder) bitmaps() error {
	usedInodes := firstInode - 1 + uint32(len(b.nodes)-1)
	table := make([]byte, b.groups*descriptorSize)
	for g := range b.groups {
		size := min(blocksPerGroup, b.blocks-g*blocksPerGroup)
		usedBlocks := clamp(b.next, g*blocksPerGroup, size)
		inodes := clamp(usedInodes, g*b.inodesPerGroup, b.inodesPerGroup)
		for _, m := range []struct{ at, used, size uint32 }{
			{b.blockBitmaps + g, usedBlocks, size}, {b.inodeBitmaps + g, inodes, b.inodesPerGroup},
		} {
			if _, err := b.w.WriteAt(bitmap(m.used, m.size), int64(m.at)*blockSize); err != nil {
				return err
			}
		}
		d := table[g*descriptorSize:]
		le.PutUint32(d[0x0:], b.blockBitmaps+g)
		le.PutUint32(d[0x4:], b.inodeBitmaps+g)
		le.PutUint32(d[0x8:], b.tables+g*(b.inodesPerGroup/inodesPerBlock))
		le.PutUint16(d[0xc:], uint16(size-usedBlocks))
		le.PutUint16(d[0xe:], uint16(b.inodesPerGroup-inodes))
		le.PutUint16(d[0x10:], uint16(b.dirs[g]))
	}
	_, err := b.w.WriteAt(table, blockSize)
	return err
}

// clamp is how many of size things from first on are before end.
func clamp(end, first, size uint32) uint32 {
	if end <= first {
		return 0
	}
	return min(end-first, size)
}

// bitmap is a block with that many bits set at its start, and those from size on, which stand for nothing.
func bitmap(used, size uint32) []byte {
	m := make([]byte, blockSize)
	set := func(from, to uint32) {
		for ; from < to; from++ {
			if from%8 == 0 && to-from >= 8 {
				m[from/8] = 0xff
				from += 7
				continue
			}
			m[from/8] |= 1 << (from % 8)
		}
	}
	set(0, used)
	set(size, blocksPerGroup)
	return m
}

func (b *builder) superblock() error {
	var s [1024]byte
	inodes := b.groups * b.inodesPerGroup
	for at, v := range map[int]uint32{
		0x00: inodes, 0x04: b.blocks, 0x0c: b.blocks - b.next, 0x10: inodes - (firstInode - 1) - uint32(len(b.nodes)-1),
		0x18: 2 /* 1024<<2 bytes a block */, 0x1c: 2, 0x20: blocksPerGroup, 0x24: blocksPerGroup, 0x28: b.inodesPerGroup,
		0x4c: 1 /* dynamic revision */, 0x54: firstInode,
		0x5c: compatJournal | compatXattr | compatDirIdx | compatSparse2, 0x60: incompatFiletype | incompatExtents | incompatFlexBG,
		0x64: roLargeFile | roHugeFile | roDirNlink | roExtraIsize, 0xe0: journalInode,
		0x160: 1, // names are hashed as signed characters
	} {
		le.PutUint32(s[at:], v)
	}
	for at, v := range map[int]uint16{
		0x36: 0xffff /* mounts before a check: any number */, 0x38: 0xef53, 0x3a: 1 /* clean */, 0x3c: 1 /* errors: continue */, 0x58: inodeSize,
		0x15c: extraSize, 0x15e: extraSize,
	} {
		le.PutUint16(s[at:], v)
	}
	s[0xfc] = 1 // half MD4, for the indexes of directories
	s[0x174] = groupsPerFlex
	copy(s[0x68:], b.options.UUID[:])
	copy(s[0xec:], b.options.UUID[:]) // the seed of the directories' hash
	_, err := b.w.WriteAt(s[:], superOffset)
	return err
}

// journalSuperblock is the first block of an empty journal (§3.6; big-endian).
func journalSuperblock(uuid [16]byte) []byte {
	be := binary.BigEndian
	s := make([]byte, 1024)
	be.PutUint32(s[0x0:], 0xc03b3998)
	be.PutUint32(s[0x4:], 4) // superblock, version 2
	be.PutUint32(s[0xc:], blockSize)
	be.PutUint32(s[0x10:], journalBlocks)
	be.PutUint32(s[0x14:], 1) // the first block of the log
	be.PutUint32(s[0x18:], 1) // the first transaction
	be.PutUint32(s[0x40:], 1) // file systems that use it
	copy(s[0x30:], uuid[:])
	return s
}

var errXattrs = errors.New("extended attributes of more than a block")
