package ext4

// Sizes in bytes, and what follows from them.
const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // as many as a block of bitmap has bits
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	extraSize      = 32                             // of an inode's fields behind the first 128 bytes
	inlineXattrs   = inodeSize - 128 - extraSize    // bytes behind those
	descriptorSize = 32                             // of a group
	descriptors    = blockSize / descriptorSize     // in a block
	maxExtent      = 32768                          // blocks
	extentsInInode = 4                              // of 12 bytes, behind a header of as many
	extentsInBlock = (blockSize - 12) / 12          // 340
	maxFileBlocks  = extentsInBlock * maxExtent * 4 // with one level of leaves below the inode
	journalBlocks  = 8192                           // 32 MiB: what mke2fs gives a small disk
	maxLinks       = 65000                          // of an inode
	maxNameLength  = 255                            // bytes
	maxLinkLength  = blockSize - 1                  // bytes of a symbolic link
	maxBlocks      = 1<<32 - 1                      // without the feature 64bit
	bytesPerInode  = 16 << 10                       // of the file system, as mke2fs has it
	groupsPerFlex  = 4                              // as a power of two
	superOffset    = 1024                           // where the superblock is
	timeEpochBits  = 2                              // of the extra time fields; the others are nanoseconds
)

// Inodes with a meaning (§3.1 of the kernel's documentation of the disk's layout).
const (
	rootInode    = 2
	journalInode = 8
	firstInode   = 11
)

// Features.
const (
	compatJournal = 0x4
	compatXattr   = 0x8
	compatDirIdx  = 0x20
	compatSparse2 = 0x200 // no copies of the superblock: what is lost here is made anew

	incompatFiletype = 0x2
	incompatExtents  = 0x40
	incompatFlexBG   = 0x200 // bitmaps and tables anywhere: all are at the front

	roLargeFile  = 0x2
	roHugeFile   = 0x8
	roDirNlink   = 0x20
	roExtraIsize = 0x40
)

// extentsFlag says that an inode's blocks are told by extents.
const extentsFlag = 0x80000

// File types, of modes (stat(2)) and in directories.
const (
	typeMask   = 0xf000
	typeFIFO   = 0x1000
	typeChar   = 0x2000
	typeDir    = 0x4000
	typeBlock  = 0x6000
	typeFile   = 0x8000
	typeLink   = 0xa000
	typeSocket = 0xc000
)

// entryType is what a directory's entry says of a mode.
func entryType(mode uint16) byte {
	return map[uint16]byte{typeFile: 1, typeDir: 2, typeChar: 3, typeBlock: 4, typeFIFO: 5, typeSocket: 6, typeLink: 7}[mode&typeMask]
}
