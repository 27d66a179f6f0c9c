package bootparam

import (
	"bytes"
	"testing"
)

func TestNotKernels(t *testing.T) {
	// at returns a file of zeroes in which magic is at off.
	at := func(off int, magic string) []byte {
		f := make([]byte, 1024)
		copy(f[off:], magic)
		return f
	}
	tests := []struct {
		name string
		file []byte
		is   error
		want string
	}{
		{"empty", nil, ErrEmpty, "empty file"},
		{"gzip", at(0, "\x1f\x8b\x08"), ErrCompressed, "compressed: gzip data, decompress it first"},
		{"xz", at(0, "\xfd7zXZ\x00"), ErrCompressed, "compressed: xz data, decompress it first"},
		{"zstd", at(0, "\x28\xb5\x2f\xfd"), ErrCompressed, "compressed: zstd data, decompress it first"},
		{"bzip2", at(0, "BZh9"), ErrCompressed, "compressed: bzip2 data, decompress it first"},
		{"lz4", at(0, "\x02\x21\x4c\x18"), ErrCompressed, "compressed: lz4 data, decompress it first"},
		{"lzma", at(0, "\x5d\x00\x00\x80"), ErrCompressed, "compressed: lzma data, decompress it first"},
		{"lzop", at(0, "\x89LZO\x00"), ErrCompressed, "compressed: lzop data, decompress it first"},
		{"only a magic", []byte("\x1f\x8b"), ErrCompressed, "compressed: gzip data, decompress it first"},
		{"arm64 Image", at(56, "ARM\x64"), ErrArch, "for another architecture: arm64"},
		{"arm64 Image with an EFI stub", append([]byte("MZ"), at(54, "ARM\x64")...), ErrArch, "for another architecture: arm64"},
		{"RISC-V Image", at(56, "RSC\x05"), ErrArch, "for another architecture: RISC-V"},
		{"ARM zImage", at(0x24, "\x18\x28\x6f\x01"), ErrArch, "for another architecture: 32-bit ARM"},
		{"cpio", at(0, "070701000"), ErrNotKernel, "not a kernel: a cpio archive, as an initrd is"},
		{"zboot", at(0, "MZ\x00\x00zimg"), ErrNotKernel, "not a kernel: an EFI program that carries a compressed kernel"},
		{"EFI program", at(0, "MZ\x90"), ErrNotKernel, "not a kernel: an EFI or DOS program without a Linux setup header"},
		{"boot sector", at(510, "\x55\xaa"), ErrNotKernel, "not a kernel: a boot sector without a Linux setup header"},
		{"HdrS without boot flag", at(0x202, "HdrS"), ErrNotKernel, "not a kernel: neither a bzImage nor an ELF file"},
		{"text", []byte("# sizes in KiB\r\n\tA=1\nnaïve\n"), ErrNotKernel, "not a kernel: a text file"},
		{"long text", bytes.Repeat([]byte("a line\n"), 1000), ErrNotKernel, "not a kernel: a text file"},
		{"Latin-1 or junk", []byte("na\xefve\n"), ErrNotKernel, "not a kernel: neither a bzImage nor an ELF file"},
		{"zeroes", at(0, ""), ErrNotKernel, "not a kernel: neither a bzImage nor an ELF file"},
		{"one zero", []byte{0}, ErrNotKernel, "not a kernel: neither a bzImage nor an ELF file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { requireRefused(t, tt.file, tt.is, tt.want) })
	}
}
