package bootparam

import "encoding/binary"

// Page-table entries (Intel SDM vol. 3A §4.5.4).
const (
	ptePresent  = 1 << 0
	pteWritable = 1 << 1
	pteLarge    = 1 << 7 // a page directory entry that maps 2 MiB

	ptesPerTable  = 512
	largePageSize = 2 << 20
)

// writePageTables writes tables that map [0, mappedEnd) to itself to pml4, pdpt and pd, which are zero. The addresses
// in them are those of layout.go.
func writePageTables(pml4, pdpt, pd []byte) {
	const table = ptePresent | pteWritable
	binary.LittleEndian.PutUint64(pml4, uint64(pdptAddr)|table)
	for addr := uint64(0); addr < uint64(mappedEnd); addr += largePageSize {
		i := addr / largePageSize
		binary.LittleEndian.PutUint64(pd[8*i:], addr|table|pteLarge)
		if i%ptesPerTable == 0 {
			gib := i / ptesPerTable
			binary.LittleEndian.PutUint64(pdpt[8*gib:], uint64(pdAddr)+gib*pageSize|table)
		}
	}
}
