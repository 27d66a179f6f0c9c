package acpi

import (
	"fmt"

	"vmm/bootparam/acpi/aml"
)

// dsdt is the differentiated system description table: the namespace of devices (ACPI 6.5 §5.2.11.1).
func dsdt(cfg Config) []byte {
	system := []aml.Term{hostBridge(cfg), motherboard(cfg)}
	if cfg.COM1.Size > 0 {
		system = append(system, portDevice("COM1", "PNP0501", cfg.COM1))
	}
	if cfg.RTC.Size > 0 {
		system = append(system, portDevice("RTC_", "PNP0B00", cfg.RTC))
	}
	for uid := range cfg.LAPICIDs {
		system = append(system, aml.Device(fmt.Sprintf("C%03X", uid),
			aml.Name("_HID", aml.String("ACPI0007")),
			aml.Name("_UID", aml.Integer(uint64(uid)))))
	}
	s5 := aml.Integer(uint64(cfg.SleepTypeS5))
	body := append(
		aml.Scope(`\_SB`, system...),
		aml.Name(`\_S5`, aml.Package(s5, s5, aml.Integer(0), aml.Integer(0)))...)
	return table("DSDT", 2, body)
}

// portDevice is a device of the PC's, at its old ports.
func portDevice(name, id string, p Port) aml.Term {
	return aml.Device(name,
		aml.Name("_HID", aml.EISAID(id)),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(aml.IO(p.Start, p.Size), aml.IRQ(p.IRQ))))
}

// motherboard claims what belongs to no other device: ECAM, which Linux uses only where it is reserved here or in the
// memory map (PCI Firmware Specification 3.3 §4.1.2), and the ports of the fixed hardware.
func motherboard(cfg Config) aml.Term {
	return aml.Device("MBRD",
		aml.Name("_HID", aml.EISAID("PNP0C02")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Memory32Fixed(uint32(cfg.ECAM.Start), uint32(cfg.ECAM.Size)),
			aml.IO(cfg.PM.Event, pmEventSize),
			aml.IO(cfg.PM.Control, pmControlSize),
			aml.IO(cfg.PM.Timer, pmTimerSize),
			aml.IO(cfg.Reset.Port, resetSize))))
}

// hostBridge is the PCI Express root (PCI Firmware Specification 3.3 §4).
func hostBridge(cfg Config) aml.Term {
	resources := []aml.Resource{
		aml.BusWindow(0, cfg.lastBus()),
		aml.IO(pciConfigPort, pciConfigPorts),
		aml.IOWindow(uint16(cfg.IO.Start), uint16(cfg.IO.Start+cfg.IO.Size-1)),
		aml.MemoryWindow32(uint32(cfg.MMIO32.Start), uint32(cfg.MMIO32.Size)),
	}
	if cfg.MMIO64.Size > 0 {
		resources = append(resources, aml.MemoryWindow64(cfg.MMIO64.Start, cfg.MMIO64.Size))
	}
	return aml.Device("PCI0",
		aml.Name("_HID", aml.EISAID("PNP0A08")), // PCI Express
		aml.Name("_CID", aml.EISAID("PNP0A03")), // a system that doesn't know it sees PCI
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_SEG", aml.Integer(0)),
		aml.Name("_BBN", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(resources...)),
		aml.Name("_PRT", interruptRouting(cfg)),
		osc())
}

// interruptRouting wires each device's four pins to GSIs for good (_PRT, ACPI 6.5 §6.2.13).
func interruptRouting(cfg Config) aml.Term {
	const devices, pins, allFunctions = 32, 4, 0xffff
	var entries []aml.Term
	for d := range uint64(devices) {
		for pin := range uint64(pins) {
			entries = append(entries, aml.Package(
				aml.Integer(d<<16|allFunctions),
				aml.Integer(pin),
				aml.Integer(0), // no link device:
				aml.Integer(uint64(cfg.INTxGSI[(d+pin)%pins])),
			))
		}
	}
	return aml.Package(entries...)
}

// osc hands over to the system what it asks to control of PCI Express itself, and masks what no device here has, such as
// SHPC hot plug and latency tolerance reporting (_OSC; PCI Firmware Specification 3.3 §4.5.1).
func osc() aml.Term {
	const (
		uuid = "33db4d5b-1ff7-401c-9657-7441c03dd766"

		// The first dword of the answer.
		unknownUUID     = 1 << 2
		unknownRevision = 1 << 3
		masked          = 1 << 4

		// The control field: native hot plug, PME, AER, capability structure.
		granted = 1<<0 | 1<<2 | 1<<3 | 1<<4
	)
	status, control := aml.Path("CDW1"), aml.Path("CDW3")
	refuse := func(bit uint64) aml.Term { return aml.Or(status, aml.Integer(bit), status) }
	return aml.Method("_OSC", 4,
		aml.CreateDWordField(aml.Arg(3), 0, "CDW1"),
		aml.If(aml.Equal(aml.Arg(0), aml.UUID(uuid)),
			aml.CreateDWordField(aml.Arg(3), 8, "CDW3"),
			aml.And(control, aml.Integer(granted), aml.Local(0)),
			aml.If(aml.NotEqual(aml.Arg(1), aml.Integer(1)), refuse(unknownRevision)),
			aml.If(aml.NotEqual(control, aml.Local(0)), refuse(masked)),
			aml.Store(aml.Local(0), control)),
		aml.Else(refuse(unknownUUID)),
		aml.Return(aml.Arg(3)))
}
