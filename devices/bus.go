package devices

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// ErrOverlap is what [Bus.Add] wraps when a range is taken.
var ErrOverlap = errors.New("overlaps another device")

// Bus finds the device behind an address. The look-up takes no lock: it reads a sorted snapshot, which Add and Remove
// replace. The zero value is an empty bus.
type Bus struct {
	slots atomic.Pointer[[]slot]
	mu    sync.Mutex // serialises Add and Remove

	unclaimed atomic.Uint64
	// OnUnclaimed, when set before the first access, sees each access that no device claims. It must not block.
	OnUnclaimed func(addr uint64, size int, write bool)
}

type slot struct {
	start, last uint64
	name        string
	dev         Device
}

// Range describes one device's place on a bus.
type Range struct {
	Name  string
	Start uint64
	Size  uint64
}

// Add puts dev at [start, start+size). It fails, wrapping [ErrOverlap], where the range touches another device's.
func (b *Bus) Add(name string, start, size uint64, dev Device) error {
	last := start + size - 1
	if size == 0 || last < start {
		return fmt.Errorf("%s at [%#x, +%#x): not a range", name, start, size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.snapshot()
	i := sort.Search(len(old), func(i int) bool { return old[i].last >= start })
	if i < len(old) && old[i].start <= last {
		return fmt.Errorf("%s at [%#x, +%#x): %w: %s at %#x", name, start, size, ErrOverlap, old[i].name, old[i].start)
	}
	slots := slices.Insert(slices.Clone(old), i, slot{start: start, last: last, name: name, dev: dev})
	b.slots.Store(&slots)
	return nil
}

// Remove takes away the device that starts at start and reports whether there was one. An access that is under way on
// another vCPU may still reach the device after Remove returns.
func (b *Bus) Remove(start uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.snapshot()
	i := slices.IndexFunc(old, func(s slot) bool { return s.start == start })
	if i < 0 {
		return false
	}
	slots := slices.Delete(slices.Clone(old), i, i+1)
	b.slots.Store(&slots)
	return true
}

// Read fills p from the device at addr, with all ones where there is none.
func (b *Bus) Read(addr uint64, p []byte) {
	if s := b.find(addr, len(p)); s != nil {
		s.dev.Read(addr-s.start, p)
		return
	}
	for i := range p {
		p[i] = 0xff
	}
	b.miss(addr, len(p), false)
}

// Write hands p to the device at addr; where there is none it vanishes.
func (b *Bus) Write(addr uint64, p []byte) {
	if s := b.find(addr, len(p)); s != nil {
		s.dev.Write(addr-s.start, p)
		return
	}
	b.miss(addr, len(p), true)
}

// Unclaimed returns how many accesses no device claimed.
func (b *Bus) Unclaimed() uint64 { return b.unclaimed.Load() }

// Ranges lists the devices in the order of their addresses.
func (b *Bus) Ranges() []Range {
	slots := b.snapshot()
	out := make([]Range, len(slots))
	for i, s := range slots {
		out[i] = Range{Name: s.name, Start: s.start, Size: s.last - s.start + 1}
	}
	return out
}

// find returns the slot that holds the whole access, or nil: an access that sticks out of a device's range, or is empty,
// belongs to nobody, so that no device needs to check either.
func (b *Bus) find(addr uint64, n int) *slot {
	slots := b.snapshot()
	lo, hi := 0, len(slots)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if slots[mid].last < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	// Where n is zero, uint64(n)-1 is more than any range.
	if lo == len(slots) || addr < slots[lo].start || uint64(n)-1 > slots[lo].last-addr {
		return nil
	}
	return &slots[lo]
}

func (b *Bus) miss(addr uint64, n int, write bool) {
	b.unclaimed.Add(1)
	if b.OnUnclaimed != nil {
		b.OnUnclaimed(addr, n, write)
	}
}

func (b *Bus) snapshot() []slot {
	if p := b.slots.Load(); p != nil {
		return *p
	}
	return nil
}
