package console_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/virtio"
	"vmm/virtio/console"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

// start makes a console and returns the other ends of its lines.
func start(t testing.TB, names ...string) (*virtiotest.Driver, *console.Device, []net.Conn) {
	t.Helper()
	var cfg console.Config
	var ends []net.Conn
	line := func() net.Conn {
		ours, theirs := net.Pipe()
		ends = append(ends, theirs)
		t.Cleanup(func() { _ = theirs.Close() })
		return ours
	}
	cfg.Line = line()
	for _, name := range names {
		cfg.Ports = append(cfg.Ports, console.PortConfig{Name: name, Line: line()})
	}
	dev, err := console.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, dev.Close()) })
	d := virtiotest.New(t, dev, virtiotest.Options{})
	d.Start()
	return d, dev, ends
}

func read(t testing.TB, r io.Reader, n int) string {
	t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	require.NoError(t, err)
	return string(p)
}

// written waits for r and returns what the device has written.
func written(r *virtiotest.Request) []byte {
	n := r.Wait()
	return r.Bytes()[:n]
}

func TestConsole(t *testing.T) {
	d, dev, ends := start(t)
	require.Equal(t, virtio.Features(1), dev.Features())
	require.Len(t, dev.QueueSizes(), 2)
	out := d.Queue(1).Submit([][]byte{[]byte("hello, "), []byte("host\n")})
	require.Equal(t, "hello, host\n", read(t, ends[0], 12))
	require.Zero(t, out.Wait())

	in := d.Queue(0).Submit(nil, 3, 10)
	_, err := ends[0].Write([]byte("hello, guest"))
	require.NoError(t, err)
	require.Equal(t, uint32(12), in.Wait())
	require.Equal(t, "hello, guest\x00", string(in.Bytes()))
	in = d.Queue(0).Submit(nil, 4)
	_, err = ends[0].Write([]byte("more than fits"))
	require.NoError(t, err)
	require.Equal(t, uint32(4), in.Wait())
	in = d.Queue(0).Submit(nil, 100)
	require.Equal(t, uint32(10), in.Wait())
	require.Equal(t, " than fits", string(in.Bytes()[:10]))
}

// What was typed before there was a guest, or between two, is there for the next.
func TestInputWaits(t *testing.T) {
	d, _, ends := start(t)
	require.NoError(t, d.Stop())
	_, err := ends[0].Write([]byte("early"))
	require.NoError(t, err)
	d.Start()
	in := d.Queue(0).Submit(nil, 5)
	require.Equal(t, uint32(5), in.Wait())
	require.Equal(t, "early", string(in.Bytes()))
}

// A line that takes nothing fills the buffer; then the guest's next output waits, and the device can still be reset.
func TestStalledLine(t *testing.T) {
	d, _, ends := start(t)
	big := bytes.Repeat([]byte("x"), 16<<10)
	require.Zero(t, d.Queue(1).Submit([][]byte{big}).Wait())
	second := d.Queue(1).Submit([][]byte{append([]byte("y"), big...)})
	require.NoError(t, d.Stop())
	require.False(t, second.Done())
	d.Start()
	third := d.Queue(1).Submit([][]byte{[]byte("z")})
	got := read(t, ends[0], 16<<10)
	require.Equal(t, string(big), got)
	require.Equal(t, "z", read(t, ends[0], 1))
	third.Wait()
}

func TestMuch(t *testing.T) {
	d, _, ends := start(t)
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	var moving sync.WaitGroup
	moving.Go(func() { _, _ = io.CopyN(ends[0], ends[0], int64(len(data))) })
	moving.Go(func() {
		for rest := data; len(rest) > 0; rest = rest[min(len(rest), 3000):] {
			d.Queue(1).Submit([][]byte{rest[:min(len(rest), 3000)]}).Wait()
		}
	})
	var got []byte
	for len(got) < len(data) {
		got = append(got, written(d.Queue(0).Submit(nil, 5000))...)
	}
	require.True(t, bytes.Equal(data, got))
	moving.Wait()
}

func TestLineEnds(t *testing.T) {
	d, _, ends := start(t)
	require.NoError(t, ends[0].Close())
	for range 4 { // swallowed
		d.Queue(1).Submit([][]byte{bytes.Repeat([]byte("x"), 16<<10)}).Wait()
	}
}

func TestSize(t *testing.T) {
	d, dev, _ := start(t)
	changes := 0
	dev.OnConfigChange(func() { changes++ })
	require.Equal(t, []byte{80, 0, 24, 0, 0, 0, 0, 0}, d.Config(0, 8))
	dev.Resize(300, 50)
	dev.Resize(300, 50)
	require.Equal(t, []byte{0x2c, 1, 50, 0}, d.Config(0, 4))
	require.Equal(t, 1, changes)
}

