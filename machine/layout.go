package machine

import (
	"fmt"

	"vmm/bootparam"
	"vmm/devices/pci"
	"vmm/memory"
)

// The guest-physical address map, from the bottom up. Below 1 MiB it is the map of every PC since 1981; above, RAM goes
// up to 3 GiB, then comes the hole that 32-bit devices need, and RAM goes on at 4 GiB.
//
//	0x0000_0000  RAM: boot parameters (package bootparam says what lies where), then free
//	0x0009_FC00  reserved: where a BIOS keeps its extended data area
//	0x000A_0000  nothing: VGA memory and option ROMs on a PC
//	0x000E_0000  reserved: the ACPI tables, where a search for the RSDP looks
//	0x0010_0000  RAM: the kernel, the initrd near the top
//	0xC000_0000  PCI memory window, 512 MiB
//	0xE000_0000  PCI configuration space (ECAM), one bus
//	0xFEC0_0000  I/O APIC
//	0xFEE0_0000  local APIC
//	0xFEFF_C000  KVM's own pages (identity map, TSS): Intel CPUs without "unrestricted guest" need them
//	0xFF00_0000  free: firmware will live here
//	0x1_0000_0000  RAM beyond 3 GiB
//	after it     64-bit PCI memory window
const (
	ebdaStart  = 0x9_fc00
	vgaStart   = 0xa_0000
	acpiStart  = 0xe_0000
	highStart  = 0x10_0000 // "high" as the boot protocol says it: beyond 1 MiB
	pciMMIO32  = 0xc000_0000
	ecamStart  = 0xe000_0000
	ecamSize   = 1 << 20
	ioapicAddr = 0xfec0_0000
	lapicAddr  = 0xfee0_0000
	kvmIDMap   = 0xfeff_c000
	kvmTSS     = 0xfeff_d000
	ram64Start = 0x1_0000_0000

	pciMMIO32Size    = ecamStart - pciMMIO32
	maxPCIMMIO64Size = 64 << 30
)

// I/O ports and interrupt lines that are ours to choose; the other devices have theirs from the PC, and name them
// themselves.
const (
	portCOM1      = 0x3f8
	portPM        = 0x600
	portPCIWindow = 0x1000 // from here to the end: I/O BARs
	pciWindowSize = 0x1_0000 - portPCIWindow

	gsiCOM1 = 4
	gsiSCI  = 9
)

// gsiINTx are the lines that the PCI interrupt pins share.
var gsiINTx = [4]uint8{16, 17, 18, 19}

// layout is the address map of one machine.
type layout struct {
	ram        []memory.Range
	mmio64     uint64 // the 64-bit PCI window
	mmio64Size uint64 // zero where there is no room for it
}

// newLayout places size bytes of RAM in an address space of physBits bits.
func newLayout(size uint64, physBits uint) (layout, error) {
	limit := uint64(1) << physBits
	low := min(size, pciMMIO32)
	l := layout{ram: []memory.Range{{Start: 0, Size: low}}}
	end := uint64(ram64Start)
	if size > low {
		if size-low > limit-ram64Start {
			return layout{}, fmt.Errorf("%d MiB do not fit the %d-bit physical addresses of this CPU (at most %d MiB)",
				size>>20, physBits, (limit-ram64Start+pciMMIO32)>>20)
		}
		l.ram = append(l.ram, memory.Range{Start: ram64Start, Size: size - low})
		end += size - low
	}
	const align = 1 << 30
	l.mmio64 = (end + align - 1) &^ (align - 1)
	if l.mmio64 < limit {
		l.mmio64Size = min(limit-l.mmio64, maxPCIMMIO64Size)
	}
	return l, nil
}

// e820 describes the map to the guest.
func (l layout) e820() []bootparam.E820Entry {
	low := l.ram[0].Size
	e := []bootparam.E820Entry{
		{Addr: 0, Size: ebdaStart, Type: bootparam.E820RAM},
		{Addr: ebdaStart, Size: vgaStart - ebdaStart, Type: bootparam.E820Reserved},
		{Addr: acpiStart, Size: highStart - acpiStart, Type: bootparam.E820Reserved},
		{Addr: highStart, Size: low - highStart, Type: bootparam.E820RAM},
		// Linux trusts ECAM only where the memory map or a motherboard resource reserves it (PCI Firmware 3.3 §4.1.2).
		{Addr: ecamStart, Size: ecamSize, Type: bootparam.E820Reserved},
	}
	for _, r := range l.ram[1:] {
		e = append(e, bootparam.E820Entry{Addr: r.Start, Size: r.Size, Type: bootparam.E820RAM})
	}
	return e
}

// pciWindows are the memory ranges that the PCI host bridge decodes.
func (l layout) pciWindows() []pci.Window {
	w := []pci.Window{{Start: pciMMIO32, Size: pciMMIO32Size}}
	if l.mmio64Size > 0 {
		w = append(w, pci.Window{Start: l.mmio64, Size: l.mmio64Size})
	}
	return w
}
