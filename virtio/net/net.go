// Package net is the virtio network device (Virtual I/O Device 1.2 §5.1).
//
// The queues are receiveq1, transmitq1, receiveq2, transmitq2, ... for each pair, and controlq behind them: behind the
// first pair, for a driver that does not take VIRTIO_NET_F_MQ.
//
// The configuration space (§5.1.4), all of it read-only:
//
//	00  mac (6)
//	06  status (2)               1: the link is up
//	08  max_virtqueue_pairs (2)
//	0a  mtu (2)
//
// In front of each frame is a struct virtio_net_hdr (§5.1.6): flags (1), gso_type (1), hdr_len (2), gso_size (2),
// csum_start (2), csum_offset (2), num_buffers (2).
//
// # Data path
//
// Each queue has a goroutine of its own, whose thread reads frames straight into the guest's memory, or writes them from
// there. Where the host has vhost-net, and the back end is one that it takes, its threads do that instead: see vhost.go.
//
// # Deviations
//
//   - The device does not filter, by address or by VLAN: a guest gets what its back end delivers, as with
//     VIRTIO_NET_CTRL_RX_PROMISC. The commands that set filters succeed.
//   - While the link is down ([Device.SetLink]), frames are lost; where vhost-net moves them, they wait in the guest's ring
//     and the TAP's queue.
//   - vhost-net asks for a reset of the device for a malformed chain too, leaves the header's flags as the TAP has them,
//     and num_buffers as the driver has it where no buffers are merged.
//   - The hash reports and steering of VIRTIO_NET_F_RSS are not offered; the back end spreads flows over the queues.
package net

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/virtio"
)

// HeaderSize is the size of the header in front of a frame in bytes.
const HeaderSize = 12

// Port is the way of one pair of queues to the outside. One goroutine receives, another sends.
type Port interface {
	// Receive fills iov with a frame and returns how many bytes of it there are. EAGAIN: there is none. EINVAL: one was
	// lost. Any other error is the link's end.
	Receive(iov []unix.Iovec) (int, error)
	// Send sends a frame. EAGAIN: the same frame has to be sent again when FD is writable. Any other error is the loss of
	// this frame.
	Send(iov []unix.Iovec) error
	// FD becomes readable when a frame may have come.
	FD() int
}

// Backend is what all ports have in common.
type Backend interface {
	// Header tells whether frames have a header in front of them, in both directions, and may have offloads.
	Header() bool
	// Offloads are the TUN_F flags (Linux include/uapi/linux/if_tun.h) that the back end knows, and SetOffloads says which
	// of them the guest takes.
	Offloads() uint
	SetOffloads(flags uint) error
	// SetQueues says how many of the ports, from the first on, are in use.
	SetQueues(n int) error
}

// VhostMode says whether the host's kernel shall move the frames.
type VhostMode int

// The modes of vhost-net.
const (
	VhostAuto VhostMode = iota // where /dev/vhost-net opens
	VhostOn                    // or New fails
	VhostOff
)

// Limits of a [Config], and its defaults.
const (
	MaxPairs         = 64
	DefaultQueueSize = 256
	controlQueueSize = 64
	minMTU           = 68 // §5.1.4.1
	maxMTU           = 65535

	ethernetHeader  = 14
	longestEthernet = ethernetHeader + 4 + maxMTU // with a VLAN's tag
)

// Config is what a network device is made of.
type Config struct {
	Backend Backend
	Ports   []Port // one for each pair of queues
	MAC     net.HardwareAddr
	MTU     int       // told to the guest; zero for nothing
	Vhost   VhostMode // for a back end with a header, whose ports are those of a TAP
}

// Device is a network device. It implements virtio.Device.
type Device struct {
	cfg      Config
	vhost    bool
	features virtio.Features
	notify   func()

	// What ReadConfig needs takes no lock: a vCPU calls it.
	mac  atomic.Uint64 // little-endian
	up   atomic.Bool   // by [Device.SetLink]
	dead atomic.Bool   // the back end is gone: the link is down for good

	mu     sync.Mutex   // guards kernel, and the order of changes of up and active; held while the back end is told
	kernel []*vhostPair // those that the kernel serves
	active atomic.Int32 // pairs in use

	counters counters
}

// New makes a device. It fails for a value of cfg's that no network device can have.
func New(cfg Config) (*Device, error) {
	switch {
	case cfg.Backend == nil || len(cfg.Ports) == 0:
		return nil, errors.New("no back end")
	case len(cfg.Ports) > MaxPairs:
		return nil, fmt.Errorf("%d queues: at most %d", len(cfg.Ports), MaxPairs)
	case len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0:
		return nil, fmt.Errorf("address %v: not a unicast address of 6 bytes", cfg.MAC)
	case cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU):
		return nil, fmt.Errorf("mtu %d: not %d to %d", cfg.MTU, minMTU, maxMTU)
	}
	d := &Device{cfg: cfg, notify: func() {}}
	d.up.Store(true)
	d.setMAC(cfg.MAC)
	if err := d.chooseVhost(); err != nil {
		return nil, err
	}
	d.features = d.offer()
	return d, nil
}

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Net }

