package bootparam

import "vmm/memory"

// Where the boot parameters lie, from the bottom up. All of them are in conventional memory, which Linux keeps free of
// its own things until it has copied them; the page at 0 stays the interrupt table and BIOS data area of a PC, and
// what is above lowEnd stays free, because the kernel's real-mode trampolines go to the top of conventional memory.
const (
	gdtAddr       memory.GPA = 0x1000
	startInfoAddr memory.GPA = 0x2000  // PVH: struct hvm_start_info,
	modlistAddr   memory.GPA = 0x2080  // its module list
	memmapAddr    memory.GPA = 0x2100  // and its memory map, 24 bytes for each of 128 entries
	zeroPageAddr  memory.GPA = 0x3000  // struct boot_params
	pml4Addr      memory.GPA = 0x4000  // page tables for the 64-bit entry:
	pdptAddr      memory.GPA = 0x5000  // one page of each level,
	pdAddr        memory.GPA = 0x6000  // and four of page directories, one for each GiB
	cmdlineAddr   memory.GPA = 0x10000 // with a terminating NUL
	lowEnd        memory.GPA = 0x20000 // the end of it all

	lowStart      = gdtAddr
	pageTablesEnd = pdAddr + mappedEnd/largePageSize*8
)

const (
	pageSize = 4096
	// highStart is where memory is "high", as the boot protocol has it: kernel and initrd go there.
	highStart memory.GPA = 1 << 20
	// mappedEnd is the end of what the page tables map, and of what 32-bit code can reach.
	mappedEnd memory.GPA = 4 << 30

	// maxCmdline is the longest command line that there is room for, without the NUL.
	maxCmdline = uint64(lowEnd-cmdlineAddr) - 1
)
