package bootparam

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

var update = flag.Bool("update", false, "write the golden files")

// requireGolden compares a page with testdata/name, which has the page's lines that aren't zero.
func requireGolden(t *testing.T, name string, page []byte) {
	t.Helper()
	var text strings.Builder
	for off := 0; off < len(page); off += 16 {
		if line := page[off : off+16]; !bytes.Equal(line, make([]byte, 16)) {
			fmt.Fprintf(&text, "%03x  % x\n", off, line)
		}
	}
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), text.String())
}

func TestZeroPage(t *testing.T) {
	mem, e820 := pcMemory(t, 4*mebi)
	entry, err := Load(mem, Config{
		Kernel:  bytes.NewReader(linuxImage().bytes()),
		Initrd:  bytes.NewReader(pattern(7, 5000)),
		Cmdline: "console=ttyS0 quiet",
		E820:    e820,
		RSDP:    0xe_0010,
	})
	require.NoError(t, err)
	require.Equal(t, Entry{
		Protocol: Linux64,
		RIP:      1*mebi + 0x200,
		RSI:      uint64(zeroPageAddr),
		CR3:      uint64(pml4Addr),
		GDT:      gdtAddr,
		GDTLimit: 47,
		CS:       Segment{Selector: 0x10, Limit: 0xffff_ffff, Type: 0xb, CodeOrData: true, Long: true, Granular: true},
		DS:       Segment{Selector: 0x18, Limit: 0xffff_ffff, Type: 0x3, CodeOrData: true, Big: true, Granular: true},
		TR:       Segment{Selector: 0x20, Limit: 0x67, Type: 0xb},
	}, entry)
	requireGolden(t, "zeropage.txt", guestBytes(t, mem, zeroPageAddr, pageSize))
	require.Equal(t, "console=ttyS0 quiet\x00\xa5", string(guestBytes(t, mem, cmdlineAddr, 21)))
	require.Equal(t, pattern(1, 0x1230), guestBytes(t, mem, 1*mebi, 0x1230))
	require.Equal(t, pattern(7, 5000), guestBytes(t, mem, 4*mebi-0x2000, 5000))
}

func TestZeroPageELF(t *testing.T) {
	mem, e820 := pcMemory(t, 4*mebi)
	entry, err := Load(mem, Config{Kernel: bytes.NewReader(vmlinux().bytes()), E820: e820, Cmdline: "a"})
	require.NoError(t, err)
	require.Equal(t, Linux64, entry.Protocol)
	require.EqualValues(t, 1*mebi+0x40, entry.RIP)
	require.EqualValues(t, zeroPageAddr, entry.RSI)
	require.EqualValues(t, pml4Addr, entry.CR3)
	requireGolden(t, "zeropage-elf.txt", guestBytes(t, mem, zeroPageAddr, pageSize))
}

func TestStartInfo(t *testing.T) {
	notes := noteSegment(4, pvhNotes(4, []byte{0x80, 0x00, 0x10, 0x00}))
	for _, tt := range []struct {
		golden string
		initrd Image
	}{
		{"startinfo.txt", nil},
		{"startinfo-initrd.txt", bytes.NewReader(pattern(7, 5000))},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			mem, e820 := pcMemory(t, 4*mebi)
			entry, err := Load(mem, Config{
				Kernel:  bytes.NewReader(vmlinux(notes).bytes()),
				Initrd:  tt.initrd,
				Cmdline: "console=ttyS0",
				E820:    e820,
				RSDP:    0xe_0010,
			})
			require.NoError(t, err)
			require.Equal(t, Entry{
				Protocol: PVH,
				RIP:      1*mebi + 0x80,
				RBX:      uint64(startInfoAddr),
				GDT:      gdtAddr,
				GDTLimit: 47,
				CS:       Segment{Selector: 0x10, Limit: 0xffff_ffff, Type: 0xb, CodeOrData: true, Big: true, Granular: true},
				DS:       Segment{Selector: 0x18, Limit: 0xffff_ffff, Type: 0x3, CodeOrData: true, Big: true, Granular: true},
				TR:       Segment{Selector: 0x20, Limit: 0x67, Type: 0xb},
			}, entry)
			requireGolden(t, tt.golden, guestBytes(t, mem, startInfoAddr, pageSize))
			require.Equal(t, "console=ttyS0\x00", string(guestBytes(t, mem, cmdlineAddr, 14)))

			require.Equal(t, pattern(2, 0x1000), guestBytes(t, mem, 1*mebi, 0x1000))
			require.Equal(t, pattern(3, 0x801), guestBytes(t, mem, 3*mebi, 0x801))
			require.Equal(t, make([]byte, 0x3000-0x801), guestBytes(t, mem, 3*mebi+0x801, 0x3000-0x801), "bss")
			require.EqualValues(t, oldByte, guestBytes(t, mem, 3*mebi+0x3000, 1)[0], "after bss")
		})
	}
}

