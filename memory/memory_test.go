package memory

import (
	"math"
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
)

// newMemory has two regions that touch, one after a hole, and one as near the end of the address space as there can be.
func newMemory(t testing.TB) *Memory {
	m, err := FromSlices(
		Region{Start: 0x10000, Bytes: make([]byte, 0x1000)},
		Region{Start: top, Bytes: make([]byte, 0x1000)},
		Region{Start: 0, Bytes: make([]byte, 0x1000)},
		Region{Start: 0x1000, Bytes: make([]byte, 0x2000)},
	)
	require.NoError(t, err)
	return m
}

const top = math.MaxUint64 - 0x1000 // a region of 0x1000 bytes here ends at 2^64-1

func TestSlice(t *testing.T) {
	for _, tt := range []struct {
		name    string
		addr, n uint64
		want    GPA    // the start of the region
		off     uint64 // in the region
		ok      bool
	}{
		{"first byte", 0, 1, 0, 0, true},
		{"whole region", 0, 0x1000, 0, 0, true},
		{"one more", 0, 0x1001, 0, 0, false},
		{"last byte", 0xfff, 1, 0, 0xfff, true},
		{"across regions that touch", 0xfff, 2, 0, 0, false},
		{"second region", 0x1000, 0x2000, 0x1000, 0, true},
		{"in the hole", 0x3000, 1, 0, 0, false},
		{"out of the hole", 0xffff, 2, 0, 0, false},
		{"after the hole", 0x10008, 8, 0x10000, 8, true},
		{"nothing, inside", 0xfff, 0, 0, 0xfff, true},
		{"nothing, in the hole", 0x3000, 0, 0, 0, false},
		{"all there is", 0, math.MaxUint64, 0, 0, false},
		{"length wraps around to the start", 0x10, math.MaxUint64, 0, 0, false},
		{"length wraps around into a region", 0x10000, math.MaxUint64 - 0xf000, 0, 0, false},
		{"top region", top, 0x1000, top, 0, true},
		{"its last byte", math.MaxUint64 - 1, 1, top, 0xfff, true},
		{"over its end", math.MaxUint64 - 1, 2, 0, 0, false},
		{"over the end of the address space", math.MaxUint64 - 1, 4, 0, 0, false},
		{"last address", math.MaxUint64, 1, 0, 0, false},
		{"last address, nothing", math.MaxUint64, 0, 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(t)
			b, err := m.Slice(GPA(tt.addr), tt.n)
			if !tt.ok {
				require.Nil(t, b)
				var re *RangeError
				require.ErrorAs(t, err, &re)
				require.Equal(t, RangeError{Addr: GPA(tt.addr), Size: tt.n}, *re)
				return
			}
			require.NoError(t, err)
			require.Len(t, b, int(tt.n))
			require.Equal(t, int(tt.n), cap(b), "append must not reach the RAM behind the slice")
			for i := range b {
				b[i] = 0xa5
			}
			for _, r := range m.Regions() {
				for i, v := range r.Bytes {
					inside := r.Start == tt.want && uint64(i) >= tt.off && uint64(i) < tt.off+tt.n
					if inside != (v == 0xa5) {
						t.Fatalf("%#x at %#x", v, uint64(r.Start)+uint64(i))
					}
				}
			}
		})
	}
}

func TestSliceDoesNotAllocate(t *testing.T) {
	m := newMemory(t)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := m.Slice(0x10000, 16); err != nil {
			t.Error(err)
		}
	}))
}

func TestRangeError(t *testing.T) {
	require.EqualError(t, &RangeError{Addr: 0x1000, Size: 16}, "guest memory [0x1000, +0x10): not inside one region")
}

