package memory

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// resident returns how many pages of b the host holds in memory.
func resident(t *testing.T, b []byte) int {
	vec := make([]byte, (len(b)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	require.Zero(t, errno)
	n := 0
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

// notDumped returns how much memory of this process is kept out of a core dump, in bytes. What Map maps is, and what
// the Go runtime maps is not.
func notDumped(t *testing.T) uint64 {
	smaps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	var size, total uint64 // kB
	for line := range strings.Lines(string(smaps)) {
		fields := strings.Fields(line)
		switch {
		case fields[0] == "Size:":
			size, err = strconv.ParseUint(fields[1], 10, 64)
			require.NoError(t, err)
		case fields[0] == "VmFlags:" && slices.Contains(fields, "dd"):
			total += size
		}
	}
	return total << 10
}

func mapping(t *testing.T, ranges ...Range) *Memory {
	m, err := Map(ranges...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// TestMapTouchesNothing maps more than most hosts have.
func TestMapTouchesNothing(t *testing.T) {
	m := mapping(t, Range{Start: 0, Size: 3 << 30}, Range{Start: 4 << 30, Size: 61 << 30})
	require.Equal(t, uint64(64<<30), m.Size())
	low, high := m.Regions()[0].Bytes, m.Regions()[1].Bytes
	require.Zero(t, resident(t, low))
	require.Zero(t, resident(t, high))

	b, err := m.Slice(64<<30, 1<<30)
	require.NoError(t, err)
	b[len(b)-1] = 1
	require.Zero(t, resident(t, low))
	require.NotZero(t, resident(t, high))
	require.Equal(t, byte(1), high[len(high)-1])

	require.NoError(t, m.Clear())
	require.Zero(t, resident(t, high))
	require.Zero(t, b[len(b)-1])
}

func TestMapIsNotDumped(t *testing.T) {
	before := notDumped(t)
	mapping(t, Range{Start: 0, Size: 0x123000}, Range{Start: 1 << 32, Size: 0x1000})
	require.Equal(t, before+0x124000, notDumped(t))
}

func TestMapErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ranges []Range
		want   string
		is     error
	}{
		{"none", nil, "guest memory: no regions", nil},
		{"empty", []Range{{0, 0}}, "map guest memory [0x0, +0x0): invalid argument", unix.EINVAL},
		{"odd", []Range{{0, 0x1001}}, "map guest memory [0x0, +0x1001): invalid argument", unix.EINVAL},
		{"huge", []Range{{0, 1 << 63}}, "map guest memory [0x0, +0x8000000000000000): invalid argument", unix.EINVAL},
		{"more than the address space", []Range{{0, 1 << 62}},
			"map guest memory [0x0, +0x4000000000000000): cannot allocate memory", unix.ENOMEM},
		{"overlap", []Range{{0, 0x2000}, {0x1000, 0x2000}}, "guest memory region at 0x1000: overlaps the one at 0x0", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := notDumped(t)
			// A range that is good goes first: it must be unmapped again.
			ranges := tt.ranges
			if len(ranges) > 0 {
				ranges = append([]Range{{Start: 1 << 40, Size: 0x1000}}, ranges...)
			}
			m, err := Map(ranges...)
			require.EqualError(t, err, tt.want)
			require.Nil(t, m)
			if tt.is != nil {
				require.ErrorIs(t, err, tt.is)
			}
			require.Equal(t, before, notDumped(t), "something stays mapped")
		})
	}
}

func TestCloseIsIdempotent(t *testing.T) {
	before := notDumped(t)
	m, err := Map(Range{Start: 0, Size: 0x1000}, Range{Start: 0x10000, Size: 0x2000})
	require.NoError(t, err)
	require.Equal(t, before+0x3000, notDumped(t))
	require.NoError(t, m.Close())
	require.Equal(t, before, notDumped(t))
	require.NoError(t, m.Close())
	_, err = m.Slice(0, 1)
	require.Error(t, err)
	require.Empty(t, m.Regions())
	require.Zero(t, m.Size())
	require.NoError(t, m.Clear())
}

// TestMapAligns: a huge page of the host can back one of the guest only where both addresses agree below 2 MiB.
func TestMapAligns(t *testing.T) {
	m := mapping(t, Range{Start: 0, Size: 0x5000}, Range{Start: 1 << 32, Size: 4 << 20})
	for _, r := range m.Regions() {
		require.Zero(t, uintptr(unsafe.Pointer(&r.Bytes[0]))%(2<<20))
	}
}

func TestDiscard(t *testing.T) {
	m, err := Map(Range{Start: 0x10_0000, Size: 4 << 20})
	require.NoError(t, err)
	defer func() { require.NoError(t, m.Close()) }()
	p, err := m.Slice(0x10_0000, 4<<20)
	require.NoError(t, err)
	for i := range p {
		p[i] = 1
	}
	require.NoError(t, m.Discard(p[100:4096*3+5]))
	require.NoError(t, m.Discard(p[4096*4+1:4096*5])) // no whole page
	require.NoError(t, m.Discard(nil))
	for i := range 6 {
		want := byte(1)
		if i == 1 || i == 2 {
			want = 0
		}
		require.Equal(t, want, p[4096*i], "page %d", i)
		require.Equal(t, want, p[4096*i+4095], "page %d", i)
	}

	s, err := FromSlices(Region{Start: 0, Bytes: []byte{1, 2, 3, 4}})
	require.NoError(t, err)
	q, err := s.Slice(1, 2)
	require.NoError(t, err)
	require.NoError(t, s.Discard(q))
	require.Equal(t, []byte{0, 0}, q)
}
