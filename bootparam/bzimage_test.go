package bootparam

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

func TestLoadBzImage(t *testing.T) {
	tests := []struct {
		name     string
		edit     func(*bzImage)
		protocol Protocol
		at       memory.GPA // where the kernel is loaded
	}{
		{"at pref_address", func(b *bzImage) { b.pref = 2 * mebi }, Linux64, 2 * mebi},
		{"fixed", func(b *bzImage) { b.relocatable = 0; b.pref = 2 * mebi }, Linux64, 2 * mebi},
		{"fixed, below 1 MiB", func(b *bzImage) { b.relocatable = 0; b.pref = 0x8_0000; b.initSize = 0x1_fc00 }, Linux64, 0x8_0000},
		{"fixed, alignment ignored", func(b *bzImage) { b.relocatable = 0; b.align = 0; b.pref = 0x10_1000 }, Linux64, 0x10_1000},
		{"moved over a reserved range", func(b *bzImage) { b.pref = 3 * mebi; b.align = 0x2000 }, Linux64, 0x38_2000},
		{"never moved below pref_address", func(b *bzImage) { b.pref = 3 * mebi; b.initSize = 0x10_0000; b.align = 0x8_0000 }, Linux64, 4 * mebi},
		{"never moved below 1 MiB", func(b *bzImage) { b.pref = 0x3_0000; b.align = 0x1000 }, Linux64, 1 * mebi},
		{"pref_address not aligned", func(b *bzImage) { b.pref = 1*mebi + 1; b.align = 0x1000 }, Linux64, 0x10_1000},
		{"init_size less than the file", func(b *bzImage) { b.initSize = 0 }, Linux64, 1 * mebi},
		{"default setup_sects", func(b *bzImage) { b.setupSects = 0 }, Linux64, 1 * mebi},
		{"most setup_sects", func(b *bzImage) { b.setupSects = 255 }, Linux64, 1 * mebi},
		{"syssize rounded up", func(b *bzImage) { b.payload = b.payload[:0x1221] }, Linux64, 1 * mebi},
		{"32-bit", func(b *bzImage) { b.xloadflags = 0; b.pref = 2 * mebi }, Linux32, 2 * mebi},
		{"32-bit, xloadflags not known yet", func(b *bzImage) { b.version = 0x20b }, Linux32, 1 * mebi},
		{"oldest protocol", func(b *bzImage) { b.version = 0x206; b.jump = 0x3a; b.relocatable = 0 }, Linux32, 1 * mebi},
		{"oldest protocol, aligned", func(b *bzImage) { b.version = 0x206; b.jump = 0x3a; b.align = 2 * mebi }, Linux32, 2 * mebi},
		{"longest header", func(b *bzImage) { b.jump = 0x8e }, Linux64, 1 * mebi},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := linuxImage()
			tt.edit(&b)
			mem, _ := pcMemory(t, 6*mebi)
			entry, err := Load(mem, Config{
				// Something follows the kernel, as a signature may.
				Kernel: bytes.NewReader(append(b.bytes(), make([]byte, 1000)...)),
				E820: []E820Entry{
					{0, 0x9_fc00, E820RAM},
					{1 * mebi, 2 * mebi, E820RAM},
					{3 * mebi, 0x1000, E820RAM},
					{0x30_1000, 0x8_0000, E820ACPI},
					{0x38_1000, 6*mebi - 0x38_1000, E820RAM},
				},
			})
			require.NoError(t, err)
			require.Equal(t, tt.protocol, entry.Protocol)
			if tt.protocol == Linux64 {
				require.EqualValues(t, tt.at+0x200, entry.RIP)
				require.EqualValues(t, pml4Addr, entry.CR3)
				require.True(t, entry.CS.Long)
			} else {
				require.EqualValues(t, tt.at, entry.RIP)
				require.Zero(t, entry.CR3)
				require.False(t, entry.CS.Long)
				require.EqualValues(t, oldByte, guestBytes(t, mem, pml4Addr, 1)[0], "no page tables")
			}
			require.EqualValues(t, zeroPageAddr, entry.RSI)
			n := uint64(len(b.payload))
			require.Equal(t, b.payload, guestBytes(t, mem, tt.at, n))
			require.EqualValues(t, oldByte, guestBytes(t, mem, tt.at+memory.GPA(n)+15, 1)[0], "after the kernel")
			code32 := binary.LittleEndian.Uint32(guestBytes(t, mem, zeroPageAddr+0x214, 4))
			require.EqualValues(t, tt.at, code32)
		})
	}
}

