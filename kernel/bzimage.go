package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Offsets into the setup header; Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const (
	setupSects    = 0x1f1 // u8, in sectors of 512 bytes, the boot sector not counted
	headerMagic   = 0x202 // "HdrS"
	payloadOffset = 0x248 // u32, from the start of the protected-mode code
	payloadLength = 0x24c // u32, with the four bytes of the unpacked size that end the payload
)

// Decompress returns the vmlinux that the bzImage holds.
func Decompress(image []byte) ([]byte, error) {
	if len(image) < payloadLength+4 || !bytes.Equal(image[headerMagic:headerMagic+4], []byte("HdrS")) {
		return nil, errors.New("not a bzImage")
	}
	start := (uint64(image[setupSects])+1)*512 + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if end > uint64(len(image)) || end < start+8 {
		return nil, fmt.Errorf("payload [%#x, %#x) in an image of %#x bytes", start, end, len(image))
	}
	payload := image[start : end-4]
	elf, err := unpack(payload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if size := binary.LittleEndian.Uint32(image[end-4:]); uint64(len(elf)) != uint64(size) {
		return nil, fmt.Errorf("payload of %d bytes, not %d as it says", len(elf), size)
	}
	return elf, nil
}

// unpack undoes whichever of the kernel's usual compressions it meets.
func unpack(payload []byte) ([]byte, error) {
	r := bytes.NewReader(payload)
	switch {
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return io.ReadAll(z)
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // the legacy frame
		return io.ReadAll(lz4.NewReader(r))
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		// With the x86 branch filter, which the Go package lacks.
		cmd := exec.Command("xz", "-dc")
		cmd.Stdin = r
		return cmd.Output()
	}
	return nil, fmt.Errorf("unknown compression (starts with % x)", payload[:4])
}
