package bootparam

import "encoding/binary"

// Sizes and values of the PVH start info (Xen xen/include/public/arch-x86/hvm/start_info.h).
const (
	startInfoMagic   = 0x336e_c578 // "xEn3", with the top bit of its E set
	startInfoVersion = 1           // with a memory map

	startInfoSize   = 56 // struct hvm_start_info
	modlistSize     = 32 // one struct hvm_modlist_entry
	memmapEntrySize = 24 // struct hvm_memmap_table_entry
)

// fillStartInfo fills the page of the start info, which is zero and has the module list and the memory map in it too.
// The types of memory have the numbers of the e820 map. The initrd is empty for none.
func fillStartInfo(page []byte, initrd span, cfg Config) {
	le := binary.LittleEndian

	le.PutUint32(page[0:], startInfoMagic)
	le.PutUint32(page[4:], startInfoVersion)
	if initrd.size() != 0 {
		le.PutUint32(page[12:], 1) // nr_modules
		le.PutUint64(page[16:], uint64(modlistAddr))
		module := page[modlistAddr-startInfoAddr:][:modlistSize]
		le.PutUint64(module, uint64(initrd.start))
		le.PutUint64(module[8:], initrd.size())
	}
	le.PutUint64(page[24:], uint64(cmdlineAddr))
	le.PutUint64(page[32:], uint64(cfg.RSDP))
	le.PutUint64(page[40:], uint64(memmapAddr))
	le.PutUint32(page[48:], uint32(len(cfg.E820)))
	for i, e := range cfg.E820 {
		p := page[int(memmapAddr-startInfoAddr)+i*memmapEntrySize:]
		le.PutUint64(p, uint64(e.Addr))
		le.PutUint64(p[8:], e.Size)
		le.PutUint32(p[16:], uint32(e.Type))
	}
}
