// Package rng is the virtio entropy device (Virtual I/O Device 1.2 §5.4): /dev/hwrng of the guest.
//
// It has one queue, no features and no configuration:
//
//	0  requestq  device-writable buffers, to be filled with random bytes
//
// # Deviations
//
//   - A request gets at most 64 KiB, however long its buffers are: §5.4.6.2 lets a device use less than it is given. It
//     bounds what one request can cost.
package rng

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

const (
	queueSize  = 64
	maxRequest = 64 << 10 // bytes
)

// Config is what a device is made of.
type Config struct {
	// Source is where the bytes come from; nil for the host kernel's generator, getrandom(2). A Read must not block for
	// long. What it cannot fill, the guest does not get.
	Source io.Reader
}

// Device is an entropy device. It implements virtio.Device.
type Device struct {
	source io.Reader

	requests, failures atomic.Uint64
}

// New makes a device.
func New(cfg Config) *Device {
	if cfg.Source == nil {
		cfg.Source = kernel{}
	}
	return &Device{source: cfg.Source}
}

// kernel reads from the generator of the host's kernel.
type kernel struct{}

// Read implements io.Reader. It goes straight into the guest's memory: crypto/rand would make a detour where Go's own
// generator is in FIPS mode.
func (kernel) Read(p []byte) (int, error) {
	for {
		n, err := unix.Getrandom(p, 0)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Entropy }

// Features implements virtio.Device.
func (*Device) Features() virtio.Features { return 0 }

// QueueSizes implements virtio.Device.
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device.
func (*Device) ReadConfig(_ uint32, p []byte) { clear(p) }

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint32, []byte) {}

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	g := virtio.NewGroup(ctx)
	g.Serve(a.Queues[0], func(ctx context.Context, q *virtqueue.Queue) error { return q.Serve(ctx, d.fill) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("rng: %w", err)
	}
	return nil
}

// fill serves one request.
func (d *Device) fill(c *virtqueue.Chain) (written uint32) {
	d.requests.Add(1)
	c.Writable.Limit(maxRequest)
	for _, p := range c.Writable {
		n, err := io.ReadFull(d.source, p)
		written += uint32(n)
		if err != nil {
			d.failures.Add(1)
			return written
		}
	}
	return written
}

// Stats counts a device's work since it was made.
type Stats struct {
	Requests uint64
	Failures uint64 // requests that the source could not fill
}

// Stats returns the counts. Any goroutine may call it.
func (d *Device) Stats() Stats {
	return Stats{Requests: d.requests.Load(), Failures: d.failures.Load()}
}
