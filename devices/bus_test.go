package devices

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// recorder is a device that keeps the last access.
type recorder struct {
	fill  byte // what a read gives
	off   uint64
	wrote []byte
	reads int
}

func (d *recorder) Read(off uint64, p []byte) {
	d.off = off
	d.reads++
	for i := range p {
		p[i] = d.fill
	}
}

func (d *recorder) Write(off uint64, p []byte) {
	d.off = off
	d.wrote = append([]byte(nil), p...)
}

func TestBusDispatch(t *testing.T) {
	var b Bus
	low, high, top := &recorder{fill: 1}, &recorder{fill: 2}, &recorder{fill: 3}
	require.NoError(t, b.Add("high", 0x18, 8, high)) // right after low, and added before it
	require.NoError(t, b.Add("low", 0x10, 8, low))
	require.NoError(t, b.Add("top", math.MaxUint64-7, 8, top))

	for _, tt := range []struct {
		name string
		addr uint64
		n    int
		want *recorder // nil for nobody
		off  uint64
	}{
		{"below", 0x0f, 1, nil, 0},
		{"into the start", 0x0f, 2, nil, 0},
		{"first byte", 0x10, 1, low, 0},
		{"whole range", 0x10, 8, low, 0},
		{"last byte", 0x17, 1, low, 7},
		{"across two devices", 0x17, 2, nil, 0},
		{"next device", 0x18, 4, high, 0},
		{"its last bytes", 0x1e, 2, high, 6},
		{"over the end", 0x1e, 4, nil, 0},
		{"above", 0x20, 1, nil, 0},
		{"longer than the device", 0x10, 9, nil, 0},
		{"empty", 0x10, 0, nil, 0},
		{"end of the address space", math.MaxUint64, 1, top, 7},
		{"last eight bytes", math.MaxUint64 - 7, 8, top, 0},
		{"beyond the address space", math.MaxUint64, 2, nil, 0},
		{"address zero", 0, 8, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, d := range []*recorder{low, high, top} {
				d.off, d.wrote, d.reads = math.MaxUint64, nil, 0
			}
			before := b.Unclaimed()
			p := make([]byte, tt.n)
			b.Read(tt.addr, p)
			data := []byte{9, 8, 7, 6, 5, 4, 3, 2, 1}[:tt.n]
			b.Write(tt.addr, data)

			fill := byte(0xff)
			for _, d := range []*recorder{low, high, top} {
				if d != tt.want {
					require.Zero(t, d.reads)
					require.Nil(t, d.wrote)
					continue
				}
				fill = d.fill
				require.Equal(t, 1, d.reads)
				require.Equal(t, data, d.wrote)
				require.Equal(t, tt.off, d.off)
			}
			for _, v := range p {
				require.Equal(t, fill, v)
			}
			misses := uint64(2)
			if tt.want != nil {
				misses = 0
			}
			require.Equal(t, before+misses, b.Unclaimed())
		})
	}
}

func TestBusAdd(t *testing.T) {
	for _, tt := range []struct {
		name        string
		start, size uint64
		want        string // the error, empty for none
	}{
		{"before", 0xf0, 0x10, ""},
		{"after", 0x110, 0x10, ""},
		{"far away", 0x1000, 1, ""},
		{"up to the end of the address space", math.MaxUint64, 1, ""},
		{"all below", 0, 0x100, ""},
		{"same", 0x100, 0x10, "new at [0x100, +0x10): overlaps another device: old at 0x100"},
		{"first byte", 0xf1, 0x10, "new at [0xf1, +0x10): overlaps another device: old at 0x100"},
		{"last byte", 0x10f, 1, "new at [0x10f, +0x1): overlaps another device: old at 0x100"},
		{"inside", 0x108, 1, "new at [0x108, +0x1): overlaps another device: old at 0x100"},
		{"around", 0, 0x1000, "new at [0x0, +0x1000): overlaps another device: old at 0x100"},
		{"two at once", 0x100, 0x200, "new at [0x100, +0x200): overlaps another device: old at 0x100"},
		{"empty", 0x1000, 0, "new at [0x1000, +0x0): not a range"},
		{"empty at zero", 0, 0, "new at [0x0, +0x0): not a range"},
		{"beyond the address space", math.MaxUint64, 2, "new at [0xffffffffffffffff, +0x2): not a range"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Bus
			require.NoError(t, b.Add("old", 0x100, 0x10, &recorder{}))
			require.NoError(t, b.Add("older", 0x200, 0x10, &recorder{}))
			err := b.Add("new", tt.start, tt.size, &recorder{})
			if tt.want == "" {
				require.NoError(t, err)
				require.Len(t, b.Ranges(), 3)
				return
			}
			require.EqualError(t, err, tt.want)
			require.Len(t, b.Ranges(), 2)
			if tt.size != 0 && tt.start+tt.size > tt.start {
				require.ErrorIs(t, err, ErrOverlap)
			}
		})
	}
}

func TestBusRanges(t *testing.T) {
	var b Bus
	require.Empty(t, b.Ranges())
	for _, start := range []uint64{0x30, 0x10, 0x40, 0x20} {
		require.NoError(t, b.Add(fmt.Sprintf("at %#x", start), start, 0x10, &recorder{}))
	}
	require.Equal(t, []Range{
		{"at 0x10", 0x10, 0x10}, {"at 0x20", 0x20, 0x10}, {"at 0x30", 0x30, 0x10}, {"at 0x40", 0x40, 0x10},
	}, b.Ranges())
}

