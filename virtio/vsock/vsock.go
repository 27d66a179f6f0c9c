// Package vsock is the virtio socket device (Virtual I/O Device 1.2 §5.10): stream sockets between the guest and its host
// that need no network. The guest knows the host as CID 2.
//
// The queues are rx (0), tx (1) and event (2), which is not used. The configuration space is guest_cid (8).
//
// A packet is a header of 44 bytes, all of it little-endian, and data:
//
//	00  src_cid (8), dst_cid (8), src_port (4), dst_port (4)
//	18  len (4), type (2), op (2), flags (4)
//	24  buf_alloc (4), fwd_cnt (4)
//
//	type  1 stream
//	op    1 REQUEST, 2 RESPONSE, 3 RST, 4 SHUTDOWN, 5 RW, 6 CREDIT_UPDATE, 7 CREDIT_REQUEST
//
// # How it works
//
// Each queue has a goroutine, and each connection two: one reads from the host's end into a buffer, one writes to it out of
// another. Blocking reads and writes of a thousand connections are what Go's runtime is good at, and no slow reader holds
// up the others. The queues' goroutines never wait for a connection: what there is to send is a list of connections that
// have something, each in it once, so that they take turns and the list is bounded.
//
// Memory is bounded too: by the number of connections, the size of their buffers, and of the list of packets that no
// connection is for. While that one is full, the device takes nothing from the guest.
//
// # Deviations
//
//   - Streams only: VIRTIO_VSOCK_F_SEQPACKET is not offered.
package vsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/virtio"
)

// HostCID is the host's context ID, and MinCID the least that a guest can have.
const (
	HostCID = 2
	MinCID  = 3
)

// Conn is the host's end of a connection. *net.UnixConn and *net.TCPConn are Conns.
type Conn interface {
	net.Conn
	CloseWrite() error // the guest has no more to say
}

// Config is what a device is made of.
type Config struct {
	CID uint64 // the guest's, MinCID to 2^32-2
	// Dial connects to what the guest asks for: a port of the host. An error refuses the guest. It may block. Nil
	// refuses all.
	Dial func(ctx context.Context, port uint32) (Conn, error)
}

// Device is a virtio socket device. It implements virtio.Device.
type Device struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	session *session   // with the driver that is served; nil without one
}

// New makes a device.
func New(cfg Config) (*Device, error) {
	if cfg.CID < MinCID || cfg.CID >= 1<<32-1 {
		return nil, fmt.Errorf("cid %d: not %d to %d", cfg.CID, MinCID, uint64(1<<32-2))
	}
	if cfg.Dial == nil {
		cfg.Dial = func(context.Context, uint32) (Conn, error) { return nil, errors.ErrUnsupported }
	}
	return &Device{cfg: cfg}, nil
}

// ErrNoGuest is what a connection to a guest fails with that has no driver for the device (yet).
var ErrNoGuest = errors.New("the guest does not listen: it has no driver for its sockets")

// ErrRefused is what a connection to a port fails with on which nobody listens.
var ErrRefused = errors.New("the guest refused the connection")

// Connect asks the guest for a connection to its port, and joins it with conn, which is the device's from then on. It
// returns when the guest has agreed, with the host's port; then, before anything the guest sends, opened is called,
// which may be nil. When it fails, conn is closed.
func (d *Device) Connect(ctx context.Context, conn Conn, port uint32, opened func(hostPort uint32) error) error {
	d.mu.Lock()
	s := d.session
	var c *connection
	err := ErrNoGuest
	if s != nil {
		c, err = s.request(conn, port, opened)
	}
	d.mu.Unlock()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	select {
	case err = <-c.agreed:
	case <-ctx.Done():
		err = ctx.Err()
		c.abort()
		err = errors.Join(err, <-c.agreed)
	}
	return err
}

// Pair returns the two ends of a connection inside this process: one for the device, for example as what [Config.Dial] returns,
// and one for the program.
func Pair() (a, b Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	a, err1 := connOf(fds[0])
	b, err2 := connOf(fds[1])
	return a, b, errors.Join(err1, err2)
}

// Dial connects to a port of the guest.
func (d *Device) Dial(ctx context.Context, port uint32) (Conn, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	if err := d.Connect(ctx, ours, port, nil); err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	return theirs, nil
}

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Vsock }

// Features implements virtio.Device.
func (*Device) Features() virtio.Features { return 0 }

const queueSize = 256

// The queues.
const (
	rxQueue = 0
	txQueue = 1
)

// QueueSizes implements virtio.Device.
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, 8} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [8]byte
	binary.LittleEndian.PutUint64(c[:], d.cfg.CID)
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint32, []byte) {}

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	rx, tx := a.Queues[rxQueue], a.Queues[txQueue]
	if rx == nil || tx == nil {
		<-ctx.Done()
		return nil
	}
	g := virtio.NewGroup(ctx)
	s := newSession(ctx, d, rx, tx)
	d.setSession(s)
	g.Serve(rx, s.send)
	g.Serve(tx, s.listen)
	<-g.Done()
	d.setSession(nil)
	s.end()
	if err := g.Wait(); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	return nil
}

func (d *Device) setSession(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
}
