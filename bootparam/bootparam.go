// Package bootparam loads a Linux/x86 kernel into guest memory and builds what the boot protocols want to find there.
//
// Two kinds of kernel file are known. A bzImage is entered by the 64-bit boot protocol or, if it has no 64-bit entry
// point, by the 32-bit one (Linux Documentation/arch/x86/boot.rst). An ELF file (vmlinux) is entered by PVH (Xen
// docs/misc/pvh.pandoc) if a note in it says where, else at its own entry point as the 64-bit boot protocol has it.
//
// The package starts nothing and keeps nothing: [Load] is a function from files and values to bytes in guest memory and
// an [Entry], the state that the first vCPU must start with. Where the bytes go is in layout.go.
package bootparam

import (
	"io"

	"vmm/memory"
)

// Image is a file to boot from. [Load] reads it straight into guest memory, so that no second copy of it exists.
type Image interface {
	io.ReaderAt
	Size() int64
}

// Config says what to boot.
type Config struct {
	// Kernel is a bzImage or an ELF file.
	Kernel Image
	// Initrd is the initial RAM disk; nil for none.
	Initrd Image
	// Cmdline is the kernel's command line, without a terminating NUL.
	Cmdline string
	// E820 is the memory map that the kernel gets, sorted by address and without overlap. Only what is E820RAM here and
	// RAM in the guest's memory too is written to.
	E820 []E820Entry
	// RSDP is where the ACPI tables begin; 0 for none.
	RSDP memory.GPA
}

// Protocol is the way in which a kernel is entered.
type Protocol int

// Protocols.
const (
	Linux64 Protocol = iota + 1 // the 64-bit boot protocol, boot.rst §"64-bit Boot Protocol"
	Linux32                     // the 32-bit boot protocol, boot.rst §"32-bit Boot Protocol"
	PVH                         // docs/misc/pvh.pandoc of Xen
)

// String returns the protocol's name.
func (p Protocol) String() string {
	switch p {
	case Linux64:
		return "64-bit boot protocol"
	case Linux32:
		return "32-bit boot protocol"
	case PVH:
		return "PVH"
	}
	return "unknown boot protocol"
}

// Entry is the state in which the first vCPU enters the kernel. Registers that it does not name are zero, interrupts are
// off, and control registers follow from the protocol: CR0.PE alone for [Linux32] and [PVH]; for [Linux64] CR0.PE and
// CR0.PG, CR4.PAE, EFER.LME and EFER.LMA.
type Entry struct {
	Protocol Protocol
	RIP      uint64
	RSI      uint64 // the zero page; 0 for PVH
	RBX      uint64 // the PVH start info; 0 for the others
	CR3      uint64 // page tables that map the first 4 GiB to themselves, for Linux64; 0 for the others

	GDT      memory.GPA // the GDT that holds the segments below
	GDTLimit uint16     // its size in bytes, less one
	CS       Segment
	DS       Segment // for ES, FS, GS and SS too
	TR       Segment
}