func TestBusRemove(t *testing.T) {
	var b Bus
	require.False(t, b.Remove(0x10))
	d := &recorder{}
	require.NoError(t, b.Add("low", 0x10, 8, &recorder{}))
	require.NoError(t, b.Add("high", 0x18, 8, d))
	before := b.Ranges()

	require.False(t, b.Remove(0x11), "not the start")
	require.True(t, b.Remove(0x10))
	require.False(t, b.Remove(0x10))
	require.Equal(t, []Range{{"high", 0x18, 8}}, b.Ranges())
	require.Len(t, before, 2)
	b.Write(0x18, []byte{1})
	require.Equal(t, []byte{1}, d.wrote)
	b.Write(0x10, []byte{1})
	require.EqualValues(t, 1, b.Unclaimed())

	require.NoError(t, b.Add("again", 0x10, 8, &recorder{}))
	require.True(t, b.Remove(0x10))
	require.True(t, b.Remove(0x18))
	require.Empty(t, b.Ranges())
}

func TestBusOnUnclaimed(t *testing.T) {
	type access struct {
		addr  uint64
		size  int
		write bool
	}
	var got []access
	b := Bus{OnUnclaimed: func(addr uint64, size int, write bool) { got = append(got, access{addr, size, write}) }}
	require.NoError(t, b.Add("one", 0x10, 8, &recorder{}))
	b.Read(0x10, make([]byte, 8))
	b.Read(0x0e, make([]byte, 4))
	b.Write(0x18, make([]byte, 2))
	require.Equal(t, []access{{0x0e, 4, false}, {0x18, 2, true}}, got)
}

// constant is a device without state, which any number of goroutines may use.
type constant byte

func (c constant) Read(_ uint64, p []byte) { p[0] = byte(c) }
func (constant) Write(uint64, []byte)      {}

// TestBusConcurrent has meaning under the race detector too: look-ups go on while devices come and go.
func TestBusConcurrent(t *testing.T) {
	var b Bus
	require.NoError(t, b.Add("fixed", 0x1000, 1, constant(0x5a)))
	var stop atomic.Bool
	var vcpus, plugs sync.WaitGroup
	for range 2 {
		vcpus.Go(func() {
			p := []byte{0}
			for !stop.Load() {
				b.Read(0x1000, p)
				if p[0] != 0x5a {
					t.Errorf("the device that stays gives %#x", p[0])
					return
				}
				b.Read(0x100, p)
				if p[0] != 0xff && p[0] != 1 {
					t.Errorf("the device that comes and goes gives %#x", p[0])
					return
				}
				b.Write(0x200, p)
				runtime.Gosched()
			}
		})
	}
	for i := range 2 {
		plugs.Go(func() {
			start := uint64(0x100 * (i + 1))
			for range 500 {
				if err := b.Add("plug", start, 0x10, constant(i+1)); err != nil {
					t.Error(err)
				}
				if !b.Remove(start) {
					t.Errorf("nothing at %#x", start)
				}
			}
		})
	}
	plugs.Wait()
	stop.Store(true)
	vcpus.Wait()
	require.Len(t, b.Ranges(), 1)
}

// twenty is a bus as a machine with some virtio devices has it.
func twenty(tb testing.TB) *Bus {
	var b Bus
	for i := range 20 {
		require.NoError(tb, b.Add("device", uint64(i)*0x100, 0x80, constant(i)))
	}
	return &b
}

func TestBusDoesNotAllocate(t *testing.T) {
	b := twenty(t)
	b.OnUnclaimed = func(uint64, int, bool) {}
	p := make([]byte, 4)
	for name, f := range map[string]func(){
		"read":            func() { b.Read(0x700, p) },
		"write":           func() { b.Write(0x700, p) },
		"unclaimed read":  func() { b.Read(0x780, p) },
		"unclaimed write": func() { b.Write(0x780, p) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, f), name)
	}
}

// FuzzBus holds the bus against a list of ranges that is searched from end to end.
func FuzzBus(f *testing.F) {
	f.Add([]byte{0x10, 8, 0x18, 8, 0x17, 0}, uint64(0))
	f.Add([]byte{0x00, 8, 0xff, 1, 0xfe, 1}, uint64(math.MaxUint64-0xff))
	f.Fuzz(func(t *testing.T, ops []byte, base uint64) {
		var b Bus
		var all []Range
		for ; len(ops) >= 3; ops = ops[3:] {
			start, size := base+uint64(ops[0]), uint64(ops[1]%16)
			probe, n := base+uint64(ops[2]), uint64(ops[1]>>4)

			valid := size > 0 && start+(size-1) >= start
			for _, r := range all {
				valid = valid && (start > r.Start+(r.Size-1) || start+(size-1) < r.Start)
			}
			err := b.Add("new", start, size, &recorder{fill: byte(len(all))})
			require.Equal(t, valid, err == nil, "add [%#x, +%#x) to %v", start, size, all)
			if valid {
				all = append(all, Range{"new", start, size})
			}

			want := byte(0xff)
			for i, r := range all {
				if n > 0 && probe >= r.Start && probe-r.Start < r.Size && n <= r.Size-(probe-r.Start) {
					want = byte(i)
				}
			}
			p := make([]byte, n)
			b.Read(probe, p)
			for _, v := range p {
				require.Equal(t, want, v, "read [%#x, +%#x) of %v", probe, n, all)
			}
			if len(all) == 100 {
				return
			}
		}
	})
}

func BenchmarkBusRead(b *testing.B) {
	bus := twenty(b)
	p := make([]byte, 4)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		bus.Read(uint64(i%20)*0x100, p)
	}
}
