package bootparam

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

func TestFindRAM(t *testing.T) {
	mem, err := memory.FromSlices(
		memory.Region{Start: 0x1000, Bytes: make([]byte, 0x1000)},
		memory.Region{Start: 0x2000, Bytes: make([]byte, 0x1000)},
		memory.Region{Start: 0x8000, Bytes: make([]byte, 0x1000)})
	require.NoError(t, err)
	require.Equal(t, spans{{0x1800, 0x2000}, {0x2000, 0x2400}, {0x2c00, 0x3000}, {0x8000, 0x8400}}, findRAM(mem, []E820Entry{
		{0x0000, 0x0800, E820RAM},      // no region
		{0x1800, 0x0c00, E820RAM},      // parts of two
		{0x2400, 0x0800, E820Reserved}, // no RAM
		{0x2c00, 0x5800, E820RAM},      // beyond a region and into the next
		{0x8400, 0x1000, E820NVS},      // no RAM
	}))
}

func TestSpans(t *testing.T) {
	free := spans{{0x1000, 0x3000}, {0x5000, 0x5800}, {0x8001, 0xa000}}
	for _, s := range free {
		require.True(t, free.contains(s), s)
		require.False(t, free.contains(span{s.start - 1, s.end}), s)
		require.False(t, free.contains(span{s.start, s.end + 1}), s)
	}

	require.Equal(t, spans{{0x1000, 0x1001}, {0x9fff, 0xa000}}, free.without(span{0x1001, 0x9fff}))
	require.Equal(t, free, free.without(span{0x3000, 0x5000}))
	require.Equal(t, spans{{0x1000, 0x2000}}, free.below(0x2000))
	require.Equal(t, spans{{0x1000, 0x3000}}, free.below(0x5000))
	require.Equal(t, free, free.below(math.MaxUint64))
	require.Empty(t, free.below(0))
	require.EqualValues(t, 0x2000, free.largest())

	tests := []struct {
		size, align     uint64
		lowest, highest memory.GPA // 0 for none
	}{
		{1, 1, 0x1000, 0x9fff},
		{0x800, 0x1000, 0x1000, 0x9000},
		{0x1000, 0x1000, 0x1000, 0x9000},
		{0x1001, 0x1000, 0x1000, 0x1000},
		{0x1fff, 1, 0x1000, 0x8001},
		{0x2000, 1, 0x1000, 0x1000},
		{0x2001, 1, 0, 0},
		{1, 0x2000, 0x2000, 0x2000},
		{1, 0x8000, 0, 0},
		{math.MaxUint64, 1, 0, 0},
	}
	for _, tt := range tests {
		s, ok := free.lowest(tt.size, tt.align)
		require.Equal(t, tt.lowest != 0, ok, "lowest %+v", tt)
		require.Equal(t, tt.lowest, s.start, "lowest %+v", tt)
		s, ok = free.highest(tt.size, tt.align)
		require.Equal(t, tt.highest != 0, ok, "highest %+v", tt)
		require.Equal(t, tt.highest, s.start, "highest %+v", tt)
	}

	// The end of the address space.
	_, ok := spans{{math.MaxUint64 - 0xfff, math.MaxUint64}}.lowest(1, 0x2000)
	require.False(t, ok)
	_, ok = newSpan(math.MaxUint64, 1)
	require.False(t, ok)
	s, ok := newSpan(math.MaxUint64, 0)
	require.True(t, ok)
	require.Zero(t, s.size())
}