// TestMaxE820 loads a memory map of the greatest length, and finds its last entry at the end of both tables.
func TestMaxE820(t *testing.T) {
	e820 := []E820Entry{{0, 0x9_fc00, E820RAM}, {1 * mebi, 3 * mebi, E820RAM}}
	for len(e820) < maxE820 {
		e820 = append(e820, E820Entry{memory.GPA(len(e820)) << 32, 0x1234_5678_9abc, E820NVS})
		e820[len(e820)-1].Size &= 1<<32 - 1
	}
	last := []byte{0, 0, 0, 0, 127, 0, 0, 0, 0xbc, 0x9a, 0x78, 0x56, 0, 0, 0, 0, 4, 0, 0, 0}

	mem, _ := pcMemory(t, 4*mebi)
	_, err := Load(mem, Config{Kernel: bytes.NewReader(linuxImage().bytes()), E820: e820})
	require.NoError(t, err)
	require.EqualValues(t, 128, guestBytes(t, mem, zeroPageAddr+0x1e8, 1)[0])
	require.Equal(t, last, guestBytes(t, mem, zeroPageAddr+0x2d0+127*20, 20))

	notes := noteSegment(4, pvhNotes(4, []byte{0x80, 0x00, 0x10, 0x00}))
	_, err = Load(mem, Config{Kernel: bytes.NewReader(vmlinux(notes).bytes()), E820: e820})
	require.NoError(t, err)
	require.EqualValues(t, 128, binary.LittleEndian.Uint32(guestBytes(t, mem, startInfoAddr+48, 4)))
	require.Equal(t, last, guestBytes(t, mem, memmapAddr+127*24, 20))
}

func TestE820Errors(t *testing.T) {
	low := E820Entry{0, 0x9_fc00, E820RAM}
	tests := []struct {
		name string
		e820 []E820Entry
		want string
	}{
		{"none", nil, "not enough guest memory: [0x1000, 0x20000) must be RAM for the boot parameters"},
		{"no low RAM", []E820Entry{{0x1001, 2 * mebi, E820RAM}}, "not enough guest memory: [0x1000, 0x20000) must be RAM for the boot parameters"},
		{"low RAM reserved", []E820Entry{{0, 2 * mebi, E820Reserved}}, "not enough guest memory: [0x1000, 0x20000) must be RAM for the boot parameters"},
		{"empty entry", []E820Entry{low, {1 * mebi, 0, E820RAM}}, "memory map: entry 1: [0x100000, +0x0) is not a range"},
		{"overflow", []E820Entry{low, {1 * mebi, 1<<64 - 1*mebi + 1, E820RAM}}, "memory map: entry 1: [0x100000, +0xfffffffffff00001) is not a range"},
		{"unsorted", []E820Entry{{1 * mebi, mebi, E820RAM}, low}, "memory map: entry 1: [0x0, 0x9fc00) begins below 0x200000, where the one before it ends"},
		{"overlap", []E820Entry{low, {0x9_f000, mebi, E820RAM}}, "memory map: entry 1: [0x9f000, 0x19f000) begins below 0x9fc00, where the one before it ends"},
		{"too many", make([]E820Entry, 129), "memory map: 129 entries, of at most 128"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem, _ := pcMemory(t, 2*mebi)
			_, err := Load(mem, Config{Kernel: bytes.NewReader(linuxImage().bytes()), E820: tt.e820})
			require.EqualError(t, err, tt.want)
			var inputErr *Error
			require.NotErrorAs(t, err, &inputErr, "not one of the user's inputs")
		})
	}
}

