package bootparam

import "encoding/binary"

// Segment is a segment register as the protocols want it: its base and its DPL are 0, and it is present.
type Segment struct {
	Selector   uint16
	Limit      uint32 // the last valid offset
	Type       uint8  // Intel SDM vol. 3A §3.4.5.1 and §3.5
	CodeOrData bool   // the S flag; clear for a task state segment
	Long       bool   // the L flag: 64-bit code
	Big        bool   // the D/B flag: 32-bit code or stack
	Granular   bool   // the G flag: the descriptor counts the limit in 4 KiB pages
}

// Selectors. boot.rst prescribes __BOOT_CS and __BOOT_DS. A task state segment has two slots in the GDT, as it is 16
// bytes in 64-bit mode.
const (
	selectorCS = 0x10
	selectorDS = 0x18
	selectorTR = 0x20
	gdtSize    = selectorTR + 16
)

// Segment types (Intel SDM vol. 3A, tables 3-1 and 3-2).
const (
	typeData    = 0x3 // read, write, accessed
	typeCode    = 0xb // execute, read, accessed
	typeBusyTSS = 0xb // of a 32-bit task, or of a 64-bit one in 64-bit mode
)

// setSegments sets the flat segments that the protocol of e prescribes. The boot protocols of Linux name no task state
// segment; PVH has the one below, and VMX enters no guest without.
func (e *Entry) setSegments() {
	long := e.Protocol == Linux64
	e.CS = Segment{Selector: selectorCS, Limit: 0xffff_ffff, Type: typeCode, CodeOrData: true, Long: long, Big: !long, Granular: true}
	e.DS = Segment{Selector: selectorDS, Limit: 0xffff_ffff, Type: typeData, CodeOrData: true, Big: true, Granular: true}
	e.TR = Segment{Selector: selectorTR, Limit: 0x67, Type: typeBusyTSS}
}

// writeGDT writes the GDT with the segments of e to p, which is gdtSize bytes of zeroes.
func (e *Entry) writeGDT(p []byte) {
	for _, s := range []Segment{e.CS, e.DS, e.TR} {
		binary.LittleEndian.PutUint64(p[s.Selector:], s.descriptor())
	}
}

// descriptor encodes s (Intel SDM vol. 3A §3.4.5). The upper half of a 16-byte descriptor is zero with the base.
func (s Segment) descriptor() uint64 {
	const present = 1 << 47
	limit := uint64(s.Limit)
	if s.Granular {
		limit >>= 12
	}
	d := present | limit&0xffff | limit>>16&0xf<<48 | uint64(s.Type)<<40
	for _, flag := range []struct {
		set bool
		bit uint
	}{{s.CodeOrData, 44}, {s.Long, 53}, {s.Big, 54}, {s.Granular, 55}} {
		if flag.set {
			d |= 1 << flag.bit
		}
	}
	return d
}
