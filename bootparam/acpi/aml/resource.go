package aml

import (
	"encoding/binary"
	"fmt"
)

// Resource is an encoded resource descriptor (ACPI 6.5 §6.4).
type Resource []byte

// The first byte of a descriptor. That of a small one has its length in the low three bits; in a large one the length
// is the next two bytes.
const (
	tagIRQ           = 0x22
	tagIO            = 0x47
	tagEnd           = 0x79
	tagMemory32Fixed = 0x86
	tagDWordAddress  = 0x87
	tagWordAddress   = 0x88
	tagQWordAddress  = 0x8a
)

// The kinds of an address space descriptor, and its flags (ACPI 6.5 §6.4.3.5).
const (
	spaceMemory = 0
	spaceIO     = 1
	spaceBus    = 2

	// Both ends are fixed, and the device hands the range on to the ones below it: bit 0, consumer, is clear.
	producer = 1<<2 | 1<<3

	memoryReadWrite = 1 << 0 // and not cached
	ioEntireRange   = 3
)

// ResourceTemplate is the buffer with these descriptors and an end tag.
func ResourceTemplate(resources ...Resource) Term {
	var b []byte
	for _, r := range resources {
		b = append(b, r...)
	}
	return Buffer(append(b, tagEnd, 0)) // 0 for the checksum means that it need not be checked
}

// IO is the n ports from port on, which the device itself uses.
func IO(port uint16, n uint8) Resource {
	const decodes16Bits, align = 1, 1
	lo, hi := byte(port), byte(port>>8)
	return Resource{tagIO, decodes16Bits, lo, hi, lo, hi, align, n} // from port to port: there is no choice
}

// IRQ is interrupt n of the PICs, 0 to 15, edge-triggered and active high.
func IRQ(n uint8) Resource {
	if n > 15 {
		panic(fmt.Sprintf("aml: IRQ %d", n))
	}
	return binary.LittleEndian.AppendUint16(Resource{tagIRQ}, 1<<n)
}

// Memory32Fixed is a range below 4 GiB which the device itself uses.
func Memory32Fixed(start, size uint32) Resource {
	r := Resource{tagMemory32Fixed, 9, 0, memoryReadWrite}
	r = binary.LittleEndian.AppendUint32(r, start)
	return binary.LittleEndian.AppendUint32(r, size)
}

// BusWindow is the buses first to last, below a host bridge.
func BusWindow(first, last uint8) Resource {
	return wordWindow(spaceBus, 0, uint16(first), uint16(last))
}

// IOWindow is the ports first to last, below a host bridge: not all of the 65536.
func IOWindow(first, last uint16) Resource {
	return wordWindow(spaceIO, ioEntireRange, first, last)
}

func wordWindow(kind, specific byte, first, last uint16) Resource {
	r := Resource{tagWordAddress, 13, 0, kind, producer, specific}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} { // granularity, range, translation, length
		r = binary.LittleEndian.AppendUint16(r, v)
	}
	return r
}

// MemoryWindow32 is a range below 4 GiB, below a host bridge.
func MemoryWindow32(start, size uint32) Resource {
	r := Resource{tagDWordAddress, 23, 0, spaceMemory, producer, memoryReadWrite}
	for _, v := range []uint32{0, start, start + size - 1, 0, size} {
		r = binary.LittleEndian.AppendUint32(r, v)
	}
	return r
}

// MemoryWindow64 is a range anywhere, below a host bridge.
func MemoryWindow64(start, size uint64) Resource {
	r := Resource{tagQWordAddress, 43, 0, spaceMemory, producer, memoryReadWrite}
	for _, v := range []uint64{0, start, start + size - 1, 0, size} {
		r = binary.LittleEndian.AppendUint64(r, v)
	}
	return r
}
