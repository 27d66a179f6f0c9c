package image

import (
	"bytes"
	"errors"
	"io"
)

// Pieces of a copy in bytes: what is read at once, and what is looked at for zeroes.
const (
	copyBytes = 1 << 20
	zeroBytes = 4 << 10
)

// Copy writes the contents of src to dst, which is as large and reads as zeroes: pieces of zeroes are left out. It tells
// progress, if that is not nil, how many bytes are done.
func Copy(dst io.WriterAt, src Disk, progress func(done int64)) error {
	buffer := make([]byte, copyBytes)
	zeroes := make([]byte, zeroBytes)
	size := src.Size()
	for off := int64(0); off < size; {
		p := buffer[:min(copyBytes, size-off)]
		if n, err := src.ReadAt(p, off); n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		for at := 0; at < len(p); {
			blank := isZero(p[at:], zeroes)
			end := at
			for end < len(p) && isZero(p[end:], zeroes) == blank {
				end = min(end+zeroBytes, len(p))
			}
			if !blank {
				if _, err := dst.WriteAt(p[at:end], off+int64(at)); err != nil {
					return err
				}
			}
			at = end
		}
		if off += int64(len(p)); progress != nil {
			progress(off)
		}
	}
	return nil
}

// isZero tells whether the first piece of p is all zeroes.
func isZero(p, zeroes []byte) bool {
	p = p[:min(len(p), len(zeroes))]
	return bytes.Equal(p, zeroes[:len(p)])
}