func TestCmdline(t *testing.T) {
	long := linuxImage()
	long.cmdlineSize = 0xffff_ffff
	tests := []struct {
		name    string
		kernel  []byte
		cmdline string
		is      error
		want    string
	}{
		{"longest", linuxImage().bytes(), strings.Repeat("x", 2047), nil, ""},
		{"beyond the kernel's limit", linuxImage().bytes(), strings.Repeat("x", 2048), ErrCmdlineTooLong,
			"command line: too long: 2048 bytes, of which this kernel takes 2047"},
		{"longest of ours", long.bytes(), strings.Repeat("x", 65535), nil, ""},
		{"beyond our limit", long.bytes(), strings.Repeat("x", 65536), ErrCmdlineTooLong,
			"command line: too long: 65536 bytes, of which this kernel takes 65535"},
		{"beyond an ELF kernel's limit", vmlinux().bytes(), strings.Repeat("x", 2048), ErrCmdlineTooLong,
			"command line: too long: 2048 bytes, of which this kernel takes 2047"},
		{"NUL", linuxImage().bytes(), "quiet\x00", ErrCmdlineNUL, "command line: contains a NUL byte at 5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem, e820 := pcMemory(t, 4*mebi)
			_, err := Load(mem, Config{Kernel: bytes.NewReader(tt.kernel), Cmdline: tt.cmdline, E820: e820})
			if tt.is != nil {
				require.ErrorIs(t, err, tt.is)
				require.EqualError(t, err, tt.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.cmdline+"\x00", string(guestBytes(t, mem, cmdlineAddr, uint64(len(tt.cmdline)+1))))
		})
	}
}

