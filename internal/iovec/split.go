package iovec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Len is how many bytes the buffers of iov hold together.
func Len(iov []unix.Iovec) int64 {
	n := uint64(0)
	for i := range iov {
		n += iov[i].Len
	}
	return int64(n)
}

// Rest is what [Split] has cut off.
type Rest struct {
	index int
	first unix.Iovec
}

// Split returns the buffers of iov up to the n-th byte; iov holds at least as many. Until Of gives the rest, nobody may use
// iov but for the head, which may be changed, as preadv(2)'s callers do.
func Split(iov []unix.Iovec, n int64) (head []unix.Iovec, rest Rest) {
	left := uint64(n)
	for i := range iov {
		v := &iov[i]
		if left > v.Len {
			left -= v.Len
			continue
		}
		rest = Rest{index: i}
		if left < v.Len {
			// Only inside the buffer: a pointer behind it is none.
			rest.first = unix.Iovec{Base: (*byte)(unsafe.Add(unsafe.Pointer(v.Base), left)), Len: v.Len - left}
			v.Len = left
		}
		return iov[:i+1], rest
	}
	return iov, Rest{index: len(iov)}
}

// Of returns what is behind the head in iov, which was split.
func (r Rest) Of(iov []unix.Iovec) []unix.Iovec {
	if r.first.Len == 0 {
		return iov[min(r.index+1, len(iov)):]
	}
	iov[r.index] = r.first
	return iov[r.index:]
}

// Zero fills the buffers with zeroes.
func Zero(iov []unix.Iovec) {
	for i := range iov {
		clear(unsafe.Slice(iov[i].Base, iov[i].Len))
	}
}
