package net_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/internal/leak"
	"vmm/virtio"
	virtionet "vmm/virtio/net"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

// wire is a back end in memory: what it is given to deliver, and what was sent.
type wire struct {
	header   bool
	offloads uint

	mu     sync.Mutex // guards what follows
	in     [][]byte
	out    [][]byte
	fault  error
	full   int // how often Send says EAGAIN
	set    []uint
	queues []int
	event  *eventfd.EventFD // readable: there may be something
	sent   chan struct{}
}

func newWire(t testing.TB) *wire {
	e, err := eventfd.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return &wire{header: true, offloads: 0x7f, event: e, sent: make(chan struct{}, 1000)}
}

func (w *wire) Header() bool   { return w.header }
func (w *wire) Offloads() uint { return w.offloads }
func (w *wire) FD() int        { return w.event.FD() }

func (w *wire) SetOffloads(flags uint) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set = append(w.set, flags)
	return nil
}

func (w *wire) SetQueues(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queues = append(w.queues, n)
	return nil
}

func (w *wire) Receive(iov []unix.Iovec) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault != nil {
		return 0, w.fault
	}
	if len(w.in) == 0 {
		w.event.Drain()
		return 0, unix.EAGAIN
	}
	frame := w.in[0]
	w.in = w.in[1:]
	if frame == nil {
		return 0, unix.EINVAL
	}
	n := 0
	for _, v := range iov {
		n += copy(unsafe.Slice(v.Base, v.Len), frame[n:])
	}
	return n, nil // as a TAP: what was cut, it does not tell
}

func (w *wire) Send(iov []unix.Iovec) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full > 0 {
		w.full--
		return unix.EAGAIN
	}
	if w.fault != nil {
		w.sent <- struct{}{}
		return w.fault
	}
	var frame []byte
	for _, v := range iov {
		frame = append(frame, unsafe.Slice(v.Base, v.Len)...)
	}
	w.out = append(w.out, frame)
	w.sent <- struct{}{}
	return nil
}

// with changes the wire while it is in use.
func (w *wire) with(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// deliver makes a frame come in.
func (w *wire) deliver(frames ...[]byte) {
	w.mu.Lock()
	w.in = append(w.in, frames...)
	w.mu.Unlock()
	w.event.Signal()
}

func (w *wire) frames() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out
}

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func start(t testing.TB, w *wire, pairs int, o virtiotest.Options) (*virtiotest.Driver, *virtionet.Device) {
	t.Helper()
	cfg := virtionet.Config{Backend: w, MAC: mac, MTU: 1500, Vhost: virtionet.VhostOff}
	for range pairs {
		cfg.Ports = append(cfg.Ports, w)
	}
	dev, err := virtionet.New(cfg)
	require.NoError(t, err)
	d := virtiotest.New(t, dev, o)
	d.Start()
	return d, dev
}

// frame is one of n bytes behind a header of zeroes.
func frame(n int, fill byte) []byte {
	return append(make([]byte, virtionet.HeaderSize), bytes.Repeat([]byte{fill}, n)...)
}

func TestTransmit(t *testing.T) {
	for _, c := range []struct {
		name   string
		header bool
		pieces [][]byte
		want   []byte
	}{
		{"one piece", true, [][]byte{frame(60, 1)}, frame(60, 1)},
		{"header apart", true, [][]byte{frame(60, 1)[:12], frame(60, 1)[12:]}, frame(60, 1)},
		{"header in pieces", true, [][]byte{frame(60, 1)[:5], frame(60, 1)[5:13], frame(60, 1)[13:]}, frame(60, 1)},
		{"back end without a header", false, [][]byte{frame(60, 1)}, frame(60, 1)[12:]},
		{"without, in pieces", false, [][]byte{frame(60, 1)[:5], frame(60, 1)[5:13], frame(60, 1)[13:]}, frame(60, 1)[12:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t)
			w.header = c.header
			d, dev := start(t, w, 1, virtiotest.Options{})
			require.Zero(t, d.Queue(1).Submit(c.pieces).Wait())
			require.Equal(t, [][]byte{c.want}, w.frames())
			require.Equal(t, uint64(1), dev.Stats().Sent)
		})
	}
}

