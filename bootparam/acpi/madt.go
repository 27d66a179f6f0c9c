package acpi

import "encoding/binary"

// Types of interrupt controller structures, and their fields (ACPI 6.5 table 5.21).
const (
	madtLocalAPIC      = 0
	madtIOAPIC         = 1
	madtSourceOverride = 2
	madtLocalAPICNMI   = 4
	madtLocalX2APIC    = 9
	madtLocalX2APICNMI = 10

	pcatCompat   = 1 << 0 // there are PICs as well, to be masked
	lapicEnabled = 1 << 0

	busConforming  = 0 // as the bus has it: for ISA edge-triggered and active high
	activeHigh     = 1 << 0
	levelTriggered = 3 << 2

	// All processors at once, as a processor UID.
	allLocalAPICs   = 0xff
	allLocalX2APICs = 0xffff_ffff

	// minX2APICID is the first ID that needs an x2APIC: 255 is the broadcast of the older ones.
	minX2APICID = 255
)

// madt is the multiple APIC description table (§5.2.12). The PIT's IRQ 0 arrives at pin 2 of the I/O APIC, as on every
// PC; the other ISA interrupts are wired one to one. NMIs come in at LINT1.
func madt(cfg Config) []byte {
	le := binary.LittleEndian
	var b []byte
	b = le.AppendUint32(b, cfg.LocalAPICAddr)
	b = le.AppendUint32(b, pcatCompat)

	hasX2APIC := false
	for uid, id := range cfg.LAPICIDs {
		if id < minX2APICID {
			b = append(b, madtLocalAPIC, 8, byte(uid), byte(id))
			b = le.AppendUint32(b, lapicEnabled)
			continue
		}
		hasX2APIC = true
		b = append(b, madtLocalX2APIC, 16, 0, 0)
		b = le.AppendUint32(b, id)
		b = le.AppendUint32(b, lapicEnabled)
		b = le.AppendUint32(b, uint32(uid))
	}

	const ioapicID, firstGSI = 0, 0 // the ID is what its register holds after a reset
	b = append(b, madtIOAPIC, 12, ioapicID, 0)
	b = le.AppendUint32(b, cfg.IOAPICAddr)
	b = le.AppendUint32(b, firstGSI)

	override := func(irq uint8, gsi uint32, flags uint16) {
		b = append(b, madtSourceOverride, 10, 0, irq)
		b = le.AppendUint32(b, gsi)
		b = le.AppendUint16(b, flags)
	}
	override(0, 2, busConforming)
	override(cfg.SCI, uint32(cfg.SCI), activeHigh|levelTriggered)

	const lint1 = 1
	b = append(b, madtLocalAPICNMI, 6, allLocalAPICs, 0, 0, lint1)
	if hasX2APIC {
		b = append(b, madtLocalX2APICNMI, 12, 0, 0)
		b = le.AppendUint32(b, allLocalX2APICs)
		b = append(b, lint1, 0, 0, 0)
	}
	return table("APIC", 6, b)
}
