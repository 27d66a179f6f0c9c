package bootparam

import "vmm/memory"

// E820Type is what a range of the memory map is (ACPI 6.5 §15, table 15.1).
type E820Type uint32

// Types of memory.
const (
	E820RAM      E820Type = 1
	E820Reserved E820Type = 2
	E820ACPI     E820Type = 3 // ACPI tables, RAM once the guest has read them
	E820NVS      E820Type = 4 // kept over a sleep
)

// E820Entry is one range of the memory map.
type E820Entry struct {
	Addr memory.GPA
	Size uint64 // bytes
	Type E820Type
}
