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
	"math"
	"slices"

	"vmm/memory"
)

// Range is a range of ports or addresses.
type Range struct {
	Start, Size uint64
}

// within reports whether the range is not empty and lies in [lo, hi).
func (r Range) within(lo, hi uint64) bool {
	return r.Size > 0 && r.Start >= lo && r.Start < hi && r.Size <= hi-r.Start
}

// String returns the range as an error message has it.
func (r Range) String() string { return fmt.Sprintf("[%#x, +%#x)", r.Start, r.Size) }

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

// Config is what the tables tell. The ranges must not overlap each other or RAM.
type Config struct {
	// Base is where the tables will be: below 4 GiB, and a multiple of 64. The RSDP is at its start.
	Base memory.GPA

	// LAPICIDs are the local APIC IDs, one for each vCPU: ascending, and at most 4096 of them. IDs from 255 on are those
	// of x2APICs.
	LAPICIDs      []uint32
	LocalAPICAddr uint32
	IOAPICAddr    uint32 // an I/O APIC with ID 0 and 24 pins, for the GSIs from zero on

	SCI         uint8 // its ISA interrupt and GSI: level-triggered, active high
	PM          PM
	Reset       Reset
	SleepTypeS5 uint8 // SLP_TYP of soft off

	ECAM    Range    // configuration space, a MiB a bus from bus 0 on, below 4 GiB
	IO      Range    // ports for the BARs of PCI devices, above the configuration ports
	MMIO32  Range    // memory for them between 1 MiB and 4 GiB
	MMIO64  Range    // memory for them above 4 GiB; of size zero for none
	INTxGSI [4]uint8 // device d's pin p (INTA is 0) is wired to INTxGSI[(d+p)%4]

	COM1 Port // the serial port; of size zero for none
	RTC  Port // the clock; of size zero for none
}

// Port is a device of the PC's, with a few ports and an ISA interrupt.
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
	if l.base+uint64(len(l.bytes)) > 4*gib {
		return Tables{}, fmt.Errorf("acpi tables: at %#x they end beyond 4 GiB", uint64(cfg.Base))
	}
	return Tables{Bytes: l.bytes, RSDP: memory.GPA(rsdp)}, nil
}

// Limits of a [Config].
const (
	maxProcessors = 1 << 12 // three hexadecimal digits in the name of each one's device
	isaIRQs       = 16
	ioapicPins    = 24

	pciConfigPort  = 0xcf8 // CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2)
	pciConfigPorts = 8
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func (c *Config) check() error {
	switch {
	case c.Base%facsAlign != 0:
		return fmt.Errorf("acpi tables: base %#x is not a multiple of %d", uint64(c.Base), facsAlign)
	case c.Base >= 4*gib:
		return fmt.Errorf("acpi tables: base %#x is not below 4 GiB", uint64(c.Base))
	case len(c.LAPICIDs) == 0 || len(c.LAPICIDs) > maxProcessors:
		return fmt.Errorf("acpi tables: %d processors, not 1 to %d", len(c.LAPICIDs), maxProcessors)
	case slices.Contains([]uint16{c.PM.Event, c.PM.Control, c.PM.Timer, c.Reset.Port}, 0):
		return errors.New("acpi tables: a register of the fixed hardware at port 0, which means none")
	case c.SleepTypeS5 > 7:
		return fmt.Errorf("acpi tables: sleep type %d has more than 3 bits", c.SleepTypeS5)
	case !c.ECAM.within(mib, 4*gib) || c.ECAM.Start%ecamBusSize != 0 || c.ECAM.Size%ecamBusSize != 0 || c.ECAM.Size > 256*ecamBusSize:
		return fmt.Errorf("acpi tables: ECAM %s is not for 1 to 256 buses below 4 GiB", c.ECAM)
	case !c.IO.within(pciConfigPort+pciConfigPorts, 1<<16):
		return fmt.Errorf("acpi tables: PCI ports %s are not above the configuration ports", c.IO)
	case !c.MMIO32.within(mib, 4*gib):
		return fmt.Errorf("acpi tables: 32-bit PCI memory %s is not between 1 MiB and 4 GiB", c.MMIO32)
	case c.MMIO64.Size != 0 && !c.MMIO64.within(4*gib, math.MaxUint64):
		return fmt.Errorf("acpi tables: 64-bit PCI memory %s is not above 4 GiB", c.MMIO64)
	}
	for i, id := range c.LAPICIDs[1:] {
		if id <= c.LAPICIDs[i] {
			return fmt.Errorf("acpi tables: local APIC ID %d after %d", id, c.LAPICIDs[i])
		}
	}
	for _, irq := range []uint8{c.SCI, c.COM1.IRQ, c.RTC.IRQ} {
		if irq >= isaIRQs {
			return fmt.Errorf("acpi tables: ISA interrupt %d", irq)
		}
	}
	for _, gsi := range c.INTxGSI {
		if gsi >= ioapicPins {
			return fmt.Errorf("acpi tables: PCI interrupt at GSI %d of an I/O APIC with %d pins", gsi, ioapicPins)
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
const ecamBusSize = mib

// mcfg tells where ECAM is (PCI Firmware Specification 3.3 §4.1.2).
func mcfg(cfg Config) []byte {
	body := make([]byte, 8+16)
	binary.LittleEndian.PutUint64(body[8:], cfg.ECAM.Start)
	body[8+11] = cfg.lastBus()
	return table("MCFG", 1, body)
}

func (c *Config) lastBus() uint8 { return uint8(c.ECAM.Size/ecamBusSize - 1) }
