package aml

import "encoding/binary"

// Resource is an encoded resource descriptor (ACPI 6.5 §6.4).
type Resource []byte

// Tags of the resource descriptors: small ones hold their length in the low three bits.
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

	// The device hands the range on to the ones below it, and its ends are fixed.
	producerFixed = 1<<2 | 1<<3

	memoryReadWrite = 1 << 0
	ioEntireRange   = 3
)

// ResourceTemplate is the buffer of the descriptors given, with an end tag.
func ResourceTemplate(resources ...Resource) Term {
	var b []byte
	for _, r := range resources {
		b = append(b, r...)
	}
	return Buffer(append(b, tagEnd, 0)) // a checksum of zero counts as right
}

// IO is n ports from port on, which the device occupies.
func IO(port uint16, n uint8) Resource {
	const decodes16 = 1
	return Resource{tagIO, decodes16, byte(port), byte(port >> 8), byte(port), byte(port >> 8), 1, n}
}

// IRQ is an interrupt of the PICs, edge-triggered and active high.
func IRQ(n uint) Resource {
	return binary.LittleEndian.AppendUint16(Resource{tagIRQ}, 1<<n)
}

// Memory32Fixed is a range below 4 GiB that the device occupies.
func Memory32Fixed(start, size uint32) Resource {
	r := Resource{tagMemory32Fixed, 9, 0, memoryReadWrite}
	r = binary.LittleEndian.AppendUint32(r, start)
	return binary.LittleEndian.AppendUint32(r, size)
}

// BusWindow is the buses first to last below a host bridge.
func BusWindow(first, last uint8) Resource {
	return wordWindow(spaceBus, 0, uint16(first), uint16(last))
}

// IOWindow is the ports first to last below a host bridge.
func IOWindow(first, last uint16) Resource {
	return wordWindow(spaceIO, ioEntireRange, first, last)
}

func wordWindow(kind, specific byte, first, last uint16) Resource {
	r := Resource{tagWordAddress, 13, 0, kind, producerFixed, specific}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} { // granularity, range, translation, length
		r = binary.LittleEndian.AppendUint16(r, v)
	}
	return r
}

// MemoryWindow32 is a range below 4 GiB, not cached, below a host bridge.
func MemoryWindow32(start, size uint32) Resource {
	r := Resource{tagDWordAddress, 23, 0, spaceMemory, producerFixed, memoryReadWrite}
	for _, v := range []uint32{0, start, start + size - 1, 0, size} {
		r = binary.LittleEndian.AppendUint32(r, v)
	}
	return r
}

// MemoryWindow64 is a range, not cached, below a host bridge.
func MemoryWindow64(start, size uint64) Resource {
	r := Resource{tagQWordAddress, 43, 0, spaceMemory, producerFixed, memoryReadWrite}
	for _, v := range []uint64{0, start, start + size - 1, 0, size} {
		r = binary.LittleEndian.AppendUint64(r, v)
	}
	return r
}
