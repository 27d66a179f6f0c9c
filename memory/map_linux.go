package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Map maps fresh anonymous host memory for each range. No page is touched: the host gives memory only as the guest
// writes to it, and none is reserved ahead (MAP_NORESERVE), so that a guest larger than the host starts, as it does
// under other monitors.
func Map(ranges ...Range) (*Memory, error) {
	var mapped [][]byte
	undo := func() {
		for _, b := range mapped {
			_ = unix.Munmap(b) // the mapping is ours and whole: nothing to report
		}
	}
	regions := make([]Region, 0, len(ranges))
	for _, r := range ranges {
		if r.Size == 0 || r.Size > 1<<62 {
			undo()
			return nil, fmt.Errorf("map guest memory [%#x, +%#x): %w", uint64(r.Start), r.Size, unix.EINVAL)
		}
		b, err := unix.Mmap(-1, 0, int(r.Size), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			undo()
			return nil, fmt.Errorf("map guest memory [%#x, +%#x): %w", uint64(r.Start), r.Size, err)
		}
		mapped = append(mapped, b)
		// A core dump of the monitor shall hold its own state, not gigabytes of the guest's secrets.
		_ = unix.Madvise(b, unix.MADV_DONTDUMP)
		regions = append(regions, Region{Start: r.Start, Bytes: b})
	}
	m, err := FromSlices(regions...)
	if err != nil {
		undo()
		return nil, err
	}
	m.mapped = true
	return m, nil
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
		if err := unix.Munmap(r.Bytes); err != nil {
			errs = append(errs, fmt.Errorf("unmap guest memory [%#x, +%#x): %w", uint64(r.Start), len(r.Bytes), err))
		}
	}
	m.regions = nil
	return errors.Join(errs...)
}