// TestPlaceInitrd loads an initrd into memory with RAM below 1 MiB, from 1 to 4 MiB and from 4 GiB to 2 MiB above it.
// The kernel occupies the first 512 KiB above 1 MiB.
func TestPlaceInitrd(t *testing.T) {
	kernel := func(edit func(*bzImage)) []byte {
		b := linuxImage()
		edit(&b)
		return b.bytes()
	}
	pvh := vmlinux(noteSegment(4, pvhNotes(4, []byte{0x80, 0x00, 0x10, 0x00}))).bytes()
	const low = 0x28_0000 // what the kernel leaves below 4 MiB
	tests := []struct {
		name   string
		kernel []byte
		size   int
		at     memory.GPA // 0 for ErrInitrdTooLarge
		want   string
	}{
		{"one byte", kernel(func(*bzImage) {}), 1, 4*mebi - 0x1000, ""},
		{"whole page", kernel(func(*bzImage) {}), 0x1000, 4*mebi - 0x1000, ""},
		{"below its limit", kernel(func(b *bzImage) { b.initrdMax = 3*mebi - 1 }), 0x1001, 3*mebi - 0x2000, ""},
		{"all that is free", kernel(func(*bzImage) {}), low, 0x18_0000, ""},
		{"above 4 GiB", kernel(func(b *bzImage) { b.initSize = 0x28_0000 }), 2 * mebi, 4 << 30, ""},
		{"beyond its limit, below 4 GiB", kernel(func(b *bzImage) { b.initrdMax = 2*mebi - 1 }), mebi, 3 * mebi, ""},
		{"not above 4 GiB", kernel(func(b *bzImage) { b.xloadflags = xlfKernel64; b.initSize = 0x28_0000 }), 2 * mebi, 0,
			"initrd: too large: it has 2097152 bytes, and the kernel leaves 524288 of the guest's memory for it"},
		{"not above 4 GiB with 32 bits", kernel(func(b *bzImage) { b.xloadflags = xlfAbove4GiB; b.initSize = 0x28_0000 }), 2 * mebi, 0,
			"initrd: too large: it has 2097152 bytes, and the kernel leaves 524288 of the guest's memory for it"},
		{"limit below 1 MiB", kernel(func(b *bzImage) { b.xloadflags = xlfKernel64; b.initrdMax = 0x8_ffff }), 1, 0,
			"initrd: too large: it has 1 bytes, and the kernel leaves 0 of the guest's memory for it"},
		{"more than memory", kernel(func(*bzImage) {}), low + 1, 0,
			"initrd: too large: it has 2621441 bytes, and the kernel leaves 2621440 of the guest's memory for it"},
		{"ELF", vmlinux().bytes(), 2*mebi - 0x1000, 0x10_1000, ""},
		{"ELF above 4 GiB", vmlinux().bytes(), 2 * mebi, 4 << 30, ""},
		{"PVH below 4 GiB", pvh, 2 * mebi, 0,
			"initrd: too large: it has 2097152 bytes, and the kernel leaves 2093056 of the guest's memory for it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem, err := memory.FromSlices(
				memory.Region{Start: 0, Bytes: make([]byte, 4*mebi)},
				memory.Region{Start: 4 << 30, Bytes: make([]byte, 2*mebi)})
			require.NoError(t, err)
			initrd := pattern(7, tt.size)
			_, err = Load(mem, Config{Kernel: bytes.NewReader(tt.kernel), Initrd: bytes.NewReader(initrd), E820: []E820Entry{
				{0, 0x9_fc00, E820RAM}, {1 * mebi, 3 * mebi, E820RAM}, {4 << 30, 2 * mebi, E820RAM},
			}})
			if tt.at == 0 {
				require.ErrorIs(t, err, ErrInitrdTooLarge)
				require.EqualError(t, err, tt.want)
				return
			}
			require.NoError(t, err)
			require.True(t, bytes.Equal(initrd, guestBytes(t, mem, tt.at, uint64(tt.size))), "the initrd's bytes")
			if bytes.HasPrefix(tt.kernel, []byte("\x7fELF")) {
				return
			}
			page, le := guestBytes(t, mem, zeroPageAddr, pageSize), binary.LittleEndian
			require.EqualValues(t, tt.at, uint64(le.Uint32(page[0x0c0:]))<<32|uint64(le.Uint32(page[0x218:])))
			require.EqualValues(t, tt.size, uint64(le.Uint32(page[0x0c4:]))<<32|uint64(le.Uint32(page[0x21c:])))
		})
	}
}

func TestEmptyInitrd(t *testing.T) {
	mem, e820 := pcMemory(t, 4*mebi)
	_, err := Load(mem, Config{Kernel: bytes.NewReader(linuxImage().bytes()), Initrd: bytes.NewReader(nil), E820: e820})
	require.ErrorIs(t, err, ErrEmpty)
	require.EqualError(t, err, "initrd: empty file")
}

// faultyImage announces more than there is, or fails to read it.
type faultyImage struct {
	*bytes.Reader
	size int64
	from int64 // where reads begin to fail
	err  error
}

func (f faultyImage) Size() int64 { return f.size }

func (f faultyImage) ReadAt(p []byte, off int64) (int, error) {
	if f.err != nil && off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.Reader.ReadAt(p, off)
}