func TestBzImageErrors(t *testing.T) {
	// cut keeps the first n bytes of the file.
	cut := func(n int) func([]byte) []byte { return func(f []byte) []byte { return f[:n] } }
	whole := func(f []byte) []byte { return f }
	same := func(*bzImage) {}
	tests := []struct {
		name string
		edit func(*bzImage)
		file func([]byte) []byte
		is   error
		want string
	}{
		{"no whole header", same, cut(0x28f), ErrTruncated,
			"truncated: it has 655 bytes, not even its setup header"},
		{"no kernel", same, cut(3 * 512), ErrTruncated,
			"truncated: it has 1536 bytes, and its header announces 6192"},
		{"header without setup", same, cut(0x290), ErrTruncated,
			"truncated: it has 656 bytes, and its header announces 6192"},
		{"one paragraph short", same, cut(6192 - 16), ErrTruncated,
			"truncated: it has 6176 bytes, and its header announces 6192"},
		{"huge syssize", same, func(f []byte) []byte {
			binary.LittleEndian.PutUint32(f[0x1f4:], 0xffff_ffff)
			return f
		}, ErrTruncated, "truncated: it has 6192 bytes, and its header announces 68719478256"},
		{"no syssize", func(b *bzImage) { b.payload = nil }, whole, ErrCorrupt, "corrupt: its syssize is 0"},
		{"old", func(b *bzImage) { b.version = 0x205 }, whole, ErrOldProtocol,
			"boot protocol too old: 2.05, of which at least 2.06 is needed"},
		{"zImage", func(b *bzImage) { b.loadflags = 0xfe }, whole, ErrOldProtocol,
			"boot protocol too old: a zImage, which loads below 1 MiB"},
		{"short header", func(b *bzImage) { b.jump = 0x61 }, whole, ErrCorrupt,
			"corrupt: the setup header ends at 0x263, which for version 2.15 must be in [0x264, 0x290]"},
		{"short old header", func(b *bzImage) { b.version = 0x209; b.jump = 0x39 }, whole, ErrCorrupt,
			"corrupt: the setup header ends at 0x23b, which for version 2.09 must be in [0x23c, 0x290]"},
		{"long header", func(b *bzImage) { b.jump = 0x8f }, whole, ErrCorrupt,
			"corrupt: the setup header ends at 0x291, which for version 2.15 must be in [0x264, 0x290]"},
		{"no alignment", func(b *bzImage) { b.align = 0 }, whole, ErrCorrupt,
			"corrupt: its kernel_alignment is 0x0, not a power of two"},
		{"odd alignment", func(b *bzImage) { b.align = 0x3000 }, whole, ErrCorrupt,
			"corrupt: its kernel_alignment is 0x3000, not a power of two"},
		{"overflow", func(b *bzImage) { b.relocatable = 0; b.pref = 1<<64 - 1 }, whole, ErrCorrupt,
			"corrupt: it wants 0x80000 bytes at 0xffffffffffffffff, beyond 4 GiB"},
		{"beyond 4 GiB", func(b *bzImage) { b.align = 1; b.pref = 1<<32 - 0x7_ffff }, whole, ErrCorrupt,
			"corrupt: it wants 0x80000 bytes at 0xfff80001, beyond 4 GiB"},
		{"overflow by alignment", func(b *bzImage) { b.pref = 1<<64 - 0x8_0000 }, whole, ErrCorrupt,
			"corrupt: it wants 0x80000 bytes at 0xfffffffffff80000, beyond 4 GiB"},
		{"little memory", func(b *bzImage) { b.initSize = 3*mebi + 1 }, whole, ErrNoRoom,
			"not enough guest memory: [0x100000, 0x400001) must be RAM, and the kernel needs 5 MiB at least"},
		{"little memory where it must be", func(b *bzImage) { b.relocatable = 0; b.pref = 4*mebi - 0x7_f000 }, whole, ErrNoRoom,
			"not enough guest memory: [0x381000, 0x401000) must be RAM, and the kernel needs 5 MiB at least"},
		{"no memory at this alignment", func(b *bzImage) { b.align = 1 << 31 }, whole, ErrNoRoom,
			"not enough guest memory: [0x80000000, 0x80080000) must be RAM, and the kernel needs 2049 MiB at least"},
		{"over the boot parameters", func(b *bzImage) { b.relocatable = 0; b.pref = 0x1_ffff }, whole, ErrNoRoom,
			"not enough guest memory: [0x1ffff, 0x9ffff) is below 0x20000, where the boot parameters are"},
		{"over a reserved range", func(b *bzImage) { b.relocatable = 0; b.pref = 0x2_0000 }, whole, ErrNoRoom,
			"not enough guest memory: [0x20000, 0xa0000) must be RAM, and the kernel needs 1 MiB at least"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := linuxImage()
			tt.edit(&b)
			requireRefused(t, tt.file(b.bytes()), tt.is, tt.want)
		})
	}
}

// requireRefused loads a kernel file into 4 MiB and wants the error for it, and that nothing was written.
func requireRefused(t *testing.T, file []byte, is error, want string) {
	t.Helper()
	mem, e820 := pcMemory(t, 4*mebi)
	_, err := Load(mem, Config{Kernel: bytes.NewReader(file), E820: e820})
	require.ErrorIs(t, err, is)
	require.EqualError(t, err, "kernel: "+want)
	var inputErr *Error
	require.ErrorAs(t, err, &inputErr)
	require.Equal(t, InputKernel, inputErr.Input)
	require.True(t, untouched(guestBytes(t, mem, 0, 4*mebi)), "guest memory")
}
