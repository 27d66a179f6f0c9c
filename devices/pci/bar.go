package pci

import (
	"encoding/binary"
	"fmt"

	"vmm/devices"
)

const numBARs = 6

// BARKind is the kind of space that a BAR asks for.
type BARKind uint8

// The kinds of BAR (PCI Express Base 5.0 §7.5.1.2.1).
const (
	IO    BARKind = iota // I/O ports
	Mem32                // memory below 4 GiB
	Mem64                // memory anywhere; takes two registers
)

// The low bits of a BAR, which are read-only and tell its kind.
const (
	barIO           = 1 << 0
	barMem64        = 2 << 1
	barPrefetchable = 1 << 3

	barIOFlags     = 0x3
	barMemoryFlags = 0xf
)

// Smallest and largest BARs: §7.5.1.2.1 for memory, PCI Local Bus 3.0 §6.2.5.1 for I/O.
const (
	minIOSize     = 4
	maxIOSize     = 256
	minMemorySize = 128
	maxMem32Size  = 1 << 31
	maxMem64Size  = 1 << 62
)

// BAR is a range of ports or memory that the guest places.
type BAR struct {
	Index        int // 0 to 5; a Mem64 takes the next one too
	Kind         BARKind
	Prefetchable bool           // reads have no side effects; memory only
	Size         uint64         // bytes, a power of two
	Device       devices.Device // answers in the range

	// OnMap, if set, is called after the BAR appeared at addr on its bus, and OnUnmap before it leaves it: a
	// transport keeps its ioeventfds there. They are called one at a time, with the root bus locked: they must not
	// block, and must not touch configuration space.
	OnMap, OnUnmap func(addr uint64)

	name string // on the bus
}

// mapping is where a BAR is on its bus.
type mapping struct {
	on   bool
	addr uint64
}

// AddBAR gives the function a BAR. Its address is zero until the guest sets it.
func (f *Function) AddBAR(b BAR) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("pci BAR %d: %s", b.Index, fmt.Sprintf(format, args...))
	}
	registers, flags, enable := 1, uint32(0), uint16(commandMemory)
	smallest, largest := uint64(minMemorySize), uint64(maxMem32Size)
	switch b.Kind {
	case IO:
		flags, enable = barIO, commandIO
		smallest, largest = minIOSize, maxIOSize
	case Mem32:
	case Mem64:
		registers, flags, largest = 2, barMem64, maxMem64Size
	default:
		return fail("kind %d: unknown", b.Kind)
	}
	if b.Prefetchable {
		flags |= barPrefetchable
	}
	switch {
	case f.attached:
		return fail("the function is on its bus already")
	case b.Index < 0 || b.Index+registers > numBARs:
		return fail("needs %d of the registers 0 to %d", registers, numBARs-1)
	case b.Size < smallest || b.Size > largest || b.Size&(b.Size-1) != 0:
		return fail("size %#x: not a power of two from %#x to %#x", b.Size, smallest, largest)
	case b.Kind == IO && b.Prefetchable:
		return fail("I/O space is never prefetchable")
	case b.Device == nil:
		return fail("no device")
	}
	for i := b.Index; i < b.Index+registers; i++ {
		if f.bars[i] != nil || i > 0 && f.bars[i-1] != nil && f.bars[i-1].Kind == Mem64 {
			return fail("register %d is taken", i)
		}
	}
	mask := -b.Size // the address bits, of which the guest may choose all
	le := binary.LittleEndian
	le.PutUint32(f.state.regs[regBAR(b.Index):], flags)
	le.PutUint32(f.writable[regBAR(b.Index):], uint32(mask))
	if b.Kind == Mem64 {
		le.PutUint32(f.writable[regBAR(b.Index+1):], uint32(mask>>32))
	}
	f.allowCommand(enable)
	f.bars[b.Index] = &b
	return nil
}

// regBAR is the register of BAR i.
func regBAR(i int) int { return regBAR0 + 4*i }

// decode returns the address that BAR i holds, and whether the command register enables it. The BAR exists.
func (f *Function) decode(i int) mapping {
	le := binary.LittleEndian
	command := le.Uint16(f.state.regs[regCommand:])
	low := le.Uint32(f.state.regs[regBAR(i):])
	if f.bars[i].Kind == IO {
		return mapping{on: command&commandIO != 0, addr: uint64(low &^ barIOFlags)}
	}
	m := mapping{on: command&commandMemory != 0, addr: uint64(low &^ barMemoryFlags)}
	if f.bars[i].Kind == Mem64 {
		m.addr |= uint64(le.Uint32(f.state.regs[regBAR(i+1):])) << 32
	}
	return m
}
