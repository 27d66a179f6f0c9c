package virtqueue

import (
	"io"

	"golang.org/x/sys/unix"
)

// Buffers is a list of pieces of guest memory, in the order of a descriptor chain. The guest may change what is in them
// at any moment. How a request is cut into pieces is the driver's choice (§2.7.4.1): no device may rely on it.
//
// Read, Write and Skip take from the front: they change the list, which belongs to its [Chain].
type Buffers [][]byte

// Len is the number of bytes.
func (b Buffers) Len() int {
	n := 0
	for _, p := range b {
		n += len(p)
	}
	return n
}

// Read implements io.Reader: it copies bytes out of the guest's memory and takes them off the list.
func (b *Buffers) Read(p []byte) (n int, err error) {
	for n < len(p) && len(*b) > 0 {
		n += b.advance(copy(p[n:], (*b)[0]))
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write implements io.Writer: it copies p into the guest's memory and takes that off the list.
func (b *Buffers) Write(p []byte) (n int, err error) {
	for n < len(p) && len(*b) > 0 {
		n += b.advance(copy((*b)[0], p[n:]))
	}
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// Skip takes n bytes off the list, or all where there are less, and returns how many.
func (b *Buffers) Skip(n int) int {
	skipped := 0
	for skipped < n && len(*b) > 0 {
		skipped += b.advance(min(n-skipped, len((*b)[0])))
	}
	return skipped
}

// advance takes n bytes off the first piece.
func (b *Buffers) advance(n int) int {
	if n == len((*b)[0]) {
		*b = (*b)[1:]
	} else {
		(*b)[0] = (*b)[0][n:]
	}
	return n
}

// Limit shortens the list to its first n bytes.
func (b *Buffers) Limit(n int) {
	for i, p := range *b {
		if n <= len(p) {
			if n > 0 {
				(*b)[i] = p[:n]
				i++
			}
			*b = (*b)[:i]
			return
		}
		n -= len(p)
	}
}

// AppendIovecs appends the pieces to iov, for readv(2) and its like.
func (b Buffers) AppendIovecs(iov []unix.Iovec) []unix.Iovec {
	for _, p := range b {
		if len(p) > 0 {
			iov = append(iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
		}
	}
	return iov
}
