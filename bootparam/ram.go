package bootparam

import (
	"fmt"
	"math"

	"vmm/memory"
)

// span is the range of addresses [start, end).
type span struct{ start, end memory.GPA }

func (s span) size() uint64   { return uint64(s.end - s.start) }
func (s span) String() string { return fmt.Sprintf("[%#x, %#x)", uint64(s.start), uint64(s.end)) }

// newSpan returns the span of size bytes at start; ok is false if it leaves the address space.
func newSpan(start memory.GPA, size uint64) (s span, ok bool) {
	return span{start, start + memory.GPA(size)}, size <= math.MaxUint64-uint64(start)
}

// spans are ranges of free RAM, sorted and without overlap. Each lies inside one region of guest memory.
type spans []span

// findRAM returns what is RAM in the memory map and in the guest's memory as well.
func findRAM(mem *memory.Memory, e820 []E820Entry) spans {
	var ram spans
	for _, e := range e820 {
		if e.Type != E820RAM {
			continue
		}
		for _, r := range mem.Regions() {
			s := span{max(e.Addr, r.Start), min(e.Addr+memory.GPA(e.Size), r.End())}
			if s.start < s.end {
				ram = append(ram, s)
			}
		}
	}
	return ram
}

// contains reports whether all of s is free.
func (ss spans) contains(s span) bool {
	for _, free := range ss {
		if free.start <= s.start && s.end <= free.end {
			return true
		}
	}
	return false
}

// without returns ss less s.
func (ss spans) without(s span) spans {
	var rest spans
	for _, free := range ss {
		if below := (span{free.start, min(free.end, s.start)}); below.start < below.end {
			rest = append(rest, below)
		}
		if above := (span{max(free.start, s.end), free.end}); above.start < above.end {
			rest = append(rest, above)
		}
	}
	return rest
}

// below returns the part of ss below limit.
func (ss spans) below(limit memory.GPA) spans { return ss.without(span{limit, math.MaxUint64}) }

// lowest returns the lowest size bytes of ss that begin at a multiple of align, a power of two.
func (ss spans) lowest(size, align uint64) (span, bool) {
	for _, free := range ss {
		start := alignUp(uint64(free.start), align)
		if start >= uint64(free.start) && start < uint64(free.end) && size <= uint64(free.end)-start {
			return newSpan(memory.GPA(start), size)
		}
	}
	return span{}, false
}

// highest returns the highest size bytes of ss that begin at a multiple of align, a power of two.
func (ss spans) highest(size, align uint64) (span, bool) {
	for i := len(ss) - 1; i >= 0; i-- {
		free := ss[i]
		if size > free.size() {
			continue
		}
		start := (uint64(free.end) - size) &^ (align - 1)
		if start >= uint64(free.start) {
			return newSpan(memory.GPA(start), size)
		}
	}
	return span{}, false
}

// largest returns the size of the largest span.
func (ss spans) largest() uint64 {
	var n uint64
	for _, s := range ss {
		n = max(n, s.size())
	}
	return n
}

// alignUp rounds n up to a multiple of align, a power of two. It gives 0 if that leaves the address space.
func alignUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }
