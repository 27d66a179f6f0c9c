package bootparam

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math"

	"vmm/memory"
)

const (
	elfHeaderSize     = 64 // elf.Header64
	programHeaderSize = 56 // elf.Prog64
	// maxProgramHeaders is far above what a kernel has (Linux: 5), so that a corrupt count costs nothing.
	maxProgramHeaders = 64

	// elfCmdlineSize is COMMAND_LINE_SIZE of Linux/x86 less the NUL: an ELF file doesn't say what it takes.
	elfCmdlineSize = 2047
)

// findELF checks the ELF file that begins with start, and that the memory of its segments is free. It reads the headers
// itself, because package debug/elf wants section headers and string tables too, which loading doesn't need.
func findELF(img Image, start []byte, ram spans) (*kernel, error) {
	header, err := parseELFHeader(start)
	if err != nil {
		return nil, err
	}
	k := &kernel{
		protocol:     Linux64,
		entry:        memory.GPA(header.Entry),
		cmdlineSize:  elfCmdlineSize,
		initrdLimits: []memory.GPA{mappedEnd, math.MaxUint64},
	}
	// What in a bzImage tells the kernel that the zero page comes from a boot loader.
	binary.LittleEndian.PutUint16(k.header[offBootFlag:], bootFlag)
	copy(k.header[offHeader:], headerMagic)
	binary.LittleEndian.PutUint16(k.header[offVersion:], xloadVersion)
	k.header[offLoadflags] = flagLoadedHigh

	fileSize, size := uint64(img.Size()), uint64(header.Phnum)*programHeaderSize
	if size > fileSize || header.Phoff > fileSize-size {
		return nil, fmt.Errorf("%w: the file has %d bytes, and the program headers are at [%d, +%d)", ErrTruncated, fileSize, header.Phoff, size)
	}
	var p [programHeaderSize]byte
	for i := range int64(header.Phnum) {
		if err := readAt(img, p[:], int64(header.Phoff)+i*programHeaderSize); err != nil {
			return nil, fmt.Errorf("program header %d: %w", i, err)
		}
		if err := k.addProgramHeader(img, decodeProgramHeader(&p)); err != nil {
			return nil, fmt.Errorf("program header %d: %w", i, err)
		}
	}
	if len(k.segments) == 0 {
		return nil, fmt.Errorf("%w: no segment to load", ErrNotKernel)
	}
	var end memory.GPA
	for _, s := range k.segments {
		end = max(end, s.end)
	}
	for _, s := range k.segments {
		if err := checkPlaced(s.span, end, ram); err != nil {
			return nil, err
		}
	}
	if !k.holds(k.entry) {
		return nil, fmt.Errorf("%w: the entry point %#x is in no loaded segment", ErrCorrupt, uint64(k.entry))
	}
	return k, nil
}

func parseELFHeader(start []byte) (elf.Header64, error) {
	var h elf.Header64
	if len(start) < elfHeaderSize {
		return h, fmt.Errorf("%w: %d bytes of an ELF file", ErrTruncated, len(start))
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if elf.Data(start[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	// e_machine is in the same place for both classes.
	machine := elf.Machine(order.Uint16(start[18:]))
	switch {
	case elf.Class(start[elf.EI_CLASS]) == elf.ELFCLASS32:
		return h, fmt.Errorf("%w: a 32-bit ELF file (%v)", ErrArch, machine)
	case order == binary.BigEndian:
		return h, fmt.Errorf("%w: a big-endian ELF file (%v)", ErrArch, machine)
	case machine != elf.EM_X86_64:
		return h, fmt.Errorf("%w: an ELF file for %v", ErrArch, machine)
	}
	if _, err := binary.Decode(start, order, &h); err != nil {
		panic(err) // start is long enough
	}
	switch {
	case elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64,
		elf.Data(h.Ident[elf.EI_DATA]) != elf.ELFDATA2LSB,
		elf.Version(h.Ident[elf.EI_VERSION]) != elf.EV_CURRENT,
		elf.Version(h.Version) != elf.EV_CURRENT:
		return h, fmt.Errorf("%w: ELF identification %#x, version %d", ErrCorrupt, h.Ident[4:7], h.Version)
	case elf.Type(h.Type) == elf.ET_REL:
		return h, fmt.Errorf("%w: an ELF object, as kernel modules are", ErrNotKernel)
	case elf.Type(h.Type) != elf.ET_EXEC:
		return h, fmt.Errorf("%w: an ELF file of type %v, not an executable with fixed addresses", ErrNotKernel, elf.Type(h.Type))
	case h.Phentsize != programHeaderSize, h.Phnum == 0, h.Phnum > maxProgramHeaders:
		return h, fmt.Errorf("%w: %d program headers of %d bytes", ErrCorrupt, h.Phnum, h.Phentsize)
	}
	return h, nil
}

func decodeProgramHeader(p *[programHeaderSize]byte) elf.Prog64 {
	var ph elf.Prog64
	if _, err := binary.Decode(p[:], binary.LittleEndian, &ph); err != nil {
		panic(err) // p has the size of ph
	}
	return ph
}

// addProgramHeader adds what ph says to k.
func (k *kernel) addProgramHeader(img Image, ph elf.Prog64) error {
	typ := elf.ProgType(ph.Type)
	switch typ {
	case elf.PT_INTERP:
		return fmt.Errorf("%w: a program for an operating system", ErrNotKernel)
	case elf.PT_LOAD, elf.PT_NOTE:
	default:
		return nil
	}
	fileSize := uint64(img.Size())
	if ph.Filesz > fileSize || ph.Off > fileSize-ph.Filesz {
		return fmt.Errorf("%w: the file has %d bytes, and the segment is at [%d, +%d)", ErrTruncated, fileSize, ph.Off, ph.Filesz)
	}
	if typ == elf.PT_NOTE {
		return k.addNotes(img, ph)
	}
	place, ok := newSpan(memory.GPA(ph.Paddr), ph.Memsz)
	switch {
	case !ok || ph.Filesz > ph.Memsz:
		return fmt.Errorf("%w: %d bytes for [%#x, +%#x)", ErrCorrupt, ph.Filesz, ph.Paddr, ph.Memsz)
	case ph.Memsz == 0:
		return nil
	}
	for _, s := range k.segments {
		if place.start < s.end && s.start < place.end {
			return fmt.Errorf("%w: %v overlaps %v", ErrCorrupt, place, s.span)
		}
	}
	k.segments = append(k.segments, segment{span: place, off: int64(ph.Off), size: ph.Filesz, zero: ph.Memsz - ph.Filesz})
	return nil
}

// holds reports whether addr is in a segment.
func (k *kernel) holds(addr memory.GPA) bool {
	for _, s := range k.segments {
		if s.start <= addr && addr < s.end {
			return true
		}
	}
	return false
}
