package bootparam

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestELFErrors(t *testing.T) {
	cut := func(n int) func([]byte) []byte { return func(f []byte) []byte { return f[:n] } }
	whole := func(f []byte) []byte { return f }
	same := func(*elfImage) {}
	// put64 changes a field of the first program header, which no elfImage can say.
	put64 := func(off int, v uint64) func([]byte) []byte {
		return func(f []byte) []byte {
			binary.LittleEndian.PutUint64(f[64+off:], v)
			return f
		}
	}
	const offset, filesz = 8, 32
	tests := []struct {
		name string
		edit func(*elfImage)
		file func([]byte) []byte
		is   error
		want string
	}{
		{"magic alone", same, cut(4), ErrTruncated, "truncated: 4 bytes of an ELF file"},
		{"part of the header", same, cut(63), ErrTruncated, "truncated: 63 bytes of an ELF file"},
		{"part of the program headers", same, cut(64 + 56 + 55), ErrTruncated,
			"truncated: the file has 175 bytes, and the program headers are at [64, +112)"},
		{"part of a segment", same, cut(64 + 2*56 + 0x1000), ErrTruncated,
			"program header 1: truncated: the file has 4272 bytes, and the segment is at [4272, +2049)"},
		{"offset overflow", same, put64(offset, math.MaxUint64-1), ErrTruncated,
			"program header 0: truncated: the file has 6321 bytes, and the segment is at [18446744073709551614, +4096)"},
		{"size overflow", same, put64(filesz, math.MaxUint64), ErrTruncated,
			"program header 0: truncated: the file has 6321 bytes, and the segment is at [176, +18446744073709551615)"},

		{"32-bit", func(e *elfImage) { e.header.Ident[elf.EI_CLASS] = 1; e.header.Machine = uint16(elf.EM_386) }, whole, ErrArch,
			"for another architecture: a 32-bit ELF file (EM_386)"},
		{"x32", func(e *elfImage) { e.header.Ident[elf.EI_CLASS] = 1 }, whole, ErrArch,
			"for another architecture: a 32-bit ELF file (EM_X86_64)"},
		{"arm64", func(e *elfImage) { e.header.Machine = uint16(elf.EM_AARCH64) }, whole, ErrArch,
			"for another architecture: an ELF file for EM_AARCH64"},
		{"big-endian", func(e *elfImage) { e.header.Ident[elf.EI_DATA] = 2; e.header.Machine = uint16(elf.EM_S390) << 8 }, whole, ErrArch,
			"for another architecture: a big-endian ELF file (EM_S390)"},
		{"class", func(e *elfImage) { e.header.Ident[elf.EI_CLASS] = 3 }, whole, ErrCorrupt,
			"corrupt: ELF identification 0x030101, version 1"},
		{"byte order", func(e *elfImage) { e.header.Ident[elf.EI_DATA] = 0 }, whole, ErrCorrupt,
			"corrupt: ELF identification 0x020001, version 1"},
		{"ident version", func(e *elfImage) { e.header.Ident[elf.EI_VERSION] = 2 }, whole, ErrCorrupt,
			"corrupt: ELF identification 0x020102, version 1"},
		{"version", func(e *elfImage) { e.header.Version = 2 }, whole, ErrCorrupt,
			"corrupt: ELF identification 0x020101, version 2"},
		{"kernel module", func(e *elfImage) { e.header.Type = uint16(elf.ET_REL) }, whole, ErrNotKernel,
			"not a kernel: an ELF object, as kernel modules are"},
		{"shared object", func(e *elfImage) { e.header.Type = uint16(elf.ET_DYN) }, whole, ErrNotKernel,
			"not a kernel: an ELF file of type ET_DYN, not an executable with fixed addresses"},
		{"program", func(e *elfImage) { e.segments[0].Type = uint32(elf.PT_INTERP) }, whole, ErrNotKernel,
			"program header 0: not a kernel: a program for an operating system"},
		{"program header size", func(e *elfImage) { e.header.Phentsize = 32 }, whole, ErrCorrupt,
			"corrupt: 2 program headers of 32 bytes"},
		{"no program headers", func(e *elfImage) { e.segments = nil }, whole, ErrCorrupt,
			"corrupt: 0 program headers of 56 bytes"},
		{"too many program headers", func(e *elfImage) { e.segments = make([]elfSegment, 65) }, whole, ErrCorrupt,
			"corrupt: 65 program headers of 56 bytes"},
		{"program headers far away", same, func(f []byte) []byte {
			binary.LittleEndian.PutUint64(f[32:], math.MaxUint64)
			return f
		}, ErrTruncated, "truncated: the file has 6321 bytes, and the program headers are at [18446744073709551615, +112)"},
		{"nothing to load", func(e *elfImage) { e.segments = []elfSegment{noteSegment(4, nil)} }, whole, ErrNotKernel,
			"not a kernel: no segment to load"},

		{"more in the file than in memory", func(e *elfImage) { e.segments[0].Memsz = 0xfff }, whole, ErrCorrupt,
			"program header 0: corrupt: 4096 bytes for [0x100000, +0xfff)"},
		{"address overflow", func(e *elfImage) { e.segments[0].Paddr = math.MaxUint64 - 0xffe }, whole, ErrCorrupt,
			"program header 0: corrupt: 4096 bytes for [0xfffffffffffff001, +0x1000)"},
		{"memory size overflow", func(e *elfImage) { e.segments[0].Memsz = math.MaxUint64 }, whole, ErrCorrupt,
			"program header 0: corrupt: 4096 bytes for [0x100000, +0xffffffffffffffff)"},
		{"beyond 4 GiB", func(e *elfImage) { e.segments[1].Paddr = 1<<32 - 0x2fff }, whole, ErrCorrupt,
			"corrupt: [0xffffd001, 0x100000001) is beyond 4 GiB, which nothing maps when the kernel starts"},
		{"overlap", func(e *elfImage) { e.segments[1].Paddr = 1*mebi + 0xfff }, whole, ErrCorrupt,
			"program header 1: corrupt: [0x100fff, 0x103fff) overlaps [0x100000, 0x101000)"},
		{"overlap from below", func(e *elfImage) { e.segments[1].Paddr = 1*mebi - 0x2fff }, whole, ErrCorrupt,
			"program header 1: corrupt: [0xfd001, 0x100001) overlaps [0x100000, 0x101000)"},
		{"over the boot parameters", func(e *elfImage) { e.segments[0].Paddr = 0x1_f000 }, whole, ErrNoRoom,
			"not enough guest memory: [0x1f000, 0x20000) is below 0x20000, where the boot parameters are"},
		{"over a reserved range", func(e *elfImage) { e.segments[0].Paddr = 0x9_f000 }, whole, ErrNoRoom,
			"not enough guest memory: [0x9f000, 0xa0000) must be RAM, and the kernel needs 4 MiB at least"},
		{"little memory", func(e *elfImage) {
			e.segments[0].Memsz = 2 * mebi
			e.segments = append(e.segments, loadSegment(4*mebi, 1, nil), loadSegment(9*mebi, 1, nil))
		}, whole, ErrNoRoom,
			"not enough guest memory: [0x400000, 0x400001) must be RAM, and the kernel needs 10 MiB at least"},
		{"entry point below", func(e *elfImage) { e.header.Entry = 1*mebi - 1 }, whole, ErrCorrupt,
			"corrupt: the entry point 0xfffff is in no loaded segment"},
		{"entry point above", func(e *elfImage) { e.header.Entry = 1*mebi + 0x1000 }, whole, ErrCorrupt,
			"corrupt: the entry point 0x101000 is in no loaded segment"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := vmlinux()
			tt.edit(&e)
			requireRefused(t, tt.file(e.bytes()), tt.is, tt.want)
		})
	}
}

