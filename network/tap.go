// Package network connects guests to the host's network: by a TAP interface, or by a stream of frames to another process.
// It moves Ethernet frames and knows nothing of the devices that they are for.
package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HeaderSize is the size of what is in front of each frame of a [TAP]: a struct virtio_net_hdr_mrg_rxbuf, little-endian.
const HeaderSize = 12

// MaxQueues is the most queues that a TAP has (MAX_TAP_QUEUES in Linux drivers/net/tun.c).
const MaxQueues = 256

// TAPConfig names a TAP interface.
type TAPConfig struct {
	// Name is the interface's. One that exists is attached to and left as it is; one that doesn't is made, set up, and
	// vanishes with [TAP.Close] or the process. Empty for a new one whose name the kernel chooses: vmtap0, vmtap1, ...
	Name string
	// Queues is how many queues there are, for as many threads: up to MaxQueues; zero is one.
	Queues int
}

// TAP is an attached TAP interface.
type TAP struct {
	name  string
	mtu   int
	ports []*TAPPort
	has   uint // TUN_F flags that the kernel knows
}

// TAPPort is one queue of a TAP.
type TAPPort struct {
	fd       int
	detached bool
}

// clonePath is the device that TAP interfaces are made by.
const clonePath = "/dev/net/tun"

// OpenTAP attaches to the interface that cfg names. The error says what right or module is missing.
func OpenTAP(cfg TAPConfig) (_ *TAP, err error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.Queues < 0 || cfg.Queues > MaxQueues {
		return nil, fmt.Errorf("%d queues: not 1 to %d", cfg.Queues, MaxQueues)
	}
	if len(cfg.Name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("interface name %q: at most %d bytes", cfg.Name, unix.IFNAMSIZ-1)
	}
	exists := false
	if cfg.Name != "" {
		_, err := net.InterfaceByName(cfg.Name)
		exists = err == nil
	}
	t := &TAP{name: cfg.Name}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	for range cfg.Queues {
		p, err := t.attach(cfg.Queues > 1, exists)
		if err != nil {
			return nil, err
		}
		t.ports = append(t.ports, p)
	}
	return t, t.setUp(exists)
}

// attach opens one queue. The first one finds out the name that the kernel has chosen.
func (t *TAP) attach(multi, exists bool) (_ *TAPPort, err error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("open %s: %w (the kernel's module is missing: modprobe tun)", clonePath, err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("open %s: %w (needs the right to read and write it: chmod 666 %s, as most distributions have it)", clonePath, err, clonePath)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	name := t.name
	if name == "" {
		name = "vmtap%d"
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("interface name %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	if errors.Is(err, unix.EINVAL) && exists && !multi { // an interface of several queues may have just one user
		request.SetUint16(flags | unix.IFF_MULTI_QUEUE)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, t.explain(err, multi, exists)
	}
	t.name = request.Name()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderSize); err != nil {
		return nil, fmt.Errorf("%s: header of %d bytes: %w", t.name, HeaderSize, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return nil, fmt.Errorf("%s: little-endian header: %w", t.name, err)
	}
	return &TAPPort{fd: fd}, nil
}

// explain says what a user can do about an error of TUNSETIFF.
func (t *TAP) explain(err error, multi, exists bool) error {
	name := t.name
	if name == "" {
		name = "a new interface"
	}
	switch {
	case errors.Is(err, unix.EPERM) && exists:
		return fmt.Errorf("attach to %s: %w (it belongs to another user, or needs CAP_NET_ADMIN: ip tuntap add dev %s mode tap user %d)",
			name, err, name, os.Getuid())
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make %s: %w (needs CAP_NET_ADMIN; or have root make one for you: ip tuntap add dev vmtap0 mode tap user %d, and name it)",
			name, err, os.Getuid())
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("attach to %s: %w (another process has it)", name, err)
	case errors.Is(err, unix.EINVAL) && exists && multi:
		return fmt.Errorf("attach to %s: %w (it has one queue only, or is no TAP: ip tuntap add dev %s mode tap multi_queue)", name, err, name)
	case errors.Is(err, unix.EINVAL) && exists:
		return fmt.Errorf("attach to %s: %w (it is no TAP interface)", name, err)
	}
	return fmt.Errorf("attach to %s: %w", name, err)
}

// setUp finds out what the interface is, and sets it up if it is new.
func (t *TAP) setUp(exists bool) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(s) }()
	request, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFMTU, request); err != nil {
		return fmt.Errorf("mtu of %s: %w", t.name, err)
	}
	t.mtu = int(request.Uint32())
	if !exists {
		if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, request); err != nil {
			return fmt.Errorf("flags of %s: %w", t.name, err)
		}
		request.SetUint16(request.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request); err != nil {
			return fmt.Errorf("set %s up: %w", t.name, err)
		}
	}
	const base = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2
	for _, flags := range []uint{base | uso, base, 0} {
		if t.SetOffloads(flags) == nil {
			t.has = flags
			break
		}
	}
	return t.SetOffloads(0)
}

