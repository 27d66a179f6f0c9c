package rng_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/virtio"
	"vmm/virtio/rng"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestKernelSource(t *testing.T) {
	d := virtiotest.New(t, rng.New(rng.Config{}), virtiotest.Options{})
	for range 2 {
		d.Start()
		r := d.Queue(0).Submit(nil, 4096, 1, 4095)
		require.Equal(t, uint32(8192), r.Wait())
		// Each of 256 values is expected 32 times. The chance that one is missing is 256·e^-32.
		for v := range 256 {
			require.Contains(t, r.Bytes(), byte(v))
		}
		require.NoError(t, d.Stop())
	}
}

func TestRequests(t *testing.T) {
	for _, c := range []struct {
		name     string
		source   io.Reader
		readable [][]byte
		writable []int
		want     uint32
		failures uint64
	}{
		{name: "one", writable: []int{16}, want: 16},
		{name: "something to read as well", readable: [][]byte{{1}}, writable: []int{1}, want: 1},
		{name: "nothing to fill", readable: [][]byte{{1}}},
		{name: "long", writable: []int{60 << 10, 60 << 10}, want: 64 << 10},
		{name: "a source that stutters", source: iotest.OneByteReader(zeroes{}), writable: []int{99}, want: 99},
		{name: "a source that ends", source: bytes.NewReader(make([]byte, 10)), writable: []int{8, 8}, want: 10, failures: 1},
		{name: "a source that fails", source: iotest.ErrReader(errors.New("broken")), writable: []int{8}, failures: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := rng.New(rng.Config{Source: c.source})
			d := virtiotest.New(t, dev, virtiotest.Options{})
			d.Start()
			require.Equal(t, c.want, d.Queue(0).Submit(c.readable, c.writable...).Wait())
			require.Equal(t, rng.Stats{Requests: 1, Failures: c.failures}, dev.Stats())
		})
	}
}

// zeroes is a source like /dev/zero.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestBrokenRing(t *testing.T) {
	d := virtiotest.New(t, rng.New(rng.Config{}), virtiotest.Options{})
	d.Start()
	d.Queue(0).Offer(0xffff)
	require.ErrorAs(t, d.Wait(), new(*virtqueue.Error))
}

func TestAbsentQueue(t *testing.T) {
	d := virtiotest.New(t, rng.New(rng.Config{}), virtiotest.Options{Absent: []int{0}})
	d.Start()
	require.NoError(t, d.Stop())
}

func TestNoAllocation(t *testing.T) {
	d := virtiotest.New(t, rng.New(rng.Config{}), virtiotest.Options{})
	d.Start()
	r := d.Queue(0).Prepare(nil, 64)
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		r.Submit()
		r.Wait()
	})))
}

func FuzzRng(f *testing.F) {
	virtiotest.Fuzz(f, func(testing.TB) virtio.Device { return rng.New(rng.Config{}) })
}
