package bootparam

import (
	"encoding/binary"
	"fmt"
	"math"

	"vmm/memory"
)

// Offsets of the setup header's fields in a bzImage, as in the zero page (boot.rst §"Details of Header Fields").
const (
	offSetupHeader     = 0x1f1
	offSetupSects      = 0x1f1
	offSyssize         = 0x1f4
	offVidMode         = 0x1fa
	offBootFlag        = 0x1fe
	offJump            = 0x200 // a short jump over the header: its operand says where the header ends
	offHeader          = 0x202
	offVersion         = 0x206
	offTypeOfLoader    = 0x210
	offLoadflags       = 0x211
	offCode32Start     = 0x214
	offRamdiskImage    = 0x218
	offRamdiskSize     = 0x21c
	offHeapEndPtr      = 0x224
	offExtLoaderVer    = 0x226
	offExtLoaderType   = 0x227
	offCmdLinePtr      = 0x228
	offInitrdAddrMax   = 0x22c
	offKernelAlignment = 0x230
	offRelocatable     = 0x234
	offXloadflags      = 0x236
	offCmdlineSize     = 0x238
	offSetupData       = 0x250
	offPrefAddress     = 0x258
	offInitSize        = 0x260

	setupHeaderEnd = 0x290 // the room that struct boot_params has for the header
)

// Values of the fields.
const (
	headerMagic = "HdrS"
	bootFlag    = 0xaa55

	minVersion      = 0x206 // the first with cmdline_size; Linux 2.6.22
	prefVersion     = 0x20a // the first with pref_address and init_size
	xloadVersion    = 0x20c // the first with xloadflags
	setupSectsOfOld = 4     // what setup_sects means by 0

	flagLoadedHigh = 1 << 0 // loadflags
	flagCanUseHeap = 1 << 7

	xlfKernel64  = 1 << 0 // xloadflags: there is a 64-bit entry point
	xlfAbove4GiB = 1 << 1 // the initrd may be anywhere

	vidModeNormal   = 0xffff
	loaderUndefined = 0xff

	sectorSize    = 512
	paragraphSize = 16
	entry64       = 0x200 // the 64-bit entry point, from where the kernel is loaded
)

// setupHeader is the start of a bzImage in which all but the setup header is zero.
type setupHeader [setupHeaderEnd]byte

func (h *setupHeader) u8(off int) uint8   { return h[off] }
func (h *setupHeader) u16(off int) uint16 { return binary.LittleEndian.Uint16(h[off:]) }
func (h *setupHeader) u32(off int) uint32 { return binary.LittleEndian.Uint32(h[off:]) }
func (h *setupHeader) u64(off int) uint64 { return binary.LittleEndian.Uint64(h[off:]) }

// parseSetupHeader takes the setup header from the start of a bzImage, and checks that it has all the fields that its
// version promises and this package reads.
func parseSetupHeader(start [setupHeaderEnd]byte) (*setupHeader, error) {
	end := offJump + 2 + int(start[offJump+1])
	version := binary.LittleEndian.Uint16(start[offVersion:])
	needed := offCmdlineSize + 4
	if version >= prefVersion {
		needed = offInitSize + 4
	}
	switch {
	case version < minVersion:
		return nil, fmt.Errorf("%w: %d.%02d, of which at least %d.%02d is needed",
			ErrOldProtocol, version>>8, version&0xff, minVersion>>8, minVersion&0xff)
	case end < needed || end > setupHeaderEnd:
		return nil, fmt.Errorf("%w: the setup header ends at %#x, which for version %d.%02d must be in [%#x, %#x]",
			ErrCorrupt, end, version>>8, version&0xff, needed, setupHeaderEnd)
	}
	h := setupHeader(start)
	clear(h[:offSetupHeader])
	clear(h[end:])
	if h.u8(offLoadflags)&flagLoadedHigh == 0 {
		return nil, fmt.Errorf("%w: a zImage, which loads below 1 MiB", ErrOldProtocol)
	}
	return &h, nil
}

// findBzImage finds a place for the protected-mode kernel of a bzImage of size bytes that begins with start.
func findBzImage(size int64, start [setupHeaderEnd]byte, ram spans) (*kernel, error) {
	if size < setupHeaderEnd {
		return nil, fmt.Errorf("%w: it has %d bytes, not even its setup header", ErrTruncated, size)
	}
	h, err := parseSetupHeader(start)
	if err != nil {
		return nil, err
	}
	setupSects := int64(h.u8(offSetupSects))
	if setupSects == 0 {
		setupSects = setupSectsOfOld
	}
	off := (1 + setupSects) * sectorSize
	// syssize is rounded up to whole paragraphs, which not all files are; and a signature may follow.
	paragraphs := int64(h.u32(offSyssize))
	fileSize := min(paragraphs*paragraphSize, size-off)
	switch {
	case paragraphs == 0:
		return nil, fmt.Errorf("%w: its syssize is 0", ErrCorrupt)
	case fileSize <= (paragraphs-1)*paragraphSize:
		return nil, fmt.Errorf("%w: it has %d bytes, and its header announces %d",
			ErrTruncated, size, off+paragraphs*paragraphSize)
	}

	place, err := placeBzImage(h, uint64(fileSize), ram)
	if err != nil {
		return nil, err
	}
	k := &kernel{
		protocol:    Linux32,
		entry:       place.start,
		segments:    []segment{{span: place, off: off, size: uint64(fileSize)}},
		header:      *h,
		cmdlineSize: uint64(h.u32(offCmdlineSize)),
		// initrd_addr_max is the highest address that the initrd may occupy.
		initrdLimits: []memory.GPA{memory.GPA(h.u32(offInitrdAddrMax)) + 1},
	}
	if xload := h.u16(offXloadflags); h.u16(offVersion) >= xloadVersion && xload&xlfKernel64 != 0 {
		k.protocol = Linux64
		k.entry += entry64
		if xload&xlfAbove4GiB != 0 {
			k.initrdLimits = append(k.initrdLimits, mappedEnd, math.MaxUint64)
		}
	}
	return k, nil
}

// placeBzImage finds memory for a kernel of fileSize bytes: pref_address if that is free, above it if the kernel is
// relocatable. Even a relocatable kernel never runs below, but moves itself up there; and init_size says what it needs
// from where it runs (boot.rst, init_size).
func placeBzImage(h *setupHeader, fileSize uint64, ram spans) (span, error) {
	start, size := uint64(highStart), fileSize
	if h.u16(offVersion) >= prefVersion {
		start, size = h.u64(offPrefAddress), max(size, uint64(h.u32(offInitSize)))
	}
	place, ok := newSpan(memory.GPA(start), size)
	if !ok || place.end > mappedEnd {
		return span{}, fmt.Errorf("%w: it wants %#x bytes at %#x, beyond 4 GiB", ErrCorrupt, size, start)
	}
	if h.u8(offRelocatable) == 0 {
		return place, checkPlaced(place, place.end, ram)
	}

	align := uint64(h.u32(offKernelAlignment))
	if align == 0 || align&(align-1) != 0 {
		return span{}, fmt.Errorf("%w: its kernel_alignment is %#x, not a power of two", ErrCorrupt, align)
	}
	start = alignUp(max(start, uint64(highStart)), align)
	if found, ok := ram.without(span{0, memory.GPA(start)}).below(mappedEnd).lowest(size, align); ok {
		return found, nil
	}
	place = span{memory.GPA(start), memory.GPA(start + size)}
	return span{}, noRoom(place, place.end)
}
