package bootparam

import (
	"fmt"

	"vmm/memory"
)

// E820Type is what a range of the memory map is (ACPI 6.5 §15, table 15.1).
type E820Type uint32

// Types of memory.
const (
	E820RAM      E820Type = 1
	E820Reserved E820Type = 2
	E820ACPI     E820Type = 3 // ACPI tables, RAM once the guest has read them
	E820NVS      E820Type = 4 // ACPI memory that must survive sleep
)

// E820Entry is one range of the memory map.
type E820Entry struct {
	Addr memory.GPA
	Size uint64 // bytes
	Type E820Type
}

// maxE820 is the number of entries that the zero page has room for (E820_MAX_ENTRIES_ZEROPAGE).
const maxE820 = 128

// checkE820 checks what the documentation of [Config] promises the kernel.
func checkE820(e820 []E820Entry) error {
	if len(e820) > maxE820 {
		return fmt.Errorf("memory map: %d entries, of at most %d", len(e820), maxE820)
	}
	var end memory.GPA
	for i, e := range e820 {
		s, ok := newSpan(e.Addr, e.Size)
		if !ok || e.Size == 0 {
			return fmt.Errorf("memory map: entry %d: [%#x, +%#x) is not a range", i, uint64(e.Addr), e.Size)
		}
		if s.start < end {
			return fmt.Errorf("memory map: entry %d: %v begins below %#x, where the one before it ends", i, s, uint64(end))
		}
		end = s.end
	}
	return nil
}
