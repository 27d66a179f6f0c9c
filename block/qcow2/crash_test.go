package qcow2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newInMemory(t testing.TB, o CreateOptions) *memory {
	t.Helper()
	f := &memory{}
	require.NoError(t, Create(f, o))
	return f
}

// TestCrash cuts the power at any time. What was synced must be there, and the image may have lost room, nothing else.
func TestCrash(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    CreateOptions
	}{
		{"512", CreateOptions{Size: 256 << 10, ClusterSize: 512}},
		{"512, 64 bits", CreateOptions{Size: 256 << 10, ClusterSize: 512, RefcountBits: 64}},
		{"4K", CreateOptions{Size: 1 << 20, ClusterSize: 4096}},
		{"v2", CreateOptions{Size: 256 << 10, ClusterSize: 1024, Version: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 5 {
				seed := rand.Uint64()
				crash(t, tt.o, rand.New(rand.NewPCG(seed, 1)), seed)
			}
		})
	}
}

func crash(t *testing.T, o CreateOptions, r *rand.Rand, seed uint64) {
	f := newInMemory(t, o)
	f.synced = append([]byte{}, f.data...)
	m, err := Open(f, Options{})
	require.NoError(t, err)
	m.limit = 8
	sectors := o.Size / 512
	// What each sector may hold after a crash now: what it held at the last Sync, and what was written since.
	allowed := make([][]uint64, sectors)
	for i := range allowed {
		allowed[i] = []uint64{0}
	}
	value := uint64(0)
	for range 150 {
		first := r.Int64N(sectors)
		n := min(1+r.Int64N(24), sectors-first)
		switch k := r.IntN(20); {
		case k < 12:
			p := make([]byte, n*512)
			for i := range n {
				value++
				for j := range 64 {
					binary.LittleEndian.PutUint64(p[i*512+int64(j)*8:], value)
				}
				allowed[first+i] = append(allowed[first+i], value)
			}
			_, err := m.WriteAt(p, first*512)
			require.NoError(t, err)
		case k < 15:
			require.NoError(t, m.WriteZeroes(first*512, n*512, k == 12))
			for i := range n {
				allowed[first+i] = append(allowed[first+i], 0)
			}
		case k < 17:
			require.NoError(t, m.Discard(first*512, n*512))
			for i := range n {
				allowed[first+i] = append(allowed[first+i], 0)
			}
		default:
			require.NoError(t, m.Sync())
			var p [512]byte
			for i := range allowed {
				_, err := m.ReadAt(p[:], int64(i)*512)
				require.NoError(t, err)
				allowed[i] = []uint64{binary.LittleEndian.Uint64(p[:])}
			}
		}
		if r.IntN(10) > 0 {
			continue
		}
		after := f.crash(r)
		again, err := Open(after, Options{})
		require.NoError(t, err, "seed %d", seed)
		res, err := again.Check(Repair{})
		require.NoError(t, err)
		require.Zero(t, res.Corruptions, "seed %d: %v", seed, res.Problems)
		var p [512]byte
		for i, values := range allowed {
			_, err := again.ReadAt(p[:], int64(i)*512)
			require.NoError(t, err)
			require.Contains(t, values, binary.LittleEndian.Uint64(p[:]), "seed %d: sector %d", seed, i)
		}
		res, err = again.Check(Repair{Leaks: true})
		require.NoError(t, err)
		require.True(t, res.Clean(), "%+v", res)
		require.NoError(t, again.Close())
	}
}

// TestFullDisk lets each write fail once. Nothing that was written before may be lost, and the image goes on.
func TestFullDisk(t *testing.T) {
	for fail := 1; fail < 150; fail += 1 + fail/16 {
		r := rand.New(rand.NewPCG(1, 2))
		f := newInMemory(t, CreateOptions{Size: 128 << 10, ClusterSize: 512})
		m, err := Open(f, Options{})
		require.NoError(t, err)
		m.limit = 8
		want := make([]byte, m.Size())
		f.fail = fail
		for range 40 {
			off := r.Int64N(int64(len(want))/512) * 512
			p := make([]byte, min((1+r.Int64N(16))*512, int64(len(want))-off))
			fillRandom(r, p)
			n, err := m.WriteAt(p, off)
			if err != nil {
				require.ErrorIs(t, err, errFull)
				n, err = m.WriteAt(p, off)
				if m.broken.Load() != nil {
					return // it says so itself
				}
				require.NoError(t, err)
			}
			copy(want[off:], p[:n])
		}
		got := make([]byte, len(want))
		_, err = m.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "write %d failed", fail)
		if err := m.Close(); err != nil {
			require.ErrorIs(t, err, errFull)
			require.NoError(t, m.Close())
		}
		m, err = Open(f, Options{})
		require.NoError(t, err)
		res, err := m.Check(Repair{})
		require.NoError(t, err)
		require.Zero(t, res.Corruptions, "write %d failed: %v", fail, res.Problems)
		_, err = m.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
	}
}