func TestTransmitFaults(t *testing.T) {
	w := newWire(t)
	d, dev := start(t, w, 1, virtiotest.Options{})
	q := d.Queue(1)
	w.with(func() { w.fault = unix.EINVAL }) // a header that makes no sense
	q.Submit([][]byte{frame(60, 1)}).Wait()
	require.Equal(t, uint64(1), dev.Stats().Refused)
	w.with(func() { w.fault = nil })

	q.Submit(nil, 60).Wait()
	require.Equal(t, uint64(1), dev.Stats().Malformed, "nothing to send")
	w.event.Signal() // an eventfd is always writable: the wait ends at once
	w.with(func() { w.full = 3 })
	q.Submit([][]byte{frame(60, 2)}).Wait()
	require.Equal(t, [][]byte{frame(60, 2)}, w.frames(), "the frame waits for room")

	w.with(func() { w.full = 1 << 30 })
	r := q.Submit([][]byte{frame(60, 3)})
	require.NoError(t, d.Stop(), "while a frame waits")
	require.False(t, r.Done())
}

func TestReceive(t *testing.T) {
	w := newWire(t)
	d, dev := start(t, w, 1, virtiotest.Options{Want: virtio.Version1 | virtio.EventIdx | 1<<15}) // mergeable, no offloads
	q := d.Queue(0)
	var requests []*virtiotest.Request
	for range 6 {
		requests = append(requests, q.Submit(nil, 5, 507)) // the header in two pieces
	}
	w.deliver(frame(60, 1), frame(1500, 2))

	require.Equal(t, uint32(72), requests[0].Wait())
	got := requests[0].Bytes()
	require.Equal(t, []byte{1, 0}, got[10:12], "num_buffers")
	require.Equal(t, frame(60, 1)[12:], got[12:72])

	var second []byte
	for i, n := range []uint32{512, 512, 488} {
		require.Equal(t, n, requests[1+i].Wait())
		second = append(second, requests[1+i].Bytes()[:n]...)
	}
	require.Equal(t, []byte{3, 0}, second[10:12])
	require.Equal(t, frame(1500, 2)[12:], second[12:])
	require.Equal(t, uint64(2), dev.Stats().Received)

	// There is room for 1024 bytes: after a while the driver counts as one that has no more.
	w.deliver(frame(1500, 3), frame(900, 4))
	require.Equal(t, uint32(512), requests[4].Wait())
	require.Equal(t, uint32(400), requests[5].Wait())
	require.Equal(t, uint64(1), dev.Stats().TooLong)
}

func TestReceiveWithoutMerging(t *testing.T) {
	w := newWire(t)
	w.header = false
	d, dev := start(t, w, 1, virtiotest.Options{Want: virtio.Version1})
	q := d.Queue(0)
	first, second := q.Submit(nil, 12, 1514), q.Submit(nil, 100)
	w.deliver(bytes.Repeat([]byte{1}, 1514), bytes.Repeat([]byte{2}, 1514), bytes.Repeat([]byte{3}, 88))
	require.Equal(t, uint32(1526), first.Wait())
	require.Equal(t, append([]byte{10: 1, 11: 0}, bytes.Repeat([]byte{1}, 1514)...), first.Bytes())
	require.Equal(t, uint32(100), second.Wait())
	require.Equal(t, append([]byte{10: 1, 11: 0}, bytes.Repeat([]byte{3}, 88)...), second.Bytes())
	require.Equal(t, uint64(1), dev.Stats().TooLong)

	small := q.Submit(nil, 11)
	require.Zero(t, small.Wait(), "no room for a header")
	require.Equal(t, uint64(1), dev.Stats().Malformed)
}

func TestFeaturesAndConfig(t *testing.T) {
	w := newWire(t)
	d, dev := start(t, w, 3, virtiotest.Options{})
	require.Equal(t, virtio.Features(1<<0|1<<1|1<<2|1<<3|1<<5|1<<7|1<<8|1<<9|1<<11|1<<12|1<<13|1<<15|1<<16|1<<17|1<<18|1<<19|1<<20|1<<22|1<<23|7<<54), dev.Features())
	require.Equal(t, []byte{2, 0, 0, 0, 0, 1, 1, 0, 3, 0, 0xdc, 5, 0, 0}, d.Config(0, 14))
	require.Equal(t, []byte{0xdc, 5}, d.Config(10, 2))
	require.Zero(t, d.Config(1<<20, 1)[0])
	require.NoError(t, d.Stop())
	require.Equal(t, []uint{0x7f & (unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6)}, w.set)

	w = newWire(t)
	w.offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4
	_, dev = start(t, w, 1, virtiotest.Options{})
	require.Equal(t, virtio.Features(1<<0|1<<1|1<<2|1<<3|1<<5|1<<7|1<<11|1<<12|1<<13|1<<15|1<<16|1<<17|1<<18|1<<19|1<<20|1<<23), dev.Features())
	w = newWire(t)
	w.header = false
	_, dev = start(t, w, 1, virtiotest.Options{})
	require.Equal(t, virtio.Features(1<<3|1<<5|1<<15|1<<16|1<<17|1<<18|1<<19|1<<20|1<<23), dev.Features())
}

