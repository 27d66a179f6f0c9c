package iovec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scatter copies bytes to pieces of memory, one after the other. What does not fit is lost.
type Scatter struct {
	iov []unix.Iovec
	at  uint64 // in the first
	n   int
}

// NewScatter begins at the front of iov, whose elements stay as they are.
func NewScatter(iov []unix.Iovec) Scatter { return Scatter{iov: iov} }

// Put copies b to where the last one ended.
func (s *Scatter) Put(b []byte) {
	for len(b) > 0 && len(s.iov) > 0 {
		if s.iov[0].Len == s.at {
			s.iov, s.at = s.iov[1:], 0
			continue
		}
		n := copy(unsafe.Slice(s.iov[0].Base, s.iov[0].Len)[s.at:], b)
		s.at, s.n, b = s.at+uint64(n), s.n+n, b[n:]
	}
}

// Len is how many bytes have been copied.
func (s *Scatter) Len() int { return s.n }
