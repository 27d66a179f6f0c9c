package bootparam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vmm/memory"
)

// kernel is a kernel file, understood and placed in guest memory but not yet read into it.
type kernel struct {
	protocol Protocol
	entry    memory.GPA
	segments []segment
	header   setupHeader // for the zero page

	// cmdlineSize is the longest command line, without the NUL, that the kernel takes.
	cmdlineSize uint64
	// initrdLimits are the addresses below which the initrd may end, the preferred one first.
	initrdLimits []memory.GPA
}

// segment is a piece of the file, and the memory that it needs.
type segment struct {
	span        // what it occupies
	off  int64  // where its bytes are in the file
	size uint64 // how many
	zero uint64 // bytes that must be zero after them
}

// findKernel parses the kernel file and finds a place in the free RAM for it.
func findKernel(img Image, ram spans) (*kernel, error) {
	size := img.Size()
	if size <= 0 {
		return nil, ErrEmpty
	}
	// The first bytes, as far as the longest setup header goes; zeroes stand for what a shorter file lacks.
	var start [setupHeaderEnd]byte
	n := min(size, int64(len(start)))
	if err := readAt(img, start[:n], 0); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start[:], []byte("\x7fELF")):
		return findELF(img, start[:n], ram)
	case bytes.Equal(start[offHeader:][:4], []byte(headerMagic)) &&
		binary.LittleEndian.Uint16(start[offBootFlag:]) == bootFlag:
		return findBzImage(size, start, ram)
	}
	return nil, refuse(start[:n])
}

// knownFiles are what users take for a kernel, known by the bytes at an offset.
var knownFiles = [...]struct {
	off   int
	magic string
	err   error
	what  string
}{
	{0, "\x1f\x8b", ErrCompressed, "gzip data, decompress it first"},
	{0, "\xfd7zXZ\x00", ErrCompressed, "xz data, decompress it first"},
	{0, "\x28\xb5\x2f\xfd", ErrCompressed, "zstd data, decompress it first"},
	{0, "BZh", ErrCompressed, "bzip2 data, decompress it first"},
	{0, "\x02\x21\x4c\x18", ErrCompressed, "lz4 data, decompress it first"},
	{0, "\x5d\x00\x00", ErrCompressed, "lzma data, decompress it first"},
	{0, "\x89LZO", ErrCompressed, "lzop data, decompress it first"},
	{56, "ARM\x64", ErrArch, "arm64"},
	{56, "RSC\x05", ErrArch, "RISC-V"},
	{0x24, "\x18\x28\x6f\x01", ErrArch, "32-bit ARM"},
	{0, "070701", ErrNotKernel, "a cpio archive, as an initrd is"},
	{4, "zimg", ErrNotKernel, "an EFI program that carries a compressed kernel"},
	{0, "MZ", ErrNotKernel, "an EFI or DOS program without a Linux setup header"},
	{offBootFlag, "\x55\xaa", ErrNotKernel, "a boot sector without a Linux setup header"},
}

// refuse says what the file is that begins with start, if not a kernel.
func refuse(start []byte) error {
	for _, f := range knownFiles {
		if len(start) >= f.off && bytes.HasPrefix(start[f.off:], []byte(f.magic)) {
			return fmt.Errorf("%w: %s", f.err, f.what)
		}
	}
	isText := !bytes.ContainsFunc(start, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f || r == '\ufffd'
	})
	if isText {
		return fmt.Errorf("%w: a text file", ErrNotKernel)
	}
	return fmt.Errorf("%w: neither a bzImage nor an ELF file", ErrNotKernel)
}

// readAt fills p from off of img.
func readAt(img Image, p []byte, off int64) error {
	n, err := img.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil // whatever err is: io.ReaderAt may give io.EOF with the last byte
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends at %d, inside [%d, +%d)", ErrTruncated, off+int64(n), off, len(p))
	}
	return fmt.Errorf("read [%d, +%d): %w", off, len(p), err)
}

// checkPlaced returns why s, where a part of the kernel must be, isn't free for it; nil if it is. The kernel ends at end.
func checkPlaced(s span, end memory.GPA, free spans) error {
	switch {
	case s.end > mappedEnd:
		return fmt.Errorf("%w: %v is beyond 4 GiB, which nothing maps when the kernel starts", ErrCorrupt, s)
	case s.start < lowEnd:
		return fmt.Errorf("%w: %v is below %#x, where the boot parameters are", ErrNoRoom, s, uint64(lowEnd))
	case !free.contains(s):
		return noRoom(s, end)
	}
	return nil
}

// noRoom says that s isn't RAM, and how much memory a guest needs for a kernel that ends at end.
func noRoom(s span, end memory.GPA) error {
	return fmt.Errorf("%w: %v must be RAM, and the kernel needs %d MiB at least", ErrNoRoom, s, alignUp(uint64(end), 1<<20)>>20)
}
