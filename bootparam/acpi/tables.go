// Package acpi builds the ACPI tables that describe the machine to its guest (ACPI 6.5): RSDP, XSDT, FADT, FACS, MADT,
// MCFG and DSDT, in one block of memory.
//
// The machine has ACPI's fixed hardware (it is not hardware-reduced) and is in ACPI mode from the start, its interrupts
// come by the I/O APIC, and its PCI devices are below one host bridge.
package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmm/memory"
)

// Range is a range of ports or addresses.
type Range struct {
	Start, Size uint64
}

func (r Range) last() uint64 { return r.Start + r.Size - 1 }

// PM is where the fixed hardware's ports are (ACPI 6.5 §4.8.3).
type PM struct {
	Event   uint16 // PM1a_EVT, 4 bytes
	Control uint16 // PM1a_CNT, 2 bytes
	Timer   uint16 // PM_TMR, 4 bytes, 32 bits wide
}

// Reset is the reset register and what resets by being written there.
type Reset struct {
	Port  uint16
	Value uint8
}

// Config is what the tables tell.
type Config struct {
	// Base is where the tables will be: below 4 GiB, and a multiple of 64. The RSDP is at its start.
	Base memory.GPA

	LAPICIDs      []uint32 // one for each vCPU, in the order of their numbers; at most 255, each below 255
	LocalAPICAddr uint32
	IOAPICAddr    uint32 // an I/O APIC with 24 pins, for the GSIs from zero on

	SCI         uint8 // its GSI: level-triggered, active high
	PM          PM
	Reset       Reset
	SleepTypeS5 uint8 // SLP_TYP of soft off

	ECAM    Range    // configuration space, a MiB a bus
	IO      Range    // ports for the BARs of PCI devices
	MMIO32  Range    // memory below 4 GiB for them
	MMIO64  Range    // memory anywhere; of size zero for none
	INTxGSI [4]uint8 // device d's pin p (INTA is 0) is wired to INTxGSI[(d+p)%4]

	COM1 Port // the serial port; of size zero for none
	RTC  Port // the clock; of size zero for none
}

// Port is a device of the PC's with a few ports and an interrupt.
type Port struct {
	Start uint16
	Size  uint8
	IRQ   uint8
}

// Tables are tables ready to be copied into guest memory.
type Tables struct {
	Bytes []byte     // to be put at Config.Base
	RSDP  memory.GPA // the guest searches for it, or is told
}

// maxProcessors is what 8-bit APIC IDs and processor UIDs can name; 255 means all processors.
const maxProcessors = 255

// Build lays the tables out from cfg.Base on.
func Build(cfg Config) (Tables, error) {
	if err := cfg.check(); err != nil {
		return Tables{}, err
	}
	l := layout{base: uint64(cfg.Base)}
	rsdp := l.reserve(rsdpSize)
	facsAddr := l.add(facs())
	dsdtAddr := l.add(dsdt(cfg))
	fadtAddr := l.add(fadt(cfg, facsAddr, dsdtAddr))
	xsdtAddr := l.add(xsdt(fadtAddr, l.add(madt(cfg)), l.add(mcfg(cfg))))
	copy(l.bytes, rsdpTable(xsdtAddr))
	if end := l.base + uint64(len(l.bytes)); end > 1<<32 {
		return Tables{}, fmt.Errorf("acpi tables: they end at %#x, beyond 4 GiB", end)
	}
	return Tables{Bytes: l.bytes, RSDP: memory.GPA(rsdp)}, nil
}

