// Package memory is the guest's physical memory: a few regions of host memory, each backing one range of
// guest-physical addresses, and the only place where such addresses are checked.
//
// A guest-physical address and a length that come from the guest are hostile. Every access goes through
// [Memory.Slice], which checks overflow and bounds in one place and hands out a slice that aliases the guest's RAM.
// The guest may change those bytes at any moment: a caller reads a field once into a local before it checks it.
package memory

import (
	"errors"
	"fmt"
	"sort"
)

// GPA is a guest-physical address.
type GPA uint64

// Region is one contiguous range of guest RAM.
type Region struct {
	Start GPA
	Bytes []byte // aliases the RAM; len(Bytes) is the region's size
}

// End returns the first address after the region. It does not wrap around: no Memory has a region that reaches 2^64.
func (r Region) End() GPA { return r.Start + GPA(len(r.Bytes)) }

// Range is a range of guest-physical addresses that wants RAM.
type Range struct {
	Start GPA
	Size  uint64 // bytes
}

// RangeError reports an access that is not wholly inside one region.
type RangeError struct {
	Addr GPA
	Size uint64 // bytes
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("guest memory [%#x, +%#x): not inside one region", uint64(e.Addr), e.Size)
}

// Memory is a set of regions, sorted by address and without overlap. It does not change between [Map] (or [FromSlices])
// and [Memory.Close], so any goroutine may read it without a lock.
type Memory struct {
	regions []Region
	mapped  bool // the regions are ours to unmap
}

// FromSlices makes a Memory of ordinary slices, which stay the caller's. It serves tests: the race detector and the
// bounds checks see such memory, which they don't with a mapping.
func FromSlices(regions ...Region) (*Memory, error) {
	m := &Memory{regions: append([]Region(nil), regions...)}
	sort.Slice(m.regions, func(i, j int) bool { return m.regions[i].Start < m.regions[j].Start })
	for i, r := range m.regions {
		if len(r.Bytes) == 0 {
			return nil, fmt.Errorf("guest memory region at %#x: empty", uint64(r.Start))
		}
		if uint64(r.Start)+uint64(len(r.Bytes)) < uint64(r.Start) {
			return nil, fmt.Errorf("guest memory region [%#x, +%#x): beyond the address space", uint64(r.Start), len(r.Bytes))
		}
		if i > 0 && m.regions[i-1].End() > r.Start {
			return nil, fmt.Errorf("guest memory region at %#x: overlaps the one at %#x", uint64(r.Start), uint64(m.regions[i-1].Start))
		}
	}
	if len(m.regions) == 0 {
		return nil, errors.New("guest memory: no regions")
	}
	return m, nil
}

// Slice returns the n bytes of guest RAM at addr. The slice aliases the RAM and is valid until [Memory.Close]. It fails
// with a [*RangeError] unless the whole range lies inside one region; n may be zero, at an address inside a region.
func (m *Memory) Slice(addr GPA, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		// addr-r.Start wraps around to a huge offset where addr is below the region.
		off := uint64(addr - r.Start)
		size := uint64(len(r.Bytes))
		if off < size && n <= size-off {
			return r.Bytes[off : off+n : off+n], nil
		}
	}
	return nil, &RangeError{Addr: addr, Size: n}
}

// Regions returns the regions in the order of their addresses. The slice is the caller's, the bytes are the guest's.
func (m *Memory) Regions() []Region { return append([]Region(nil), m.regions...) }

// Size returns the amount of RAM in bytes.
func (m *Memory) Size() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += uint64(len(r.Bytes))
	}
	return n
}

// Discard gives the pages of p back to the host, when the guest has no use for what is in them: they read as zeroes, until
// the guest writes to them again. P must be what [Memory.Slice] has returned, or a part of it. Pages that are in p only in
// part stay as they are, and so does all of p where the host refuses.
func (m *Memory) Discard(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !m.mapped {
		clear(p)
		return nil
	}
	return discard(p)
}
