package memory

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a transparent huge page. A guest's page tables, as the processor nests them, can use one only
// where the guest-physical and the host's virtual address agree below it.
const hugePage = 2 << 20

// Map maps fresh anonymous host memory for each range, whose size must be a multiple of the host's pages. No page is
// touched: the host gives memory only as the guest writes to it, and none is reserved ahead (MAP_NORESERVE), so that a
// guest larger than the host starts, as it does under other monitors. The host may back it with huge pages, which makes
// first touches and page walks of the guest several times cheaper.
func Map(ranges ...Range) (*Memory, error) {
	m := &Memory{mapped: true}
	for _, r := range ranges {
		b, err := mapAnonymous(r.Size)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map guest memory [%#x, +%#x): %w", uint64(r.Start), r.Size, err), m.Close())
		}
		m.regions = append(m.regions, Region{Start: r.Start, Bytes: b})
		// A core dump of the monitor shall hold its own state, not gigabytes of the guest's secrets.
		_ = unix.Madvise(b, unix.MADV_DONTDUMP)
		// A kernel without huge pages refuses, and all is as well without.
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	}
	checked, err := FromSlices(m.regions...)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	checked.mapped = true
	return checked, nil
}

// mapAnonymous maps size bytes at a multiple of hugePage: more than is needed, and the ends given back.
func mapAnonymous(size uint64) ([]byte, error) {
	if size == 0 || size > 1<<62 || size%uint64(unix.Getpagesize()) != 0 {
		return nil, unix.EINVAL
	}
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size)+hugePage, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	head := -uintptr(p) & (hugePage - 1)
	if head > 0 {
		if err := unix.MunmapPtr(p, head); err != nil {
			return nil, err
		}
	}
	if tail := hugePage - head; tail > 0 {
		if err := unix.MunmapPtr(unsafe.Add(p, head+uintptr(size)), tail); err != nil {
			return nil, err
		}
	}
	return unsafe.Slice((*byte)(unsafe.Add(p, head)), size), nil
}

// Clear makes all the RAM read as zeroes again and gives its pages back to the host, as a reset of the machine wants
// it. No vCPU may run meanwhile.
func (m *Memory) Clear() error {
	for _, r := range m.regions {
		if !m.mapped {
			clear(r.Bytes)
			continue
		}
		if err := unix.Madvise(r.Bytes, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("clear guest memory [%#x, +%#x): %w", uint64(r.Start), len(r.Bytes), err)
		}
	}
	return nil
}

// Close unmaps what [Map] mapped; every slice handed out is invalid from then on. It is idempotent, and does nothing to
// the slices of [FromSlices].
func (m *Memory) Close() error {
	if !m.mapped {
		return nil
	}
	m.mapped = false
	var errs []error
	for _, r := range m.regions {
		if err := unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(r.Bytes)), uintptr(len(r.Bytes))); err != nil {
			errs = append(errs, fmt.Errorf("unmap guest memory [%#x, +%#x): %w", uint64(r.Start), len(r.Bytes), err))
		}
	}
	m.regions = nil
	return errors.Join(errs...)
}

// discard gives the whole pages of a mapping back. One that is a part of a huge page makes the host split that: it is what
// the guest has asked for, page by page; free page reporting comes in pieces that need no splitting.
func discard(p []byte) error {
	size := uintptr(unix.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	skip := -start & (size - 1)
	if uintptr(len(p)) < skip+size {
		return nil
	}
	whole := p[skip:][:(uintptr(len(p))-skip)&^(size-1)]
	if err := unix.Madvise(whole, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("discard %d bytes of guest memory: %w", len(whole), err)
	}
	return nil
}
