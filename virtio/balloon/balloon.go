// Package balloon is the virtio memory balloon device (Virtual I/O Device 1.2 §5.5): the guest gives memory back to the
// host, as much as it is asked for, and what it has free by itself.
//
// The queues are inflateq (0), deflateq (1), and behind them those whose features the driver has taken: statsq, then
// reporting_vq.
//
// The configuration space (§5.5.4):
//
//	00  num_pages (4)   the balloon's size, as the host wants it, in pages of 4096 bytes
//	04  actual (4)   W  as it is
//
// # Deviations
//
//   - Free page hints (for migration) and page poisoning are not offered.
//   - Of one inflate request the first 65536 page numbers count. No driver sends more than 256 at once; it bounds what a
//     request can cost.
//   - A deflated page is the guest's again without being touched: it costs when it is used.
package balloon

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// PageSize is the unit of a balloon in bytes, whatever the guest's pages are.
const PageSize = 4096

// Config is what a balloon is made of.
type Config struct {
	// Target is the balloon's size in bytes that the guest is asked for at first; see [Device.SetTarget].
	Target uint64
}

// Device is a balloon. It implements virtio.Device.
type Device struct {
	notify   func()
	target   atomic.Uint32 // pages
	actual   atomic.Uint32
	counters counters
	stats    statistics
}

// New makes a balloon.
func New(cfg Config) (*Device, error) {
	d := &Device{notify: func() {}}
	d.stats.news = sync.NewCond(&d.stats.mu)
	return d, d.setTarget(cfg.Target)
}

func (d *Device) setTarget(bytes uint64) error {
	if bytes/PageSize > math.MaxUint32 {
		return fmt.Errorf("balloon of %d bytes: at most %d", bytes, uint64(math.MaxUint32)*PageSize)
	}
	d.target.Store(uint32(bytes / PageSize))
	return nil
}

// SetTarget asks the guest for so many bytes of its memory, or gives back what is more. The guest follows in its own time,
// as far as it can, and takes memory back when it would run out (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
func (d *Device) SetTarget(bytes uint64) error {
	if err := d.setTarget(bytes); err != nil {
		return err
	}
	d.notify()
	return nil
}

// Target is the size that the guest is asked for, and Actual what it says the balloon has, in bytes.
func (d *Device) Target() uint64 { return uint64(d.target.Load()) * PageSize }

// Actual is what the guest says that the balloon has, in bytes.
func (d *Device) Actual() uint64 { return uint64(d.actual.Load()) * PageSize }

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Balloon }

// Feature bits (§5.5.3).
const (
	featureStatsVQ      virtio.Features = 1 << 1
	featureDeflateOnOOM virtio.Features = 1 << 2
	featureReporting    virtio.Features = 1 << 5
)

// Features implements virtio.Device.
func (*Device) Features() virtio.Features {
	return featureStatsVQ | featureDeflateOnOOM | featureReporting
}

// The queues that there always are.
const (
	inflateQueue = 0
	deflateQueue = 1
	firstOther   = 2
)

// QueueSizes implements virtio.Device.
func (*Device) QueueSizes() []uint16 { return []uint16{128, 128, 64, 64} }

const (
	offNumPages = 0
	offActual   = 4
)

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [8]byte
	binary.LittleEndian.PutUint32(c[offNumPages:], d.target.Load())
	binary.LittleEndian.PutUint32(c[offActual:], d.actual.Load())
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(off uint32, p []byte) {
	if off == offActual && len(p) == 4 {
		d.actual.Store(binary.LittleEndian.Uint32(p))
	}
}

// OnConfigChange implements virtio.ConfigNotifier.
func (d *Device) OnConfigChange(changed func()) { d.notify = changed }

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	d.actual.Store(0)
	g := virtio.NewGroup(ctx)
	chains := func(handle func(c *virtqueue.Chain)) func(context.Context, *virtqueue.Queue) error {
		return func(ctx context.Context, q *virtqueue.Queue) error {
			return q.Serve(ctx, func(c *virtqueue.Chain) uint32 {
				handle(c)
				return 0
			})
		}
	}
	i := inflater{d: d, mem: a.Memory}
	g.Serve(a.Queues[inflateQueue], chains(i.inflate))
	g.Serve(a.Queues[deflateQueue], chains(func(*virtqueue.Chain) {}))
	next := firstOther
	if a.Features.Has(featureStatsVQ) {
		g.Serve(a.Queues[next], d.stats.serve)
		next++
	}
	if a.Features.Has(featureReporting) {
		g.Serve(a.Queues[next], chains(func(c *virtqueue.Chain) { d.report(a.Memory, c) }))
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	return nil
}

// maxPages bounds the page numbers of one request.
const maxPages = 1 << 16

// inflater takes pages from the guest. Neighbours go to the host by one call.
type inflater struct {
	d   *Device
	mem *memory.Memory

	first, last uint32 // the run so far: pages from first to last
	open        bool
}

// inflate serves a request: an array of page numbers (§5.5.6.1).
func (i *inflater) inflate(c *virtqueue.Chain) {
	i.open = false
	var b [4]byte
	for range maxPages {
		if n, _ := c.Readable.Read(b[:]); n < len(b) {
			break
		}
		page := binary.LittleEndian.Uint32(b[:])
		switch {
		case i.open && i.last != math.MaxUint32 && page == i.last+1:
			i.last = page
		case i.open && i.first != 0 && page == i.first-1: // Linux allocates downwards
			i.first = page
		default:
			i.flush()
			i.first, i.last, i.open = page, page, true
		}
	}
	i.flush()
}

// flush gives the run to the host.
func (i *inflater) flush() {
	if !i.open {
		return
	}
	i.open = false
	pages := uint64(i.last-i.first) + 1
	p, err := i.mem.Slice(memory.GPA(i.first)*PageSize, pages*PageSize)
	if err != nil {
		i.d.counters.foreign.Add(pages)
		return
	}
	i.d.discard(i.mem, p, &i.d.counters.inflated)
}

// report serves a report of free pages: the buffers are the pages (§5.5.6.7).
func (d *Device) report(mem *memory.Memory, c *virtqueue.Chain) {
	for _, p := range c.Writable {
		d.discard(mem, p, &d.counters.reported)
	}
}

func (d *Device) discard(mem *memory.Memory, p []byte, counter *atomic.Uint64) {
	if err := mem.Discard(p); err != nil {
		d.counters.refused.Add(uint64(len(p) / PageSize))
		return
	}
	counter.Add(uint64(len(p) / PageSize))
}

type counters struct {
	inflated, reported, foreign, refused atomic.Uint64
}

// Pages counts the pages that a balloon has had to do with since it was made.
type Pages struct {
	Inflated uint64 // put into the balloon
	Reported uint64 // reported as free
	Foreign  uint64 // put into the balloon without being memory
	Refused  uint64 // not taken by the host
}

// Pages returns the counts. Any goroutine may call it.
func (d *Device) Pages() Pages {
	c := &d.counters
	return Pages{
		Inflated: c.inflated.Load(), Reported: c.reported.Load(), Foreign: c.foreign.Load(), Refused: c.refused.Load(),
	}
}
