package bootparam

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

const mebi = 1 << 20

// pcMemory returns a guest of size bytes whose memory map is a PC's. All of it is full of old bytes.
func pcMemory(t testing.TB, size uint64) (*memory.Memory, []E820Entry) {
	t.Helper()
	ram := bytes.Repeat([]byte{oldByte}, int(size))
	mem, err := memory.FromSlices(memory.Region{Start: 0, Bytes: ram})
	require.NoError(t, err)
	return mem, []E820Entry{
		{0, 0x9_fc00, E820RAM},
		{0x9_fc00, 0x400, E820Reserved},
		{0xe_0000, 0x2_0000, E820Reserved},
		{1 * mebi, size - 1*mebi, E820RAM},
	}
}

const oldByte = 0xa5

// untouched reports whether p has only what pcMemory filled it with.
func untouched(p []byte) bool { return bytes.Count(p, []byte{oldByte}) == len(p) }

// guestBytes returns the bytes at addr, which must be RAM.
func guestBytes(t testing.TB, mem *memory.Memory, addr memory.GPA, n uint64) []byte {
	t.Helper()
	p, err := mem.Slice(addr, n)
	require.NoError(t, err)
	return p
}

// pattern returns n bytes that depend on their place and on seed.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)
	}
	return p
}

// bzImage is what a test wants a bzImage to be.
type bzImage struct {
	setupSects  uint8
	version     uint16
	jump        uint8 // the operand of the jump over the header
	loadflags   uint8
	align       uint32
	relocatable uint8
	xloadflags  uint16
	cmdlineSize uint32
	initrdMax   uint32
	pref        uint64
	initSize    uint32
	payload     []byte
}

// linuxImage is a small bzImage that has the header of a Linux of our days.
func linuxImage() bzImage {
	return bzImage{
		setupSects:  2,
		version:     0x20f,
		jump:        0x6a,
		loadflags:   flagLoadedHigh,
		align:       1 * mebi,
		relocatable: 1,
		xloadflags:  0x7f,
		cmdlineSize: 2047,
		initrdMax:   0x7fff_ffff,
		pref:        1 * mebi,
		initSize:    0x8_0000,
		payload:     pattern(1, 0x1230),
	}
}

// bytes builds the file. What no field of b says is junk, so that nobody can take it for a zero.
func (b bzImage) bytes() []byte {
	setupSects := int(b.setupSects)
	if setupSects == 0 {
		setupSects = 4
	}
	f := bytes.Repeat([]byte{0xee}, (1+setupSects)*sectorSize)
	le := binary.LittleEndian
	f[0x1f1] = b.setupSects
	le.PutUint32(f[0x1f4:], uint32(len(b.payload)+15)/16)
	le.PutUint16(f[0x1fe:], 0xaa55)
	f[0x200], f[0x201] = 0xeb, b.jump
	copy(f[0x202:], "HdrS")
	le.PutUint16(f[0x206:], b.version)
	f[0x211] = b.loadflags
	le.PutUint32(f[0x22c:], b.initrdMax)
	le.PutUint32(f[0x230:], b.align)
	f[0x234] = b.relocatable
	le.PutUint16(f[0x236:], b.xloadflags)
	le.PutUint32(f[0x238:], b.cmdlineSize)
	le.PutUint64(f[0x258:], b.pref)
	le.PutUint32(f[0x260:], b.initSize)
	return append(f, b.payload...)
}

// elfImage is what a test wants an ELF file to be.
type elfImage struct {
	header   elf.Header64 // Phoff and Phnum are filled in
	segments []elfSegment
}

type elfSegment struct {
	elf.Prog64 // Off and Filesz are filled in
	bytes      []byte
}

// vmlinux is a small ELF file with the form of a Linux kernel, whose bss is longer than its data.
func vmlinux(notes ...elfSegment) elfImage {
	return elfImage{
		header: elf.Header64{
			Ident:     [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1},
			Type:      uint16(elf.ET_EXEC),
			Machine:   uint16(elf.EM_X86_64),
			Version:   1,
			Entry:     1*mebi + 0x40,
			Ehsize:    64,
			Phentsize: 56,
		},
		segments: append([]elfSegment{
			loadSegment(1*mebi, 0x1000, pattern(2, 0x1000)),
			loadSegment(1*mebi+0x20_0000, 0x3000, pattern(3, 0x801)),
		}, notes...),
	}
}

func loadSegment(paddr, memSize uint64, p []byte) elfSegment {
	return elfSegment{elf.Prog64{Type: uint32(elf.PT_LOAD), Vaddr: 0xffff_ffff_8000_0000 + paddr, Paddr: paddr, Memsz: memSize, Align: 0x20_0000}, p}
}

func noteSegment(align uint64, p []byte) elfSegment {
	return elfSegment{elf.Prog64{Type: uint32(elf.PT_NOTE), Memsz: uint64(len(p)), Align: align}, p}
}

// note builds one note, padded to align.
func note(align int, name string, typ uint32, desc []byte) []byte {
	pad := func(p []byte) []byte {
		for len(p)%align != 0 {
			p = append(p, 0)
		}
		return p
	}
	var p []byte
	p = binary.LittleEndian.AppendUint32(p, uint32(len(name)))
	p = binary.LittleEndian.AppendUint32(p, uint32(len(desc)))
	p = binary.LittleEndian.AppendUint32(p, typ)
	p = pad(append(p, name...))
	return pad(append(p, desc...))
}

// pvhNotes are notes as Linux has them around the one that says where PVH enters: others of Xen, and of others.
func pvhNotes(align int, entry []byte) []byte {
	return bytes.Join([][]byte{
		note(align, "Linux\x00", notePhys32, []byte{0, 0, 0, 0}),
		note(align, "Xen\x00", 6, []byte("linux\x00")),
		note(align, "Xen\x00", notePhys32, entry),
		note(align, "GNU\x00", 3, pattern(9, 20)),
	}, nil)
}

// bytes builds the file: header, program headers, segments.
func (e elfImage) bytes() []byte {
	h := e.header
	h.Phoff, h.Phnum = elfHeaderSize, uint16(len(e.segments))
	off := uint64(elfHeaderSize + len(e.segments)*programHeaderSize)
	var f bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&f, binary.LittleEndian, v); err != nil {
			panic(err) // fixed-size values to a buffer
		}
	}
	write(h)
	for _, s := range e.segments {
		s.Off, s.Filesz = off, uint64(len(s.bytes))
		off += s.Filesz
		write(s.Prog64)
	}
	for _, s := range e.segments {
		f.Write(s.bytes)
	}
	return f.Bytes()
}
