package pci

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// AssignBARs does what firmware does before a system starts: it gives each BAR that has no address a place in the first
// window where there is room, the largest first, each at a multiple of its size. It leaves the command registers alone:
// the function's driver enables it. A system that places BARs by itself may move them.
func (r *Root) AssignBARs() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	type place struct {
		f    *Function
		i    int
		size uint64
	}
	var places []place
	taken := map[bool][]Window{} // by whether they are of I/O space
	for f, i := range r.bars {
		b, at := f.bars[i], f.decode(i).addr
		if at != 0 {
			taken[b.Kind == IO] = append(taken[b.Kind == IO], Window{Start: at, Size: b.Size})
		} else {
			places = append(places, place{f, i, b.Size})
		}
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(b.size, a.size) })
	for _, p := range places {
		b := p.f.bars[p.i]
		isIO := b.Kind == IO
		_, windows := r.route(b.Kind)
		at, ok := findRoom(windows, taken[isIO], b.Size, b.Kind == Mem64)
		if !ok {
			return fmt.Errorf("%s: no room for %#x bytes in the windows of the bus", b.name, b.Size)
		}
		taken[isIO] = append(taken[isIO], Window{Start: at, Size: b.Size})
		p.f.setBAR(p.i, at)
	}
	r.remap()
	return nil
}

// findRoom returns the lowest multiple of size, in the first window that has one, where nothing is taken.
func findRoom(windows, taken []Window, size uint64, above4G bool) (uint64, bool) {
	for _, w := range windows {
		for at := (w.Start + size - 1) &^ (size - 1); at >= w.Start && w.contains(at, size); at += size {
			if !above4G && at+size > 1<<32 {
				break
			}
			free := !slices.ContainsFunc(taken, func(t Window) bool { return at < t.Start+t.Size && t.Start < at+size })
			if free && at != 0 {
				return at, true
			}
		}
	}
	return 0, false
}

// setBAR writes an address to the register, or registers, of BAR i.
func (f *Function) setBAR(i int, addr uint64) {
	le := binary.LittleEndian
	low := f.state.regs[regBAR(i):]
	le.PutUint32(low, le.Uint32(low)&^le.Uint32(f.writable[regBAR(i):])|uint32(addr))
	if f.bars[i].Kind == Mem64 {
		le.PutUint32(f.state.regs[regBAR(i+1):], uint32(addr>>32))
	}
}