func TestReadErrors(t *testing.T) {
	kernel, initrd := linuxImage().bytes(), pattern(7, 5000)
	mem, e820 := pcMemory(t, 4*mebi)
	load := func(kernel, initrd Image) error {
		_, err := Load(mem, Config{Kernel: kernel, Initrd: initrd, E820: e820})
		return err
	}
	good := bytes.NewReader(kernel)

	// A file that is cut while it is read.
	err := load(faultyImage{Reader: bytes.NewReader(kernel[:4000]), size: int64(len(kernel))}, nil)
	require.ErrorIs(t, err, ErrTruncated)
	require.EqualError(t, err, "kernel: truncated: it ends at 4000, inside [1536, +4656)")
	err = load(good, faultyImage{Reader: bytes.NewReader(initrd), size: 5001})
	require.ErrorIs(t, err, ErrTruncated)
	require.EqualError(t, err, "initrd: truncated: it ends at 5000, inside [0, +5001)")

	// A disk that fails.
	err = load(faultyImage{Reader: good, size: good.Size(), err: os.ErrPermission}, nil)
	require.ErrorIs(t, err, os.ErrPermission)
	require.EqualError(t, err, "kernel: read [0, +656): permission denied")
	err = load(faultyImage{Reader: good, size: good.Size(), from: 2000, err: os.ErrPermission}, nil)
	require.EqualError(t, err, "kernel: read [1536, +4656): permission denied")
	err = load(good, faultyImage{Reader: bytes.NewReader(initrd), size: 5000, err: os.ErrPermission})
	require.ErrorIs(t, err, os.ErrPermission)
	require.EqualError(t, err, "initrd: read [0, +5000): permission denied")
}

func TestGDT(t *testing.T) {
	for _, tt := range []struct {
		protocol Protocol
		want     string
	}{
		{Linux64, "00000000000000000000000000000000" + "ffff0000009baf00" + "ffff00000093cf00" + "67000000008b0000" + "0000000000000000"},
		{Linux32, "00000000000000000000000000000000" + "ffff0000009bcf00" + "ffff00000093cf00" + "67000000008b0000" + "0000000000000000"},
		{PVH, "00000000000000000000000000000000" + "ffff0000009bcf00" + "ffff00000093cf00" + "67000000008b0000" + "0000000000000000"},
	} {
		t.Run(tt.protocol.String(), func(t *testing.T) {
			e, gdt := Entry{Protocol: tt.protocol}, make([]byte, gdtSize)
			e.setSegments()
			e.writeGDT(gdt)
			require.Equal(t, tt.want, hex.EncodeToString(gdt))
		})
	}
}

// TestPageTables walks the tables in guest memory as a CPU does.
func TestPageTables(t *testing.T) {
	mem, e820 := pcMemory(t, 4*mebi)
	entry, err := Load(mem, Config{Kernel: bytes.NewReader(linuxImage().bytes()), E820: e820})
	require.NoError(t, err)
	entryAt := func(table, i uint64) uint64 {
		return binary.LittleEndian.Uint64(guestBytes(t, mem, memory.GPA(table+8*i), 8))
	}
	walk := func(addr uint64) (uint64, bool) {
		table := entry.CR3
		for _, shift := range []int{39, 30} {
			e := entryAt(table, addr>>shift&511)
			if e&3 != 3 {
				return 0, false
			}
			require.Zero(t, e&0xf80, "a table, not a page")
			table = e &^ 0xfff
		}
		e := entryAt(table, addr>>21&511)
		if e&0x83 != 0x83 {
			return 0, false
		}
		return e&^0x1f_ffff | addr&0x1f_ffff, true
	}
	for addr := uint64(0); addr < 4<<30; addr += 2*mebi - 1 {
		to, ok := walk(addr)
		require.True(t, ok, "%#x", addr)
		require.Equal(t, addr, to)
	}
	for _, addr := range []uint64{4 << 30, 5 << 30, 1 << 39, 1<<48 - 1} {
		_, ok := walk(addr)
		require.False(t, ok, "%#x", addr)
	}
}
