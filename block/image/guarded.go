package image

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/block"
)

// guarded is a raw disk whose format nobody has named; see the package comment.
type guarded struct{ *block.File }

// DirectFrom is where writes may begin that do not go through this type's methods.
func (g *guarded) DirectFrom() int64 { return block.SectorSize }

// WriteAt implements io.WriterAt.
func (g *guarded) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		if format, _ := probe(p); format != "" {
			return 0, ErrGuarded
		}
	}
	return g.File.WriteAt(p, off)
}

// WriteVector writes the buffers of iov, one after the other, to off. It changes iov.
func (g *guarded) WriteVector(iov []unix.Iovec, off int64) (int, error) {
	if off >= block.SectorSize {
		return g.File.WriteVector(iov, off)
	}
	// The guest may change its memory between the look at it and the write: what is looked at is a copy.
	var head [block.SectorSize]byte
	n := 0
	for i := range iov {
		v := &iov[i]
		k := copy(head[n:], unsafe.Slice(v.Base, v.Len))
		if k > 0 && uint64(k) < v.Len {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), k))
		}
		v.Len -= uint64(k)
		n += k
	}
	if m, err := g.WriteAt(head[:n], off); err != nil || m < n {
		return m, err
	}
	m, err := g.File.WriteVector(iov, off+int64(n))
	return n + m, err
}