func TestConfigErrors(t *testing.T) {
	w := newWire(t)
	bare := newWire(t)
	bare.header = false
	ports := []virtionet.Port{w}
	for want, cfg := range map[string]virtionet.Config{
		"no back end":                      {},
		"at most 64":                       {Backend: w, Ports: make([]virtionet.Port, 65), MAC: mac},
		"not a unicast address":            {Backend: w, Ports: ports, MAC: net.HardwareAddr{1, 0, 0, 0, 0, 0}},
		"mtu 67: not 68 to 65535":          {Backend: w, Ports: ports, MAC: mac, MTU: 67},
		"vhost is for TAP interfaces only": {Backend: bare, Ports: []virtionet.Port{bare}, MAC: mac, Vhost: virtionet.VhostOn},
	} {
		_, err := virtionet.New(cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestLink(t *testing.T) {
	w := newWire(t)
	d, dev := start(t, w, 1, virtiotest.Options{})
	changes := make(chan struct{}, 8)
	dev.OnConfigChange(func() { changes <- struct{}{} })
	require.NoError(t, dev.SetLink(false))
	<-changes
	require.NoError(t, dev.SetLink(false))
	require.Empty(t, changes)
	require.Equal(t, []byte{0, 0}, d.Config(6, 2))
	d.Queue(1).Submit([][]byte{frame(60, 1)}).Wait()
	require.Empty(t, w.frames())
	require.NoError(t, dev.SetLink(true))
	<-changes
	d.Queue(1).Submit([][]byte{frame(60, 1)}).Wait()
	require.Len(t, w.frames(), 1)
}

// The back end's end is the link's, for good; the machine goes on.
func TestLostBackend(t *testing.T) {
	for _, fault := range []error{io.EOF, unix.EIO, errors.New("frame of 4294967295 bytes")} {
		w := newWire(t)
		w.fault = fault
		cfg := virtionet.Config{Backend: w, Ports: []virtionet.Port{w}, MAC: mac, Vhost: virtionet.VhostOff}
		dev, err := virtionet.New(cfg)
		require.NoError(t, err)
		changed := make(chan struct{}, 1)
		dev.OnConfigChange(func() { changed <- struct{}{} })
		d := virtiotest.New(t, dev, virtiotest.Options{})
		d.Start()
		d.Queue(0).Submit(nil, 2000)
		<-changed
		require.Equal(t, []byte{0, 0}, d.Config(6, 2))
		require.Equal(t, uint64(1), dev.Stats().Lost)
		d.Queue(1).Submit([][]byte{frame(60, 1)}).Wait()
		require.NoError(t, d.Stop())
	}
}

func TestControl(t *testing.T) {
	const ok, bad = 0, 1
	le := binary.LittleEndian
	w := newWire(t)
	d, _ := start(t, w, 2, virtiotest.Options{})
	q := d.Queue(4)
	for _, c := range []struct {
		name    string
		command []byte
		want    byte
	}{
		{"promiscuous", []byte{0, 0, 1}, ok},
		{"unknown of RX", []byte{0, 6, 1}, bad},
		{"no switch of RX", []byte{0, 0}, bad},
		{"MAC table", []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, ok},
		{"MAC tables with entries", append([]byte{1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0}, make([]byte, 6)...), ok},
		{"one MAC table", []byte{1, 0, 0, 0, 0, 0}, bad},
		{"short MAC table", []byte{1, 0, 2, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0}, bad},
		{"endless MAC table", []byte{1, 0, 255, 255, 255, 255, 0, 0, 0, 0}, bad},
		{"unknown of MAC", []byte{1, 2, 0}, bad},
		{"VLAN", []byte{2, 0, 5, 0}, ok},
		{"no VLAN", []byte{2, 1, 5}, bad},
		{"unknown of VLAN", []byte{2, 2, 5, 0}, bad},
		{"MAC address", []byte{1, 1, 2, 2, 3, 4, 5, 6}, ok},
		{"multicast MAC address", []byte{1, 1, 3, 2, 3, 4, 5, 6}, bad},
		{"short MAC address", []byte{1, 1, 2, 2}, bad},
		{"two pairs", []byte{4, 0, 2, 0}, ok},
		{"one pair", []byte{4, 0, 1, 0}, ok},
		{"three pairs", []byte{4, 0, 3, 0}, bad},
		{"no pair", []byte{4, 0, 0, 0}, bad},
		{"no number", []byte{4, 0}, bad},
		{"RSS", []byte{4, 1, 1, 0}, bad},
		{"no offloads", append([]byte{5, 0}, make([]byte, 8)...), ok},
		{"offloads", le.AppendUint64([]byte{5, 0}, 1<<1|1<<7), ok},
		{"offloads without the checksum", le.AppendUint64([]byte{5, 0}, 1<<7), ok},
		{"an offload that is none", le.AppendUint64([]byte{5, 0}, 1<<5), bad},
		{"unknown class", []byte{9, 0}, bad},
		{"nothing", []byte{0}, bad},
	} {
		r := q.Submit([][]byte{c.command}, 1)
		require.Equal(t, uint32(1), r.Wait(), c.name)
		require.Equal(t, c.want, r.Bytes()[0], c.name)
	}
	require.Zero(t, q.Submit([][]byte{{0, 0, 1}}).Wait(), "no room for the answer")
	require.Equal(t, []byte{2, 2, 3, 4, 5, 6}, d.Config(0, 6))
	require.NoError(t, d.Stop())
	require.Equal(t, []byte(mac), d.Config(0, 6), "the next driver's is the device's own")
	require.Equal(t, []int{1, 2, 1}, w.queues)
	require.Equal(t, []uint{0, unix.TUN_F_CSUM | unix.TUN_F_TSO4, 0}, w.set[1:])
}

// Without VIRTIO_NET_F_MQ the control queue is behind the first pair.
func TestControlQueueOfOldDrivers(t *testing.T) {
	w := newWire(t)
	d, _ := start(t, w, 2, virtiotest.Options{Want: virtio.Version1 | 1<<17})
	r := d.Queue(2).Submit([][]byte{{0, 0, 1}}, 1)
	require.Equal(t, uint32(1), r.Wait())
	require.Equal(t, []byte{0}, r.Bytes())
}

// A second pair receives as soon as it is in use.
func TestPairs(t *testing.T) {
	w := newWire(t)
	d, _ := start(t, w, 2, virtiotest.Options{})
	r := d.Queue(2).Submit(nil, 2000)
	w.deliver(frame(60, 1))
	d.Queue(4).Submit([][]byte{{4, 0, 2, 0}}, 1).Wait()
	require.Equal(t, uint32(72), r.Wait())
	d.Queue(3).Submit([][]byte{frame(60, 2)}).Wait()
	require.Len(t, w.frames(), 1)
}

func TestBrokenRings(t *testing.T) {
	for i := range 3 {
		d, _ := start(t, newWire(t), 1, virtiotest.Options{})
		d.Queue(i).SetAvailIdx(1000)
		d.Queue(i).Kick()
		require.ErrorAs(t, d.Wait(), new(*virtqueue.Error), "queue %d", i)
	}
}

// Neither a frame that is none nor one that its back end could not read is the link's end, or takes a buffer.
func TestUnusableFrames(t *testing.T) {
	for _, header := range []bool{true, false} {
		w := newWire(t)
		w.header = header
		d, dev := start(t, w, 1, virtiotest.Options{})
		r := d.Queue(0).Submit(nil, 2000)
		skip := 0
		if !header {
			skip = virtionet.HeaderSize
		}
		w.deliver(nil, frame(13, 1)[skip:], frame(0, 1)[skip:], frame(14, 2)[skip:])
		require.Equal(t, uint32(virtionet.HeaderSize+14), r.Wait())
		require.Equal(t, uint64(3), dev.Stats().Unusable)
		require.Equal(t, uint64(1), dev.Stats().Received)
		require.Zero(t, dev.Stats().Lost)
	}
}

// What a driver may send is a frame, whole and not longer than the longest.
func TestUnsendableFrames(t *testing.T) {
	for _, header := range []bool{true, false} {
		w := newWire(t)
		w.header = header
		d, dev := start(t, w, 1, virtiotest.Options{})
		q := d.Queue(1)
		for _, n := range []int{0, 13, 65554} {
			q.Submit([][]byte{frame(n, 1)}).Wait()
		}
		q.Submit([][]byte{{1, 2, 3}}).Wait()
		require.Equal(t, uint64(4), dev.Stats().Malformed)
		q.Submit([][]byte{frame(14, 1)}).Wait()
		q.Submit([][]byte{frame(65553, 1)[:100], frame(65553, 1)[100:]}).Wait()
		require.Equal(t, uint64(2), dev.Stats().Sent)
	}
}

// A driver that knows no offload gets a header that has none (§5.1.6.4.1), whatever the TAP says.
func TestHeader(t *testing.T) {
	dirty := frame(60, 1)
	copy(dirty, []byte{2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}) // VIRTIO_NET_HDR_F_DATA_VALID, TCPv4
	for _, c := range []struct {
		features virtio.Features
		want     []byte
	}{
		{0, []byte{10: 1, 11: 0}},
		{1 << 15, []byte{10: 1, 11: 0}},
		{1 << 1, []byte{2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0}},
		{1<<1 | 1<<15, []byte{2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0}},
	} {
		for _, pieces := range [][]int{{1600}, {12, 1588}, {10, 1, 1, 1588}, {11, 1589}, {1, 2, 3, 4, 1590}} {
			w := newWire(t)
			d, _ := start(t, w, 1, virtiotest.Options{Want: virtio.Version1 | c.features})
			r := d.Queue(0).Submit(nil, pieces...)
			w.deliver(dirty)
			require.Equal(t, uint32(72), r.Wait())
			require.Equal(t, append(bytes.Clone(c.want), dirty[12:]...), r.Bytes()[:72])
		}
	}
}

// More and smaller buffers than one system call takes: what fits them is received.
func TestManySmallBuffers(t *testing.T) {
	w := newWire(t)
	d, dev := start(t, w, 1, virtiotest.Options{Want: virtio.Version1 | virtio.IndirectDesc | 1<<15})
	q := d.Queue(0)
	q.Indirect = true
	var requests []*virtiotest.Request
	sizes := make([]int, 100)
	for i := range sizes {
		sizes[i] = 1
	}
	for range q.Size() {
		requests = append(requests, q.Submit(nil, sizes...))
	}
	// One call takes ten chains of a hundred pieces.
	w.deliver(frame(1500, 1), frame(988, 2), frame(989, 3), frame(88, 4))
	for _, r := range requests[:11] {
		require.Equal(t, uint32(100), r.Wait())
	}
	require.Equal(t, []byte{10, 0}, requests[0].Bytes()[10:12])
	require.Equal(t, frame(988, 2)[12:100], requests[0].Bytes()[12:])
	require.Equal(t, frame(88, 4)[12:], requests[10].Bytes()[12:])
	require.Equal(t, uint64(2), dev.Stats().TooLong)
}

// A second driver finds the device as new, also where the first one left it with requests in flight.
func TestDriverAnew(t *testing.T) {
	w := newWire(t)
	d, _ := start(t, w, 2, virtiotest.Options{})
	for i := range byte(3) {
		d.Queue(4).Submit([][]byte{{4, 0, 2, 0}}, 1).Wait()
		d.Queue(0).Submit(nil, 2000)
		d.Queue(2).Submit(nil, 2000)
		w.with(func() { w.full = 1 << 30 })
		d.Queue(1).Submit([][]byte{frame(60, i)})
		require.NoError(t, d.Stop())
		w.with(func() { w.full = 0 })
		d.Start()
		r := d.Queue(0).Submit(nil, 2000)
		w.deliver(frame(60, i))
		require.Equal(t, uint32(72), r.Wait())
		require.Equal(t, i, r.Bytes()[12])
		d.Queue(1).Submit([][]byte{frame(60, i)}).Wait()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Equal(t, []int{1, 2, 1, 2, 1, 2, 1}, w.queues)
	require.Len(t, w.out, 3)
}

func FuzzNet(f *testing.F) {
	virtiotest.Fuzz(f, func(t testing.TB) virtio.Device {
		w := newWire(t)
		w.sent = make(chan struct{}, 1<<20)
		w.deliver(frame(60, 1), frame(1500, 2), frame(60000, 3))
		dev, err := virtionet.New(virtionet.Config{Backend: w, Ports: []virtionet.Port{w, w}, MAC: mac, Vhost: virtionet.VhostOff})
		require.NoError(t, err)
		return dev
	})
}