// TestELFNothingToLoad loads a file with program headers that ask for no memory.
func TestELFNothingToLoad(t *testing.T) {
	mem, e820 := pcMemory(t, 4*mebi)
	stack := elfSegment{elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Paddr: 1 * mebi, Memsz: 1}, []byte{1}}
	_, err := Load(mem, Config{Kernel: bytes.NewReader(vmlinux(loadSegment(0, 0, nil), stack).bytes()), E820: e820})
	require.NoError(t, err)
	require.Equal(t, pattern(2, 0x1000), guestBytes(t, mem, 1*mebi, 0x1000))
	require.EqualValues(t, oldByte, guestBytes(t, mem, 0, 1)[0])
}

func TestNotes(t *testing.T) {
	entry4, entry8 := []byte{0x80, 0, 0x10, 0}, []byte{0x80, 0, 0x10, 0, 0, 0, 0, 0}
	tests := []struct {
		name     string
		notes    elfSegment
		protocol Protocol
		rip      uint64
	}{
		{"32-bit entry", noteSegment(4, pvhNotes(4, entry4)), PVH, 1*mebi + 0x80},
		{"64-bit entry", noteSegment(4, pvhNotes(4, entry8)), PVH, 1*mebi + 0x80},
		{"32-bit entry, padded to 8", noteSegment(8, pvhNotes(8, entry4)), PVH, 1*mebi + 0x80},
		{"64-bit entry, padded to 8", noteSegment(8, pvhNotes(8, entry8)), PVH, 1*mebi + 0x80},
		{"alignment of 1", noteSegment(1, pvhNotes(4, entry4)), PVH, 1*mebi + 0x80},
		{"last and not padded", noteSegment(8, note(4, "Xen\x00", notePhys32, entry4)), PVH, 1*mebi + 0x80},
		{"none", noteSegment(4, nil), Linux64, 1*mebi + 0x40},
		{"of others", noteSegment(4, note(4, "Linux\x00", notePhys32, entry4)), Linux64, 1*mebi + 0x40},
		{"with another's name", noteSegment(4, note(4, "Xen", notePhys32, entry4)), Linux64, 1*mebi + 0x40},
		{"another of Xen", noteSegment(4, note(4, "Xen\x00", 1, entry4)), Linux64, 1*mebi + 0x40},
		{"less than a note after it", noteSegment(4, append(note(4, "GNU\x00", 3, nil), make([]byte, 11)...)), Linux64, 1*mebi + 0x40},
		{"last descriptor not padded", noteSegment(4, note(4, "GNU\x00", 3, []byte("1234"))[:20]), Linux64, 1*mebi + 0x40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem, e820 := pcMemory(t, 4*mebi)
			entry, err := Load(mem, Config{Kernel: bytes.NewReader(vmlinux(tt.notes).bytes()), E820: e820})
			require.NoError(t, err)
			require.Equal(t, tt.protocol, entry.Protocol)
			require.Equal(t, tt.rip, entry.RIP)
		})
	}
}

