// Package console is the virtio console device (Virtual I/O Device 1.2 §5.3): hvc0 of a Linux guest, and serial ports for
// programs (/dev/virtio-ports) beside it.
//
// The queues are, for port 0, receiveq (0) and transmitq (1); with VIRTIO_CONSOLE_F_MULTIPORT the control queues, of which
// the driver receives from 2 and sends to 3; then two queues for each further port.
//
// The configuration space (§5.3.4), all of it read-only:
//
//	00  cols (2), rows (2)   of the terminal, with VIRTIO_CONSOLE_F_SIZE
//	04  max_nr_ports (4)     with VIRTIO_CONSOLE_F_MULTIPORT
//
// A control message (§5.3.6.2) is id (4), event (2), value (2), and what the event adds.
//
// # Deviations
//
//   - The feature of several ports is offered only if there is more than the console.
//   - Emergency writes are not offered.
package console

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"vmm/virtio"
)

// MaxPorts is the greatest number of ports, the console's among them.
const MaxPorts = 32

// Config is what a console is made of.
type Config struct {
	// Line is what the console is connected to. Its Close must end a pending Read and Write, as net.Conn's does.
	Line io.ReadWriteCloser
	// Ports are further ones, which the guest finds by their names.
	Ports []PortConfig
}

// PortConfig is a port that is no console.
type PortConfig struct {
	Name string
	Line io.ReadWriteCloser
}

// Device is a console. It implements virtio.Device. It lives, with its lines and what is on the way in them, until
// [Device.Close]: whether a guest listens or not.
type Device struct {
	ports  []*port // the console first
	notify func()

	mu         sync.Mutex // guards what follows
	cols, rows uint16
	control    *controller // of the guest that is served, with several ports
}

// New makes a console and starts to read its lines, as far as its buffers go. When it fails, the lines are still the
// caller's; else they are the device's.
func New(cfg Config) (*Device, error) {
	if cfg.Line == nil {
		return nil, errors.New("console: no line")
	}
	if n := len(cfg.Ports) + 1; n > MaxPorts {
		return nil, fmt.Errorf("console: %d ports, at most %d", n, MaxPorts)
	}
	for _, p := range cfg.Ports {
		if p.Name == "" || p.Line == nil {
			return nil, fmt.Errorf("console: port %q has no name or no line", p.Name)
		}
	}
	d := &Device{notify: func() {}, cols: 80, rows: 24}
	d.ports = append(d.ports, newPort("", cfg.Line))
	for _, p := range cfg.Ports {
		d.ports = append(d.ports, newPort(p.Name, p.Line))
	}
	return d, nil
}

// Close closes the lines, and waits until nobody uses them any more. No guest may be served. It sends what the guest has
// printed, as long as the lines take it.
func (d *Device) Close() error {
	var errs []error
	for _, p := range d.ports {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// Resize tells the guest the size of the terminal that the console is on.
func (d *Device) Resize(cols, rows uint16) {
	d.mu.Lock()
	changed := cols != d.cols || rows != d.rows
	d.cols, d.rows = cols, rows
	c := d.control
	d.mu.Unlock()
	if !changed {
		return
	}
	if c != nil {
		c.resize()
	}
	d.notify()
}

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Console }

// Feature bits (§5.3.3).
const (
	featureSize      virtio.Features = 1 << 0
	featureMultiport virtio.Features = 1 << 1
)

// Features implements virtio.Device.
func (d *Device) Features() virtio.Features {
	if len(d.ports) > 1 {
		return featureSize | featureMultiport
	}
	return featureSize
}

const queueSize = 64

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	n := 2
	if len(d.ports) > 1 {
		n = 2 + 2*len(d.ports)
	}
	sizes := make([]uint16, n)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [8]byte
	cols, rows := d.size()
	binary.LittleEndian.PutUint16(c[0:], cols)
	binary.LittleEndian.PutUint16(c[2:], rows)
	if len(d.ports) > 1 {
		binary.LittleEndian.PutUint32(c[4:], uint32(len(d.ports)))
	}
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
}

func (d *Device) size() (cols, rows uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cols, d.rows
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint32, []byte) {}

// OnConfigChange implements virtio.ConfigNotifier.
func (d *Device) OnConfigChange(changed func()) { d.notify = changed }

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	g := virtio.NewGroup(ctx)
	multiport := a.Features.Has(featureMultiport)
	for i, p := range d.ports {
		if i > 0 && !multiport {
			break
		}
		receive, transmit := portQueues(i)
		g.Serve(a.Queues[receive], p.receive)
		g.Serve(a.Queues[transmit], p.transmit)
	}
	if multiport && a.Queues[controlReceive] != nil && a.Queues[controlTransmit] != nil {
		c := newController(d, a.Queues[controlReceive], a.Queues[controlTransmit])
		d.setController(c)
		defer d.setController(nil)
		g.Serve(a.Queues[controlReceive], c.send)
		g.Serve(a.Queues[controlTransmit], c.listen)
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// The control queues.
const (
	controlReceive  = 2
	controlTransmit = 3
)

// portQueues are the queues of port i (§5.3.2).
func portQueues(i int) (receive, transmit int) {
	if i == 0 {
		return 0, 1
	}
	return 2 + 2*i, 3 + 2*i
}

func (d *Device) setController(c *controller) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.control = c
}