func TestFromSlices(t *testing.T) {
	region := func(start GPA, n int) Region { return Region{Start: start, Bytes: make([]byte, n)} }
	for _, tt := range []struct {
		name    string
		regions []Region
		want    string // the error, empty for none
	}{
		{"none", nil, "guest memory: no regions"},
		{"empty", []Region{region(0x1000, 0)}, "guest memory region at 0x1000: empty"},
		{"touching, in disorder", []Region{region(0x1000, 0x1000), region(0, 0x1000)}, ""},
		{"overlap by a byte", []Region{region(0, 0x1001), region(0x1000, 0x1000)},
			"guest memory region at 0x1000: overlaps the one at 0x0"},
		{"same start", []Region{region(0x1000, 1), region(0x1000, 1)},
			"guest memory region at 0x1000: overlaps the one at 0x1000"},
		{"one inside another", []Region{region(0x1800, 1), region(0x1000, 0x1000)},
			"guest memory region at 0x1800: overlaps the one at 0x1000"},
		{"up to the last address but one", []Region{region(top, 0x1000)}, ""},
		{"up to 2^64", []Region{region(top+1, 0x1000)},
			"guest memory region [0xfffffffffffff000, +0x1000): beyond the address space"},
		{"beyond 2^64", []Region{region(top+2, 0x1000)},
			"guest memory region [0xfffffffffffff001, +0x1000): beyond the address space"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			given := append([]Region(nil), tt.regions...)
			m, err := FromSlices(tt.regions...)
			require.Equal(t, given, tt.regions, "the caller's regions keep their order")
			if tt.want != "" {
				require.EqualError(t, err, tt.want)
				require.Nil(t, m)
				return
			}
			require.NoError(t, err)
			var size uint64
			for i, r := range m.Regions() {
				size += uint64(len(r.Bytes))
				if i > 0 {
					require.GreaterOrEqual(t, r.Start, m.Regions()[i-1].End())
				}
			}
			require.Equal(t, size, m.Size())
			require.Len(t, m.Regions(), len(tt.regions))
		})
	}
}

func TestRegionsIsACopy(t *testing.T) {
	m := newMemory(t)
	m.Regions()[0].Start = 0x42
	require.Equal(t, GPA(0), m.Regions()[0].Start)
	m.Regions()[0].Bytes[7] = 1
	b, err := m.Slice(7, 1)
	require.NoError(t, err)
	require.Equal(t, []byte{1}, b)
}

func TestFromSlicesClearAndClose(t *testing.T) {
	mine := []byte{1, 2, 3}
	m, err := FromSlices(Region{Start: 0, Bytes: mine})
	require.NoError(t, err)
	require.NoError(t, m.Clear())
	require.Equal(t, []byte{0, 0, 0}, mine)
	require.NoError(t, m.Close())
	mine[0] = 1
	b, err := m.Slice(0, 1)
	require.NoError(t, err)
	require.Equal(t, []byte{1}, b)
}

func u(v uint64) *big.Int { return new(big.Int).SetUint64(v) }

// inside reports, in integers that cannot overflow, whether [addr, addr+n) lies in [start, start+size), addr itself
// included.
func inside(addr, n, start, size uint64) bool {
	end := new(big.Int).Add(u(start), u(size))
	return u(addr).Cmp(u(start)) >= 0 && u(addr).Cmp(end) < 0 && new(big.Int).Add(u(addr), u(n)).Cmp(end) <= 0
}

// overlap reports the same way whether two ranges have an address in common.
func overlap(start1, size1, start2, size2 uint64) bool {
	end1, end2 := new(big.Int).Add(u(start1), u(size1)), new(big.Int).Add(u(start2), u(size2))
	return u(start1).Cmp(end2) < 0 && u(start2).Cmp(end1) < 0
}

// FuzzSlice holds FromSlices and Slice against the definitions above.
func FuzzSlice(f *testing.F) {
	f.Add(uint64(0), uint16(0x1000), uint64(0x1000), uint16(0x1000), uint64(0xfff), uint64(2))
	f.Add(uint64(0), uint16(0x1000), uint64(top), uint16(0x1000), uint64(math.MaxUint64-1), uint64(3))
	f.Add(uint64(0), uint16(1), uint64(top+1), uint16(0x1000), uint64(0), uint64(1))
	f.Add(uint64(0x10), uint16(0x20), uint64(0x1000), uint16(1), uint64(0x18), uint64(math.MaxUint64-7))
	f.Fuzz(func(t *testing.T, start1 uint64, size1 uint16, start2 uint64, size2 uint16, addr, n uint64) {
		s1, s2 := uint64(size1), uint64(size2)
		m, err := FromSlices(
			Region{Start: GPA(start1), Bytes: make([]byte, size1)},
			Region{Start: GPA(start2), Bytes: make([]byte, size2)})
		valid := s1 > 0 && s2 > 0 && !overlap(start1, s1, start2, s2) &&
			inside(start1, s1, 0, math.MaxUint64) && inside(start2, s2, 0, math.MaxUint64)
		require.Equal(t, valid, err == nil)
		if !valid {
			return
		}
		b, err := m.Slice(GPA(addr), n)
		want := inside(addr, n, start1, s1) || inside(addr, n, start2, s2)
		require.Equal(t, want, err == nil)
		if want {
			require.Len(t, b, int(n))
		}
	})
}
