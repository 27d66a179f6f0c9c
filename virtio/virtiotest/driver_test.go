package virtiotest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

// echo is a device whose queues copy what they read to where they may write.
type echo struct{ queues int }

func (e echo) ID() virtio.DeviceID       { return virtio.Entropy }
func (e echo) Features() virtio.Features { return 0 }
func (e echo) QueueSizes() []uint16 {
	sizes := make([]uint16, e.queues)
	for i := range sizes {
		sizes[i] = 16
	}
	return sizes
}
func (e echo) ReadConfig(uint32, []byte)  {}
func (e echo) WriteConfig(uint32, []byte) {}

func (e echo) Serve(ctx context.Context, a virtio.Activation) error {
	g := virtio.NewGroup(ctx)
	for _, q := range a.Queues {
		g.Serve(q, func(ctx context.Context, q *virtqueue.Queue) error { return q.Serve(ctx, copyChain) })
	}
	return g.Wait()
}

func copyChain(c *virtqueue.Chain) uint32 {
	var p [64]byte
	written := 0
	for {
		n, err := c.Readable.Read(p[:])
		if err != nil {
			return uint32(written)
		}
		n, err = c.Writable.Write(p[:n])
		written += n
		if err != nil {
			return uint32(written)
		}
	}
}

func TestEcho(t *testing.T) {
	for name, want := range map[string]virtio.Features{
		"all features": 0,
		"plain ring":   virtio.Version1,
		"event index":  virtio.EventIdx,
		"indirect":     virtio.IndirectDesc,
	} {
		t.Run(name, func(t *testing.T) {
			d := New(t, echo{queues: 2}, Options{Want: want, Absent: []int{1}})
			for range 3 { // driver re-bind
				d.Start()
				q := d.Queue(0)
				for i := range 100 {
					q.Indirect = i%3 == 0
					r := q.Submit([][]byte{[]byte("one"), []byte("two")}, 4, 4)
					require.Equal(t, uint32(6), r.Wait())
					require.Equal(t, "onetwo\x00\x00", string(r.Bytes()))
				}
				require.NotZero(t, q.Interrupts())
				require.NoError(t, d.Stop())
			}
		})
	}
}

// The driver's ring, byte by byte, as §2.7 has it.
func TestLayout(t *testing.T) {
	d := New(t, echo{queues: 1}, Options{QueueSize: 4, Want: virtio.EventIdx})
	d.Start()
	q := d.Queue(0)
	r := q.Submit([][]byte{{0xaa}}, 1)
	require.Equal(t, uint32(1), r.Wait())
	require.NoError(t, d.Stop())

	at := func(off uint32) []byte { return []byte{byte(off), byte(off >> 8), byte(off >> 16), 0x40, 0, 0, 0, 0} }
	readable, writable := uint32(r.pieces[0].addr), uint32(r.pieces[1].addr)
	require.Equal(t, append(at(readable), 1, 0, 0, 0, Next, 0, 0, 0), q.desc[16:32], "descriptor 1: readable, then 0")
	require.Equal(t, append(at(writable), 1, 0, 0, 0, Write, 0, 0, 0), q.desc[:16], "descriptor 0: writable")
	require.Equal(t, []byte{
		0, 0, // flags
		1, 0, // idx
		1, 0, 0, 0, 0, 0, 0, 0, // ring
		1, 0, // used_event
	}, q.avail[:14])
	require.Equal(t, []byte{
		0, 0, // flags
		1, 0, // idx
		1, 0, 0, 0, 1, 0, 0, 0, // ring: head 1, one byte
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		1, 0, // avail_event: a kick for the next chain
	}, q.used[:38])
}

func TestMalice(t *testing.T) {
	d := New(t, echo{queues: 1}, Options{QueueSize: 4})
	d.Start()
	q := d.Queue(0)
	q.SetDesc(2, Desc{Addr: 1, Len: 1})
	q.Offer(2)
	require.Equal(t, Used{ID: 2}, q.WaitUsed(), "memory that is not there")
	q.SetDesc(3, Desc{Addr: Base, Len: 1, Flags: Next, Next: 3})
	q.Offer(3)
	require.Equal(t, Used{ID: 3}, q.WaitUsed(), "a loop")
	q.SetAvailIdx(100)
	q.Kick()
	require.ErrorAs(t, d.Wait(), new(*virtqueue.Error))
}

func TestRequestsDoNotAllocate(t *testing.T) {
	d := New(t, echo{queues: 1}, Options{})
	d.Start()
	r := d.Queue(0).Prepare([][]byte{[]byte("again")}, 5)
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		r.Submit()
		r.Wait()
	})))
}

func FuzzEcho(f *testing.F) {
	Fuzz(f, func(testing.TB) virtio.Device { return echo{queues: 2} })
}