// TestConcurrent: goroutines write sectors of their own, side by side in the same clusters, while others flush and discard.
func TestConcurrent(t *testing.T) {
	const writers, size = 8, 1 << 20
	f := newInMemory(t, CreateOptions{Size: 2 * size, ClusterSize: 4096})
	m, err := Open(f, Options{})
	require.NoError(t, err)
	m.limit = 8
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			mine := map[int64]byte{}
			p := make([]byte, 512)
			for range 2000 {
				sector := r.Int64N(size/512/writers)*writers + int64(w)
				if r.IntN(2) == 0 {
					v := byte(r.Uint32())
					mine[sector] = v
					if _, err := m.WriteAt(bytes.Repeat([]byte{v}, 512), sector*512); err != nil {
						t.Error(err)
						return
					}
					continue
				}
				if _, err := m.ReadAt(p, sector*512); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{mine[sector]}, 512)) {
					t.Errorf("sector %d: %v, %x instead of %x", sector, err, p[0], mine[sector])
					return
				}
			}
		})
	}
	all.Go(func() {
		for range 50 {
			if err := m.Sync(); err != nil {
				t.Error(err)
			}
		}
	})
	all.Go(func() {
		r := rand.New(rand.NewPCG(99, 0))
		p := make([]byte, 64<<10)
		for range 300 {
			off := size + r.Int64N(size/512-128)*512
			var err error
			switch r.IntN(3) {
			case 0:
				_, err = m.WriteAt(p, off)
			case 1:
				err = m.Discard(off, int64(len(p)))
			default:
				err = m.WriteZeroes(off, int64(len(p)), true)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	all.Wait()
	require.NoError(t, m.Close())
	m, err = Open(f, Options{})
	require.NoError(t, err)
	res, err := m.Check(Repair{})
	require.NoError(t, err)
	require.True(t, res.Clean(), "%+v", res)
}

// TestMap: what is mapped stays where it is until it is not mapped any more, whatever becomes of the disk meanwhile.
func TestMap(t *testing.T) {
	f := newInMemory(t, CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	m, err := Open(f, Options{})
	require.NoError(t, err)
	_, ok := m.Map(0, 4096, false)
	require.False(t, ok, "nothing is there yet")
	data := bytes.Repeat([]byte{7}, 8192)
	_, err = m.WriteAt(data, 0)
	require.NoError(t, err)
	for _, tt := range []struct {
		off, n int64
		ok     bool
	}{{0, 8192, true}, {512, 512, true}, {0, 0, false}, {-512, 512, false}, {8192, 512, false}, {4096, 8192, false}, {1 << 20, 512, false}} {
		at, ok := m.Map(tt.off, tt.n, true)
		require.Equal(t, tt.ok, ok, "%+v", tt)
		if ok {
			p := make([]byte, tt.n)
			_, err := f.ReadAt(p, at)
			require.NoError(t, err)
			require.Equal(t, data[:tt.n], p)
			m.Unmap()
		}
	}

	at, ok := m.Map(0, 4096, true)
	require.True(t, ok)
	require.NoError(t, m.Discard(0, 8192))
	synced := make(chan error)
	go func() { synced <- m.Sync() }()
	select {
	case <-synced:
		t.Fatal("the cluster was given away while it was mapped")
	case <-time.After(50 * time.Millisecond):
	}
	_, ok = m.Map(0, 4096, false)
	require.False(t, ok, "not before what waits has had its turn")
	_, err = f.WriteAt(data[:4096], at)
	require.NoError(t, err)
	m.Unmap()
	require.NoError(t, <-synced)
	require.NoError(t, m.Close())
}
