package bootparam

import (
	"encoding/binary"

	"vmm/memory"
)

// Offsets in the zero page, struct boot_params (Linux Documentation/arch/x86/zero-page.rst). Those of the setup header
// are the same in a bzImage.
const (
	offRSDP            = 0x070 // acpi_rsdp_addr
	offExtRamdiskImage = 0x0c0 // the upper halves of ramdisk_image and ramdisk_size
	offExtRamdiskSize  = 0x0c4
	offE820Entries     = 0x1e8
	offE820Table       = 0x2d0

	e820EntrySize = 20
)

// fillZeroPage fills page, which is zero: the setup header is header, with what a boot loader must set in it; the
// kernel is at load, and the initrd is empty for none.
func fillZeroPage(page []byte, header *setupHeader, load memory.GPA, initrd span, cfg Config) {
	le := binary.LittleEndian

	copy(page[offSetupHeader:], header[offSetupHeader:])
	le.PutUint16(page[offVidMode:], vidModeNormal)
	page[offTypeOfLoader] = loaderUndefined
	// The heap is for real-mode code, and none of that runs.
	page[offLoadflags] &^= flagCanUseHeap
	le.PutUint16(page[offHeapEndPtr:], 0)
	page[offExtLoaderVer] = 0
	page[offExtLoaderType] = 0
	le.PutUint32(page[offCode32Start:], uint32(load))
	le.PutUint32(page[offCmdLinePtr:], uint32(cmdlineAddr))
	le.PutUint64(page[offSetupData:], 0)
	le.PutUint32(page[offRamdiskImage:], uint32(initrd.start))
	le.PutUint32(page[offRamdiskSize:], uint32(initrd.size()))
	le.PutUint32(page[offExtRamdiskImage:], uint32(initrd.start>>32))
	le.PutUint32(page[offExtRamdiskSize:], uint32(initrd.size()>>32))

	le.PutUint64(page[offRSDP:], uint64(cfg.RSDP))
	page[offE820Entries] = uint8(len(cfg.E820))
	for i, e := range cfg.E820 {
		p := page[offE820Table+i*e820EntrySize:]
		le.PutUint64(p, uint64(e.Addr))
		le.PutUint64(p[8:], e.Size)
		le.PutUint32(p[16:], uint32(e.Type))
	}
}
