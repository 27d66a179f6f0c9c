package pci

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"vmm/devices"
	devpci "vmm/devices/pci"
	"vmm/internal/eventfd"
	"vmm/internal/leak"
	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

// device is a virtio device of two queues that gives each chain back at once. Its configuration is eight bytes.
type device struct {
	mu      sync.Mutex // guards what follows
	config  [8]byte
	changed func()
	served  int    // how often Serve was called
	last    []bool // which queues the last Serve got
	feats   virtio.Features

	hold chan struct{} // if not nil, Serve returns only when it is closed, as with I/O in flight
	fail chan error    // makes Serve return
}

func newDevice() *device { return &device{fail: make(chan error, 1)} }

func (d *device) ID() virtio.DeviceID       { return virtio.Block }
func (d *device) Features() virtio.Features { return 1<<5 | 1<<9 }
func (d *device) QueueSizes() []uint16      { return []uint16{64, 8} }

func (d *device) ReadConfig(off uint32, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(p)
	if off < 8 {
		copy(p, d.config[off:])
	}
}

func (d *device) WriteConfig(off uint32, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 8 {
		copy(d.config[off:], p)
	}
}

func (d *device) OnConfigChange(changed func()) { d.changed = changed }

func (d *device) Serve(ctx context.Context, a virtio.Activation) error {
	d.mu.Lock()
	d.served++
	d.last = nil
	d.feats = a.Features
	for _, q := range a.Queues {
		d.last = append(d.last, q != nil)
	}
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := virtio.NewGroup(ctx)
	for _, q := range a.Queues {
		g.Serve(q, func(ctx context.Context, q *virtqueue.Queue) error {
			return q.Serve(ctx, func(*virtqueue.Chain) uint32 { return 7 })
		})
	}
	var failure error
	select {
	case <-g.Done():
		if d.hold != nil {
			<-d.hold
		}
	case failure = <-d.fail:
		cancel()
	}
	return errors.Join(failure, g.Wait())
}

func (d *device) times() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.served
}

// host is a machine that remembers what it was asked for.
type host struct {
	mu        sync.Mutex // guards what follows
	doorbells map[uint64]*eventfd.EventFD
	vectors   []*fakeVector
	refuse    bool // no doorbells
	failAfter int  // NewVector fails after so many; zero for never
}

func (h *host) BindDoorbell(addr uint64, e *eventfd.EventFD) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse {
		return errors.ErrUnsupported
	}
	h.doorbells[addr] = e
	return nil
}

func (h *host) UnbindDoorbell(addr uint64, e *eventfd.EventFD) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doorbells[addr] == e {
		delete(h.doorbells, addr)
	}
}

func (h *host) NewVector(e *eventfd.EventFD) (Vector, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failAfter > 0 && len(h.vectors) == h.failAfter {
		return nil, errors.New("no more")
	}
	v := &fakeVector{event: e}
	h.vectors = append(h.vectors, v)
	return v, nil
}

// fakeVector connects like KVM: what waits in the eventfd is delivered.
type fakeVector struct {
	event *eventfd.EventFD
	mu    sync.Mutex // guards what follows
	on    bool
	addr  uint64
	data  uint32
	calls int
}

func (v *fakeVector) Connect(addr uint64, data uint32) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.on, v.addr, v.data = true, addr, data
	v.calls++
	return nil
}

func (v *fakeVector) Disconnect() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.on = false
}

func (v *fakeVector) message() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.on {
		return "off"
	}
	return fmt.Sprintf("%#x=%#x", v.addr, v.data)
}

// wait waits for an interrupt of a connected vector.
func (v *fakeVector) wait(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	on := v.on
	v.mu.Unlock()
	require.True(t, on)
	done := make(chan error, 1)
	go func() { done <- v.event.Wait() }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(20 * time.Second):
		panic("no interrupt")
	}
}

// line is an INTx pin.
type line struct {
	mu    sync.Mutex // guards what follows
	high  bool
	rises chan struct{}
}

func (l *line) SetLevel(high bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if high && !l.high {
		select {
		case l.rises <- struct{}{}:
		default:
		}
	}
	l.high = high
	return nil
}

func (l *line) level() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.high
}

// guest drives a transport on a PCI bus.
type guest struct {
	t    testing.TB
	dev  *device
	host *host
	line *line
	root *devpci.Root
	mmio devices.Bus
	tr   *Transport
	ram  []byte
	bar  uint64
	caps map[int]int // offset by vendor capability's type; MSI-X and AF by their negative ID
}

const ramStart = 0x10_0000

