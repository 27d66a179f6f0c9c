// Package virtiotest is a virtio driver in Go that plays the guest for the tests of devices: honest with [Queue.Submit],
// malicious with [Queue.SetDesc] and its like, and random with [Fuzz].
//
//	d := virtiotest.New(t, dev, virtiotest.Options{})
//	d.Start()
//	r := d.Queue(0).Submit([][]byte{header}, 512, 1)
//	n := r.Wait()
//
// The guest's memory is made of slices, so that the race detector and the bounds checks see what the device does to it. The
// ring's layout is written down here once more, apart from [vmm/virtio/virtqueue], and tested against literal bytes:
// device and driver cannot share one mistake.
package virtiotest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// Base is where the guest's memory begins: not at zero, so that an address is never an offset by chance.
const Base memory.GPA = 0x4000_0000

// patience is how long a device may take for anything.
const patience = 20 * time.Second

// Options say how the driver behaves. The zero value wants all that the device has.
type Options struct {
	Want      virtio.Features // accepted, of those offered; zero for all, those of the ring too
	QueueSize uint16          // zero for each queue's greatest
	Memory    int             // bytes of guest memory; zero for 64 MiB, which cost only what is touched
	Absent    []int           // queues that the driver does not enable
}

// Driver drives one device. Its methods are for the test's goroutine; those of its queues' requests for any.
type Driver struct {
	t    testing.TB
	dev  virtio.Device
	opts Options
	mem  *memory.Memory

	features virtio.Features
	queues   []*Queue // by index; nil for those absent

	mu   sync.Mutex // guards ram's allocation
	ram  []byte
	next int           // offset in ram of what was never allocated
	free map[int][]int // offsets by size

	cancel  context.CancelFunc // nil while the device is not in use
	stopped chan struct{}      // closed when Serve has returned
	err     error              // of Serve, after stopped
}

// New makes a driver for dev. It stops the device at the end of the test, and fails the test if the device does not.
func New(t testing.TB, dev virtio.Device, o Options) *Driver {
	t.Helper()
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	d := &Driver{t: t, dev: dev, opts: o, ram: make([]byte, o.Memory), free: map[int][]int{}}
	var err error
	d.mem, err = memory.FromSlices(memory.Region{Start: Base, Bytes: d.ram})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = d.Stop()
		for _, q := range d.queues {
			if q != nil {
				q.close()
			}
		}
	})
	for i, size := range dev.QueueSizes() {
		require.True(t, size > 0 && size&(size-1) == 0, "queue %d has size %d", i, size)
		if o.QueueSize != 0 {
			size = min(size, o.QueueSize)
		}
		d.queues = append(d.queues, newQueue(t, d, size))
	}
	for _, i := range o.Absent {
		d.queues[i].close()
		d.queues[i] = nil
	}
	return d
}

// Start negotiates, sets the queues up afresh, and takes the device into use.
func (d *Driver) Start() {
	d.t.Helper()
	require.Nil(d.t, d.cancel, "started already")
	offered := d.dev.Features() | virtio.Version1 | virtio.EventIdx | virtio.IndirectDesc
	d.features = offered
	if d.opts.Want != 0 {
		d.features = offered&d.opts.Want | virtio.Version1
	}
	a := virtio.Activation{Features: d.features, Memory: d.mem}
	for i, q := range d.queues {
		if q == nil {
			a.Queues = append(a.Queues, nil)
			continue
		}
		dq, err := virtqueue.New(q.reset(d.features))
		require.NoError(d.t, err, "queue %d", i)
		a.Queues = append(a.Queues, dq)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	stopped := make(chan struct{})
	d.stopped = stopped
	go func() {
		defer close(stopped)
		d.err = d.dev.Serve(ctx, a)
	}()
	for _, q := range d.queues {
		if q != nil {
			q.collect()
		}
	}
}

// Stop resets the device: it ends Serve's context, waits, and returns Serve's error. Requests that are not done are lost.
func (d *Driver) Stop() error {
	d.t.Helper()
	if d.cancel == nil {
		return nil
	}
	d.cancel()
	err := d.Wait()
	d.cancel = nil
	for _, q := range d.queues {
		if q != nil {
			q.stopCollecting()
		}
	}
	return err
}

// Wait waits until Serve returns, by itself or after a Stop, and returns its error.
func (d *Driver) Wait() error {
	d.t.Helper()
	select {
	case <-d.stopped:
		return d.err
	case <-time.After(patience):
		panic("virtiotest: Serve does not return") // with all stacks, to see where it is
	}
}

// Features are those negotiated.
func (d *Driver) Features() virtio.Features { return d.features }

// Memory is the guest's.
func (d *Driver) Memory() *memory.Memory { return d.mem }

// Queue returns queue i.
func (d *Driver) Queue(i int) *Queue { return d.queues[i] }

// Config reads n bytes of the configuration space at off.
func (d *Driver) Config(off uint32, n int) []byte {
	p := make([]byte, n)
	d.dev.ReadConfig(off, p)
	return p
}

// WriteConfig writes p to the configuration space at off.
func (d *Driver) WriteConfig(off uint32, p []byte) { d.dev.WriteConfig(off, p) }

// Alloc returns n bytes of the guest's memory, and where they are. They are aligned to 16 bytes; to a page where n is at
// least one.
func (d *Driver) Alloc(n int) (memory.GPA, []byte) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	off, ok := pop(d.free, n)
	if !ok {
		align := 16
		if n >= 4096 {
			align = 4096
		}
		off = (d.next + align - 1) &^ (align - 1)
		if off+n > len(d.ram) {
			panic("virtiotest: out of guest memory: set Options.Memory")
		}
		d.next = off + n
	}
	return Base + memory.GPA(off), d.ram[off : off+n : off+n]
}

func (d *Driver) release(addr memory.GPA, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free[n] = append(d.free[n], int(addr-Base))
}

func pop(free map[int][]int, n int) (int, bool) {
	list := free[n]
	if len(list) == 0 {
		return 0, false
	}
	free[n] = list[:len(list)-1]
	return list[len(list)-1], true
}
