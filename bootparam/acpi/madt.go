package acpi

import "encoding/binary"

// Interrupt controller structures of the MADT (ACPI 6.5 table 5.21).
const (
	madtLocalAPIC    = 0
	madtIOAPIC       = 1
	madtOverride     = 2
	madtLocalAPICNMI = 4

	madtPCATCompat = 1 << 0 // there are PICs as well, to be masked

	lapicEnabled = 1 << 0

	activeHigh     = 1 << 0
	levelTriggered = 3 << 2

	allProcessors = 0xff
)

// madt is the multiple APIC description table (§5.2.12). The PIT's IRQ 0 arrives at pin 2 of the I/O APIC, as on every
// PC; the other ISA interrupts are wired one to one.
func madt(cfg Config) []byte {
	le := binary.LittleEndian
	var b []byte
	b = le.AppendUint32(b, cfg.LocalAPICAddr)
	b = le.AppendUint32(b, madtPCATCompat)
	for uid, id := range cfg.LAPICIDs {
		b = append(b, madtLocalAPIC, 8, byte(uid), byte(id))
		b = le.AppendUint32(b, lapicEnabled)
	}
	b = append(b, madtIOAPIC, 12, 0, 0)
	b = le.AppendUint32(b, cfg.IOAPICAddr)
	b = le.AppendUint32(b, 0) // the first GSI
	override := func(irq uint8, gsi uint32, flags uint16) {
		b = append(b, madtOverride, 10, 0, irq)
		b = le.AppendUint32(b, gsi)
		b = le.AppendUint16(b, flags)
	}
	override(0, 2, 0)
	override(cfg.SCI, uint32(cfg.SCI), activeHigh|levelTriggered)
	b = append(b, madtLocalAPICNMI, 6, allProcessors, 0, 0, 1) // LINT1
	return table("APIC", 5, b)
}