// Feature bits (§5.1.3).
const (
	featureCsum              virtio.Features = 1 << 0 // the driver may leave checksums to the device
	featureGuestCsum         virtio.Features = 1 << 1 // and the other way around
	featureCtrlGuestOffloads virtio.Features = 1 << 2
	featureMTU               virtio.Features = 1 << 3
	featureMAC               virtio.Features = 1 << 5
	featureGuestTSO4         virtio.Features = 1 << 7
	featureGuestTSO6         virtio.Features = 1 << 8
	featureGuestECN          virtio.Features = 1 << 9
	featureHostTSO4          virtio.Features = 1 << 11
	featureHostTSO6          virtio.Features = 1 << 12
	featureHostECN           virtio.Features = 1 << 13
	featureMrgRxbuf          virtio.Features = 1 << 15
	featureStatus            virtio.Features = 1 << 16
	featureCtrlVQ            virtio.Features = 1 << 17
	featureCtrlRX            virtio.Features = 1 << 18
	featureCtrlVLAN          virtio.Features = 1 << 19
	featureCtrlRXExtra       virtio.Features = 1 << 20
	featureMQ                virtio.Features = 1 << 22
	featureCtrlMACAddr       virtio.Features = 1 << 23
	featureGuestUSO4         virtio.Features = 1 << 54
	featureGuestUSO6         virtio.Features = 1 << 55
	featureHostUSO           virtio.Features = 1 << 56

	guestOffloads = featureGuestCsum | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureGuestUSO4 | featureGuestUSO6
)

// offer is what this device offers.
func (d *Device) offer() virtio.Features {
	f := featureMAC | featureStatus | featureMrgRxbuf |
		featureCtrlVQ | featureCtrlRX | featureCtrlRXExtra | featureCtrlVLAN | featureCtrlMACAddr
	if d.cfg.MTU != 0 {
		f |= featureMTU
	}
	if len(d.cfg.Ports) > 1 {
		f |= featureMQ
	}
	if !d.cfg.Backend.Header() {
		return f
	}
	if has := d.cfg.Backend.Offloads(); has&unix.TUN_F_CSUM != 0 {
		f |= featureCsum | featureHostTSO4 | featureHostTSO6 | featureHostECN | featureCtrlGuestOffloads
		for _, o := range offloads {
			if has&o.flag != 0 {
				f |= o.feature
			}
		}
		if has&unix.TUN_F_USO4 != 0 {
			f |= featureHostUSO
		}
	}
	return f
}

// offloads are the guest's offloads and what the back end calls them.
var offloads = []struct {
	feature virtio.Features
	flag    uint
}{
	{featureGuestCsum, unix.TUN_F_CSUM},
	{featureGuestTSO4, unix.TUN_F_TSO4},
	{featureGuestTSO6, unix.TUN_F_TSO6},
	{featureGuestECN, unix.TUN_F_TSO_ECN},
	{featureGuestUSO4, unix.TUN_F_USO4},
	{featureGuestUSO6, unix.TUN_F_USO6},
}

// setOffloads tells the back end which offloads the guest takes. All others depend on the checksum's (§5.1.3.1).
func (d *Device) setOffloads(f virtio.Features) error {
	var flags uint
	if f.Has(featureGuestCsum) {
		for _, o := range offloads {
			if f.Has(o.feature) {
				flags |= o.flag
			}
		}
	}
	return d.cfg.Backend.SetOffloads(flags)
}

// Features implements virtio.Device.
func (d *Device) Features() virtio.Features { return d.features }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	var sizes []uint16
	for range d.cfg.Ports {
		sizes = append(sizes, DefaultQueueSize, DefaultQueueSize)
	}
	return append(sizes, controlQueueSize)
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [12]byte
	binary.LittleEndian.PutUint64(c[:], d.mac.Load())
	if d.up.Load() && !d.dead.Load() {
		c[6] = 1
	}
	binary.LittleEndian.PutUint16(c[8:], uint16(len(d.cfg.Ports)))
	binary.LittleEndian.PutUint16(c[10:], uint16(d.cfg.MTU))
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
}

// setMAC is what the guest reads from now on.
func (d *Device) setMAC(mac []byte) {
	var c [8]byte
	copy(c[:6], mac)
	d.mac.Store(binary.LittleEndian.Uint64(c[:]))
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint32, []byte) {}

// OnConfigChange implements virtio.ConfigNotifier.
func (d *Device) OnConfigChange(changed func()) { d.notify = changed }

