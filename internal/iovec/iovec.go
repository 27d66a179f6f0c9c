// Package iovec has what readv(2) and its like leave to their callers.
package iovec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Advance takes n bytes off the front of iov, whose elements it changes, and returns the rest: empty elements are gone from
// its front.
func Advance(iov []unix.Iovec, n int) []unix.Iovec {
	for len(iov) > 0 {
		v := &iov[0]
		if uint64(n) < v.Len {
			// Only inside the buffer: a pointer behind it is none.
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.Len -= uint64(n)
			return iov
		}
		n -= int(v.Len)
		iov = iov[1:]
	}
	return iov
}

// Aligned tells whether all addresses and lengths are multiples of align, a power of two.
func Aligned(iov []unix.Iovec, align int) bool {
	if align == 1 {
		return true
	}
	mask := uint64(align - 1)
	for i := range iov {
		if (uint64(uintptr(unsafe.Pointer(iov[i].Base)))|iov[i].Len)&mask != 0 {
			return false
		}
	}
	return true
}
