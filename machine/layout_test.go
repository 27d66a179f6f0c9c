package machine

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/bootparam"
	"vmm/memory"
)

func TestLayout(t *testing.T) {
	const (
		mib = uint64(1) << 20
		gib = uint64(1) << 30
	)
	tests := []struct {
		size     uint64
		physBits uint
		ram      []memory.Range
		window   [2]uint64
	}{
		{128 * mib, 48, []memory.Range{{Start: 0, Size: 128 * mib}}, [2]uint64{4 * gib, 64 * gib}},
		{3 * gib, 48, []memory.Range{{Start: 0, Size: 3 * gib}}, [2]uint64{4 * gib, 64 * gib}},
		{3*gib + pageSize, 48, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: memory.GPA(4 * gib), Size: pageSize}}, [2]uint64{5 * gib, 64 * gib}},
		{6 * gib, 48, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: memory.GPA(4 * gib), Size: 3 * gib}}, [2]uint64{7 * gib, 64 * gib}},
		{59 * gib, 36, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: memory.GPA(4 * gib), Size: 56 * gib}}, [2]uint64{60 * gib, 4 * gib}},
		{63 * gib, 36, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: memory.GPA(4 * gib), Size: 60 * gib}}, [2]uint64{64 * gib, 0}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d MiB on %d bits", tt.size>>20, tt.physBits), func(t *testing.T) {
			l, err := newLayout(tt.size, tt.physBits)
			require.NoError(t, err)
			require.Equal(t, tt.ram, l.ram)
			require.Equal(t, tt.window[0], l.mmio64)
			require.Equal(t, tt.window[1], l.mmio64Size)
			checkE820(t, l)
		})
	}
}

// checkE820 asserts what the boot protocol wants of the map: sorted, no overlap, RAM only where there is RAM, and all
// of it but the legacy hole.
func checkE820(t *testing.T, l layout) {
	t.Helper()
	var end, ram uint64
	for _, e := range l.e820() {
		require.GreaterOrEqual(t, uint64(e.Addr), end)
		end = uint64(e.Addr) + e.Size
		if e.Type != bootparam.E820RAM {
			continue
		}
		ram += e.Size
		inside := false
		for _, r := range l.ram {
			inside = inside || e.Addr >= r.Start && end <= uint64(r.Start)+r.Size
		}
		require.True(t, inside, "e820 RAM [%#x, +%#x) without RAM behind it", e.Addr, e.Size)
	}
	var size uint64
	for _, r := range l.ram {
		size += r.Size
	}
	require.Equal(t, size-(highStart-ebdaStart), ram)
}

func TestLayoutTooLarge(t *testing.T) {
	_, err := newLayout(64<<30, 36)
	require.ErrorContains(t, err, "at most 64512 MiB")
	_, err = newLayout(1<<63, 48)
	require.Error(t, err)
}