func (c *Config) check() error {
	switch {
	case c.Base%facsAlign != 0:
		return fmt.Errorf("acpi tables: base %#x is not a multiple of %d", uint64(c.Base), facsAlign)
	case len(c.LAPICIDs) == 0 || len(c.LAPICIDs) > maxProcessors:
		return fmt.Errorf("acpi tables: %d processors, not 1 to %d", len(c.LAPICIDs), maxProcessors)
	case c.ECAM.Size == 0 || c.ECAM.Size%ecamBusSize != 0 || c.ECAM.Size > 256*ecamBusSize || c.ECAM.last() >= 1<<32:
		return fmt.Errorf("acpi tables: ECAM [%#x, +%#x) is not for 1 to 256 buses below 4 GiB", c.ECAM.Start, c.ECAM.Size)
	case c.IO.Size == 0 || c.IO.last() > 0xffff:
		return fmt.Errorf("acpi tables: PCI ports [%#x, +%#x)", c.IO.Start, c.IO.Size)
	case c.MMIO32.Size == 0 || c.MMIO32.last() >= 1<<32:
		return fmt.Errorf("acpi tables: 32-bit PCI memory [%#x, +%#x)", c.MMIO32.Start, c.MMIO32.Size)
	case c.MMIO64.Size != 0 && c.MMIO64.last() < c.MMIO64.Start:
		return errors.New("acpi tables: 64-bit PCI memory beyond the address space")
	}
	for _, id := range c.LAPICIDs {
		if id >= maxProcessors {
			return fmt.Errorf("acpi tables: local APIC ID %d needs an x2APIC entry", id)
		}
	}
	return nil
}

// layout collects tables one behind the other, each aligned.
type layout struct {
	base  uint64
	bytes []byte
}

// reserve makes room at the next aligned address, which it returns.
func (l *layout) reserve(n int) uint64 {
	for len(l.bytes)%facsAlign != 0 {
		l.bytes = append(l.bytes, 0)
	}
	addr := l.base + uint64(len(l.bytes))
	l.bytes = append(l.bytes, make([]byte, n)...)
	return addr
}

func (l *layout) add(table []byte) uint64 {
	addr := l.reserve(len(table))
	copy(l.bytes[addr-l.base:], table)
	return addr
}

// The identity in each table's header (ACPI 6.5 §5.2.6).
const (
	oemID           = "VMMGO " // 6 characters
	oemTableID      = "VMM     "
	oemRevision     = 1
	creatorID       = "VMM "
	creatorRevision = 1
	headerSize      = 36
)

// table puts a header before the body: signature, length, revision, checksum, identity.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := make([]byte, 0, headerSize+len(body))
	t = append(t, signature...)
	t = le.AppendUint32(t, uint32(headerSize+len(body)))
	t = append(t, revision, 0)
	t = append(t, oemID+oemTableID...)
	t = le.AppendUint32(t, oemRevision)
	t = append(t, creatorID...)
	t = le.AppendUint32(t, creatorRevision)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of b's bytes zero, where that byte is zero now.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

const rsdpSize = 36

// rsdpTable is the root system description pointer (ACPI 6.5 §5.2.5.3). It names no RSDT, which is for ACPI 1.0.
func rsdpTable(xsdtAddr uint64) []byte {
	le := binary.LittleEndian
	t := make([]byte, rsdpSize)
	copy(t, "RSD PTR ")
	copy(t[9:], oemID)
	t[15] = 2 // revision
	le.PutUint32(t[20:], rsdpSize)
	le.PutUint64(t[24:], xsdtAddr)
	t[8] = checksum(t[:20])
	t[32] = checksum(t)
	return t
}

// xsdt is the extended system description table (§5.2.8).
func xsdt(tables ...uint64) []byte {
	var body []byte
	for _, addr := range tables {
		body = binary.LittleEndian.AppendUint64(body, addr)
	}
	return table("XSDT", 1, body)
}

const (
	facsSize  = 64
	facsAlign = 64
)

// facs is the firmware ACPI control structure (§5.2.10): a global lock that no firmware contends for, and waking vectors
// for sleep states that the machine does not have.
func facs() []byte {
	t := make([]byte, facsSize)
	copy(t, "FACS")
	binary.LittleEndian.PutUint32(t[4:], facsSize)
	t[32] = 2 // version
	return t
}

// ecamBusSize is the configuration space of one bus.
const ecamBusSize = 1 << 20

// mcfg tells where ECAM is (PCI Firmware Specification 3.3 §4.1.2).
func mcfg(cfg Config) []byte {
	body := make([]byte, 8+16)
	binary.LittleEndian.PutUint64(body[8:], cfg.ECAM.Start)
	body[8+11] = cfg.lastBus()
	return table("MCFG", 1, body)
}

func (c *Config) lastBus() uint8 { return uint8(c.ECAM.Size/ecamBusSize - 1) }