// SetLink plugs the cable in or out, as the guest sees it. Any goroutine may call it.
func (d *Device) SetLink(up bool) error {
	d.mu.Lock()
	changed := d.up.Swap(up) != up
	err := d.switchKernel()
	d.mu.Unlock()
	if changed {
		d.notify()
	}
	return err
}

// setPairs takes the first n pairs of queues into use, and the others out of it.
func (d *Device) setPairs(n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n < int(d.active.Load()) {
		// Nobody may use a port that its back end has detached.
		d.active.Store(int32(n))
		if err := d.switchKernel(); err != nil {
			return err
		}
		return d.cfg.Backend.SetQueues(n)
	}
	if err := d.cfg.Backend.SetQueues(n); err != nil {
		return err
	}
	d.active.Store(int32(n))
	return d.switchKernel()
}

// switchKernel connects those pairs of the kernel's that are in use, and no others; mu is held.
func (d *Device) switchKernel() error {
	var errs []error
	for i, p := range d.kernel {
		errs = append(errs, p.set(d.up.Load() && i < int(d.active.Load())))
	}
	return errors.Join(errs...)
}

// lose takes note that the back end is gone.
func (d *Device) lose() {
	if !d.dead.Swap(true) {
		d.counters.lost.Add(1)
		d.notify()
	}
}

// Vhost tells whether the host's kernel moves the frames.
func (d *Device) Vhost() bool { return d.vhost }

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	if err := d.serve(ctx, a); err != nil {
		return fmt.Errorf("net: %w", err)
	}
	return nil
}

func (d *Device) serve(ctx context.Context, a virtio.Activation) error {
	pairs := 1
	if a.Features.Has(featureMQ) {
		pairs = len(d.cfg.Ports)
	}
	if d.setOffloads(a.Features) != nil {
		d.lose() // a link without another end is no fault of the driver's
	}
	defer d.setMAC(d.cfg.MAC) // the driver's is gone with it
	var broken *eventfd.EventFD
	if d.vhost {
		var err error
		if broken, err = eventfd.New(); err != nil {
			return err
		}
		defer broken.Close()
		stop, err := d.startVhost(a, pairs, broken)
		if err != nil {
			return err
		}
		defer stop()
	}
	if d.setPairs(1) != nil {
		d.lose()
	}

	g := virtio.NewGroup(ctx)
	if d.vhost {
		g.Go(func(context.Context) error {
			_ = broken.Wait()
			return errBroken // which changes nothing if it is the end that has signalled
		})
	} else {
		for i := range pairs {
			r := &receiver{
				d: d, port: d.cfg.Ports[i], pair: i,
				merge: a.Features.Has(featureMrgRxbuf), longest: d.longestFrame(a.Features),
				plain: !d.cfg.Backend.Header() || !a.Features.Has(featureGuestCsum),
			}
			g.Serve(a.Queues[2*i], r.serve)
			g.Serve(a.Queues[2*i+1], (&transmitter{d: d, port: d.cfg.Ports[i]}).serve)
		}
	}
	g.Serve(a.Queues[2*pairs], (&control{d: d, features: a.Features, queues: a.Queues[:2*pairs]}).serve)
	<-g.Done()
	if broken != nil {
		broken.Signal()
	}
	return g.Wait()
}

// errBroken is what vhost's error file says.
var errBroken = errors.New("vhost: the driver has broken a ring")

// longestFrame is the most that the back end may deliver at once, header included.
func (d *Device) longestFrame(f virtio.Features) int {
	if d.cfg.MTU != 0 && f&(guestOffloads&^featureGuestCsum) == 0 {
		return HeaderSize + longestEthernet - maxMTU + d.cfg.MTU
	}
	return HeaderSize + longestEthernet // also a segment that is still to be cut
}

// counters are what [Device.Stats] returns.
type counters struct {
	received, sent, tooLong, unusable, refused, malformed, lost atomic.Uint64
}

// Stats counts a device's frames since it was made; those that vhost-net moves are not seen here.
type Stats struct {
	Received  uint64
	Sent      uint64
	TooLong   uint64 // received, and more than the guest's buffers hold
	Unusable  uint64 // received, and no frame: too short, or with offloads that no header can tell
	Refused   uint64 // sent, and not taken by the back end
	Malformed uint64 // requests that have no frame in them, or no room for a header
	Lost      uint64 // 1 if the back end is gone
}

// Stats returns the counts. Any goroutine may call it.
func (d *Device) Stats() Stats {
	c := &d.counters
	return Stats{
		Received: c.received.Load(), Sent: c.sent.Load(), TooLong: c.tooLong.Load(), Unusable: c.unusable.Load(),
		Refused: c.refused.Load(), Malformed: c.malformed.Load(), Lost: c.lost.Load(),
	}
}