func TestNoteErrors(t *testing.T) {
	tests := []struct {
		name  string
		notes []byte
		want  string
	}{
		{"too many", make([]byte, 65537), "program header 2: corrupt: 65537 bytes of notes"},
		{"name beyond the end", []byte("\x05\x00\x00\x00\x00\x00\x00\x00\x12\x00\x00\x00Xen\x00"),
			"program header 2: corrupt: the note at 0 ends at 20, beyond the 16 bytes of notes"},
		{"longest name", []byte("\xff\xff\xff\xff\x00\x00\x00\x00\x12\x00\x00\x00Xen\x00"),
			"program header 2: corrupt: the note at 0 ends at 4294967308, beyond the 16 bytes of notes"},
		{"descriptor beyond the end", append(note(4, "GNU\x00", 3, nil), note(4, "Xen\x00", notePhys32, make([]byte, 4))[:19]...),
			"program header 2: corrupt: the note at 16 ends at 36, beyond the 35 bytes of notes"},
		{"entry point of 5 bytes", note(4, "Xen\x00", notePhys32, make([]byte, 5)),
			"program header 2: corrupt: a PVH entry point of 5 bytes"},
		{"entry point elsewhere", note(4, "Xen\x00", notePhys32, make([]byte, 4)),
			"corrupt: the entry point 0x0 is in no loaded segment"},
		{"entry point far away", note(4, "Xen\x00", notePhys32, []byte{0x80, 0, 0x10, 0, 1, 0, 0, 0}),
			"corrupt: the entry point 0x100100080 is in no loaded segment"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			requireRefused(t, vmlinux(noteSegment(4, tt.notes)).bytes(), ErrCorrupt, tt.want)
		})
	}
}