func newGuest(t testing.TB, change func(*device, *host)) *guest {
	t.Helper()
	g := &guest{
		t: t, dev: newDevice(), host: &host{doorbells: map[uint64]*eventfd.EventFD{}}, line: &line{rises: make(chan struct{}, 1)},
		ram: make([]byte, 1<<20), caps: map[int]int{},
	}
	if change != nil {
		change(g.dev, g.host)
	}
	mem, err := memory.FromSlices(memory.Region{Start: ramStart, Bytes: g.ram})
	require.NoError(t, err)
	g.tr, err = New(Config{Device: g.dev, Memory: mem, Host: g.host, INTx: g.line, Line: 16})
	require.NoError(t, err)
	t.Cleanup(g.tr.Close)
	g.root, err = devpci.NewRoot(devpci.Config{
		PIO: new(devices.Bus), MMIO: &g.mmio, MMIOWindows: []devpci.Window{{Start: 0xc000_0000, Size: 1 << 20}},
	})
	require.NoError(t, err)
	require.NoError(t, g.root.Add(devpci.NewBDF(0, 1, 0), g.tr.Function()))
	require.NoError(t, g.root.AssignBARs())
	for at := g.configRead(0x34, 1); at != 0; at = g.configRead(int(at)+1, 1) {
		if id := g.configRead(int(at), 1); id == 0x09 {
			g.caps[int(g.configRead(int(at)+3, 1))] = int(at)
		} else {
			g.caps[-int(id)] = int(at)
		}
	}
	g.bar = g.configRead(0x10, 8) &^ 0xf
	g.configWrite(0x04, 2, 0x0406) // memory, bus master, no INTx
	return g
}

func value(p []byte) uint64 {
	var b [8]byte
	copy(b[:], p)
	return binary.LittleEndian.Uint64(b[:])
}

func bytesOf(n int, v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v)[:n] }

func (g *guest) configRead(reg, n int) uint64 {
	p := make([]byte, n)
	g.root.ECAM().Read(1<<15|uint64(reg), p)
	return value(p)
}

func (g *guest) configWrite(reg, n int, v uint64) {
	g.root.ECAM().Write(1<<15|uint64(reg), bytesOf(n, v))
}

func (g *guest) read(off uint64, n int) uint64 {
	p := make([]byte, n)
	g.mmio.Read(g.bar+off, p)
	return value(p)
}

func (g *guest) write(off uint64, n int, v uint64) { g.mmio.Write(g.bar+off, bytesOf(n, v)) }

func (g *guest) status() uint64 { return g.read(regStatus, 1) }

// negotiate does what a driver does up to FEATURES_OK.
func (g *guest) negotiate(features virtio.Features) {
	g.write(regStatus, 1, 1)
	g.write(regStatus, 1, 3)
	g.write(regDriverFeatureSelect, 4, 0)
	g.write(regDriverFeature, 4, uint64(uint32(features)))
	g.write(regDriverFeatureSelect, 4, 1)
	g.write(regDriverFeature, 4, uint64(features>>32))
	g.write(regStatus, 1, 11)
}

// Where the rings of queue i are.
func ring(i uint64) (desc, avail, used uint64) {
	base := ramStart + 0x4000*i
	return base, base + 0x1000, base + 0x2000
}

// enable sets queue i up with four entries.
func (g *guest) enable(i uint64) {
	desc, avail, used := ring(i)
	clear(g.ram[desc-ramStart:][:0x4000])
	g.write(regQueueSelect, 2, i)
	g.write(regQueueSize, 2, 4)
	g.write(regQueueDesc, 4, desc)
	g.write(regQueueDesc+4, 4, desc>>32)
	g.write(regQueueDriver, 8, avail)
	g.write(regQueueDevice, 4, used)
	g.write(regQueueDevice+4, 4, 0)
	g.write(regQueueEnable, 2, 1)
}

// start takes the device into use with both queues.
func (g *guest) start() {
	g.negotiate(virtio.Version1)
	g.enable(0)
	g.enable(1)
	g.write(regStatus, 1, 15)
}

// offer makes the next chain of queue i available.
func (g *guest) offer(i uint64) {
	desc, _, _ := ring(i)
	d := g.ram[desc-ramStart:]
	binary.LittleEndian.PutUint64(d, ramStart+0x8_0000)
	binary.LittleEndian.PutUint32(d[8:], 16)
	binary.LittleEndian.PutUint16(d[12:], 2) // device-writable
	g.advance(i, 1)
}

// advance moves avail.idx of queue i, whose ring has zeroes for heads.
func (g *guest) advance(i uint64, n uint32) {
	_, avail, _ := ring(i)
	atomic.AddUint32((*uint32)(unsafe.Pointer(&g.ram[avail-ramStart])), n<<16)
}

// usedIdx is used.idx of queue i.
func (g *guest) usedIdx(i uint64) uint32 {
	_, _, used := ring(i)
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&g.ram[used-ramStart]))) >> 16
}

// kick kicks queue i as KVM would, or by the register where KVM does not.
func (g *guest) kick(i uint64) {
	g.write(regQueueSelect, 2, i)
	addr := g.bar + notifyStart + 4*g.read(regQueueNotifyOff, 2)
	g.host.mu.Lock()
	e := g.host.doorbells[addr]
	g.host.mu.Unlock()
	if e != nil {
		e.Signal()
		return
	}
	g.mmio.Write(addr, bytesOf(2, i))
}

// msix enables MSI-X with vector i sending message i.
func (g *guest) msix(control uint64) {
	for i := range uint64(3) {
		g.write(tableStart+16*i, 4, 0xfee0_0000+i<<12)
		g.write(tableStart+16*i+4, 4, 0)
		g.write(tableStart+16*i+8, 4, 0x40+i)
		g.write(tableStart+16*i+12, 4, 0)
	}
	g.configWrite(g.caps[-0x11]+2, 2, control)
}

// until waits for what has no event of its own.
func (g *guest) until(what string, done func() bool) {
	g.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		require.True(g.t, time.Now().Before(end), what)
	}
}