func TestConfigErrors(t *testing.T) {
	_, err := console.New(console.Config{})
	require.ErrorContains(t, err, "no line")
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	_, err = console.New(console.Config{Line: a, Ports: []console.PortConfig{{Line: b}}})
	require.ErrorContains(t, err, "has no name")
	_, err = console.New(console.Config{Line: a, Ports: make([]console.PortConfig, 32)})
	require.ErrorContains(t, err, "33 ports, at most 32")
}

func TestMultiport(t *testing.T) {
	d, dev, ends := start(t, "agent.0", "other")
	require.Equal(t, virtio.Features(3), dev.Features())
	require.Equal(t, []byte{3, 0, 0, 0}, d.Config(4, 4))
	tell := func(m ...byte) { d.Queue(3).Submit([][]byte{m}).Wait() }
	hear := func() []byte { return written(d.Queue(2).Submit(nil, 64)) }
	tell(0, 0, 0, 0, 0, 0, 1, 0) // DEVICE_READY
	for i := range byte(3) {
		require.Equal(t, []byte{i, 0, 0, 0, 1, 0, 1, 0}, hear(), "PORT_ADD")
	}
	tell(0, 0, 0, 0, 3, 0, 1, 0) // PORT_READY
	require.Equal(t, []byte{0, 0, 0, 0, 4, 0, 1, 0}, hear(), "CONSOLE_PORT")
	require.Equal(t, []byte{0, 0, 0, 0, 6, 0, 1, 0}, hear(), "PORT_OPEN")
	require.Equal(t, []byte{0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 24, 0}, hear(), "RESIZE")
	tell(1, 0, 0, 0, 3, 0, 1, 0)
	require.Equal(t, append([]byte{1, 0, 0, 0, 7, 0, 1, 0}, "agent.0"...), hear(), "PORT_NAME")
	require.Equal(t, []byte{1, 0, 0, 0, 6, 0, 1, 0}, hear(), "PORT_OPEN")
	dev.Resize(100, 40)
	require.Equal(t, []byte{0, 0, 0, 0, 5, 0, 0, 0, 100, 0, 40, 0}, hear())

	d.Queue(5).Submit([][]byte{[]byte("from port 1")})
	require.Equal(t, "from port 1", read(t, ends[1], 11))
	in := d.Queue(6).Submit(nil, 16)
	_, err := ends[2].Write([]byte("to port 2"))
	require.NoError(t, err)
	require.Equal(t, uint32(9), in.Wait())

	// A guest that talks and does not listen is not listened to for long.
	tell(9, 0, 0, 0, 3, 0, 1, 0) // no such port
	tell(0, 0, 0)
	var last *virtiotest.Request
	for range 50 {
		last = d.Queue(3).Submit([][]byte{{0, 0, 0, 0, 0, 0, 1, 0}})
	}
	for !last.Done() {
		hear()
	}
}

// A driver without VIRTIO_CONSOLE_F_MULTIPORT has the first two queues.
func TestOldDriver(t *testing.T) {
	a, b := net.Pipe()
	c, e := net.Pipe()
	defer b.Close()
	defer e.Close()
	dev, err := console.New(console.Config{Line: a, Ports: []console.PortConfig{{Name: "x", Line: c}}})
	require.NoError(t, err)
	defer func() { require.NoError(t, dev.Close()) }()
	d := virtiotest.New(t, dev, virtiotest.Options{Want: virtio.Version1, Absent: []int{2, 3, 4, 5}})
	d.Start()
	d.Queue(1).Submit([][]byte{[]byte("x")})
	require.Equal(t, "x", read(t, b, 1))
	require.NoError(t, d.Stop())
}

func TestBrokenRings(t *testing.T) {
	for i := range 6 {
		d, _, _ := start(t, "x")
		d.Queue(i).Offer(0xffff)
		if i%2 == 0 && i != 2 { // receiving: looked at when there is something
			continue
		}
		if i == 2 {
			d.Queue(3).Submit([][]byte{{0, 0, 0, 0, 0, 0, 1, 0}})
		}
		require.ErrorAs(t, d.Wait(), new(*virtqueue.Error), "queue %d", i)
	}
}

func TestNoAllocation(t *testing.T) {
	d, _, ends := start(t)
	r := d.Queue(1).Prepare([][]byte{[]byte("x")})
	p := make([]byte, 1)
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		r.Submit()
		r.Wait()
		_, _ = ends[0].Read(p)
	})))
}

func FuzzConsole(f *testing.F) {
	virtiotest.Fuzz(f, func(t testing.TB) virtio.Device {
		ours, theirs := net.Pipe()
		other, others := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() { _, _ = io.Copy(others, others) }()
		dev, err := console.New(console.Config{Line: ours, Ports: []console.PortConfig{{Name: "x", Line: other}}})
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = theirs.Close()
			_ = others.Close()
			_ = dev.Close()
		})
		return dev
	})
}
