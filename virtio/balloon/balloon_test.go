package balloon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/virtio"
	"vmm/virtio/balloon"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

func start(t testing.TB, o virtiotest.Options) (*virtiotest.Driver, *balloon.Device) {
	t.Helper()
	dev, err := balloon.New(balloon.Config{Target: 8 << 20})
	require.NoError(t, err)
	d := virtiotest.New(t, dev, o)
	d.Start()
	return d, dev
}

func pages(numbers ...uint32) []byte {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

func TestInflate(t *testing.T) {
	d, dev := start(t, virtiotest.Options{})
	addr, b := d.Alloc(10 * 4096)
	first := uint32(addr / 4096)
	for name, numbers := range map[string][]byte{
		"upwards":        pages(first+1, first+2, first+3),
		"downwards":      pages(first+3, first+2, first+1),
		"mixed":          pages(first+3, first+1, first+2, first+1),
		"with a remnant": append(pages(first+1, first+2, first+3), 1, 2),
	} {
		copy(b, bytes.Repeat([]byte{1}, len(b)))
		require.Zero(t, d.Queue(0).Submit([][]byte{numbers[:5], numbers[5:]}).Wait())
		for i := range 10 {
			want := byte(1)
			if i >= 1 && i <= 3 {
				want = 0
			}
			require.Equal(t, want, b[4096*i], "%s: page %d", name, i)
		}
	}
	d.Queue(1).Submit([][]byte{pages(first + 1)}).Wait()
	require.Equal(t, uint64(3+3+4+3), dev.Pages().Inflated)

	// Not memory: below, above, and where the numbers end.
	d.Queue(0).Submit([][]byte{pages(0, 1, 0xffff_ffff, 0, 0xffff_fffe)}).Wait()
	require.Equal(t, uint64(5), dev.Pages().Foreign)
	d.Queue(0).Submit(nil, 100).Wait()
}

func TestReport(t *testing.T) {
	d, dev := start(t, virtiotest.Options{})
	addr, b := d.Alloc(8 << 20)
	copy(b, bytes.Repeat([]byte{1}, len(b)))
	q := d.Queue(3)
	q.SetDesc(0, virtiotest.Desc{Addr: addr, Len: 2 << 20, Flags: virtiotest.Write | virtiotest.Next, Next: 1})
	q.SetDesc(1, virtiotest.Desc{Addr: addr + 4<<20, Len: 2 << 20, Flags: virtiotest.Write})
	q.Offer(0)
	q.WaitUsed()
	require.Equal(t, []byte{0, 1, 0, 1}, []byte{b[0], b[2<<20], b[4<<20], b[6<<20]})
	require.Equal(t, uint64(1024), dev.Pages().Reported)
}

// Without the statistics the reports come on the queue before.
func TestQueuesOfDriversThatTakeLess(t *testing.T) {
	d, dev := start(t, virtiotest.Options{Want: virtio.Version1 | 1<<5, Absent: []int{3}})
	d.Queue(2).Submit(nil, 4096).Wait()
	require.Equal(t, uint64(1), dev.Pages().Reported)
	_, err := dev.Stats(t.Context())
	require.ErrorIs(t, err, balloon.ErrNoStats)
}

func TestConfig(t *testing.T) {
	d, dev := start(t, virtiotest.Options{})
	changes := 0
	dev.OnConfigChange(func() { changes++ })
	require.Equal(t, []byte{0, 8, 0, 0, 0, 0, 0, 0, 0, 0}, d.Config(0, 10))
	require.NoError(t, dev.SetTarget(1<<20))
	require.Equal(t, 1, changes)
	require.Equal(t, []byte{0, 1, 0, 0}, d.Config(0, 4))
	d.Queue(1).Submit([][]byte{pages(0)}).Wait() // Serve has begun
	d.WriteConfig(4, pages(256))
	d.WriteConfig(0, pages(99)) // is not the guest's
	d.WriteConfig(5, pages(99)[:1])
	require.Equal(t, uint64(1<<20), dev.Actual())
	require.Equal(t, uint64(1<<20), dev.Target())
	require.ErrorContains(t, dev.SetTarget(1<<50), "at most")
	require.Equal(t, virtio.Features(1<<1|1<<2|1<<5), dev.Features())
}

func stat(tag uint16, value uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), value)
}

func TestStats(t *testing.T) {
	d, dev := start(t, virtiotest.Options{})
	q := d.Queue(2)
	r := q.Submit([][]byte{stat(4, 1)})
	answers := make(chan balloon.Stats, 1)
	ask := func() {
		for {
			s, err := dev.Stats(context.Background())
			if err == nil {
				answers <- s
				return
			}
		}
	}
	for i := range uint64(3) {
		go ask()
		r.Wait() // the device wants news
		r = q.Submit([][]byte{append(stat(4, 100+i), stat(5, 200)...), append(stat(99, 7), 1, 2, 3)})
		require.Equal(t, balloon.Stats{Free: 100 + i, Total: 200, Has: 1<<4 | 1<<5}, <-answers)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := dev.Stats(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "a guest that does not answer")

	waiting := make(chan error)
	go func() {
		_, err := dev.Stats(context.Background())
		waiting <- err
	}()
	require.NoError(t, d.Stop())
	require.ErrorIs(t, <-waiting, balloon.ErrNoStats)
}

func TestBrokenRings(t *testing.T) {
	for i := range 4 {
		d, _ := start(t, virtiotest.Options{})
		d.Queue(i).Offer(0xffff)
		require.ErrorAs(t, d.Wait(), new(*virtqueue.Error), "queue %d", i)
	}
}

func TestNoAllocation(t *testing.T) {
	d, _ := start(t, virtiotest.Options{})
	addr, _ := d.Alloc(4096)
	r := d.Queue(0).Prepare([][]byte{pages(uint32(addr / 4096))})
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		r.Submit()
		r.Wait()
	})))
}

func FuzzBalloon(f *testing.F) {
	virtiotest.Fuzz(f, func(t testing.TB) virtio.Device {
		dev, err := balloon.New(balloon.Config{})
		require.NoError(t, err)
		return dev
	})
}