// Name is the interface's.
func (t *TAP) Name() string { return t.name }

// MTU is what the interface's was when it was attached to.
func (t *TAP) MTU() int { return t.mtu }

// Ports are the queues.
func (t *TAP) Ports() []*TAPPort { return t.ports }

// Header tells that each frame has a header in front.
func (t *TAP) Header() bool { return true }

// Offloads are the TUN_F flags (Linux include/uapi/linux/if_tun.h) that [TAP.SetOffloads] takes.
func (t *TAP) Offloads() uint { return t.has }

// SetOffloads says what the guest can take: frames that lack their checksum, or that are longer than the MTU and are to be
// cut.
func (t *TAP) SetOffloads(flags uint) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.ports[0].fd), unix.TUNSETOFFLOAD, uintptr(flags))
	if errno != 0 {
		return fmt.Errorf("offloads %#x of %s: %w", flags, t.name, errno)
	}
	return nil
}

// SetQueues makes the kernel use the first n queues.
func (t *TAP) SetQueues(n int) error {
	if len(t.ports) == 1 {
		return nil
	}
	for i, p := range t.ports {
		detached := i >= n
		if detached == p.detached {
			continue
		}
		flags := uint16(unix.IFF_ATTACH_QUEUE)
		if detached {
			flags = unix.IFF_DETACH_QUEUE
		}
		request, err := unix.NewIfreq(t.name)
		if err != nil {
			return err
		}
		request.SetUint16(flags)
		if err := unix.IoctlIfreq(p.fd, unix.TUNSETQUEUE, request); err != nil {
			return fmt.Errorf("queue %d of %s, flags %#x: %w", i, t.name, flags, err)
		}
		p.detached = detached
	}
	return nil
}

// Close detaches from the interface. One that was made by [OpenTAP] is gone then.
func (t *TAP) Close() error {
	var errs []error
	for _, p := range t.ports {
		errs = append(errs, unix.Close(p.fd))
	}
	t.ports = nil
	return errors.Join(errs...)
}

// FD is the queue's descriptor: readable when there is a frame. It is in non-blocking mode.
func (p *TAPPort) FD() int { return p.fd }

// Receive reads one frame, with its header, into iov and returns how many bytes are there. EAGAIN says that there is none,
// EINVAL that there was one whose offloads no header can tell: it is lost. So is what does not fit, and the length does not
// tell: a caller who has to know gives a byte more than it wants. Any other error is the interface's end.
func (p *TAPPort) Receive(iov []unix.Iovec) (int, error) { return p.transfer(unix.SYS_READV, iov) }

// Send writes one frame, with its header. The kernel checks the header. EAGAIN says that there is no room.
func (p *TAPPort) Send(iov []unix.Iovec) error {
	_, err := p.transfer(unix.SYS_WRITEV, iov)
	return err
}

// transfer is readv(2) or writev(2), which unix.Readv and its like wrap in slices of their own.
func (p *TAPPort) transfer(call uintptr, iov []unix.Iovec) (int, error) {
	for {
		n, _, errno := unix.Syscall(call, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
