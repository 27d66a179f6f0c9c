package net

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// vhostPath is the device whose files are vhost-net instances: a thread in the kernel that moves frames between one pair of
// queues and a TAP's.
const vhostPath = "/dev/vhost-net"

// The requests (Linux include/uapi/linux/vhost.h), with the size of the argument in bits 29:16.
const (
	vhostGetFeatures   = 2<<30 | 8<<16 | 0xaf<<8 // number 0x00
	vhostSetFeatures   = 1<<30 | 8<<16 | 0xaf<<8 // number 0x00
	vhostSetOwner      = 0xaf<<8 | 0x01
	vhostSetMemTable   = 1<<30 | 8<<16 | 0xaf<<8 | 0x03
	vhostSetVringNum   = 1<<30 | 8<<16 | 0xaf<<8 | 0x10
	vhostSetVringAddr  = 1<<30 | 40<<16 | 0xaf<<8 | 0x11
	vhostSetVringBase  = 1<<30 | 8<<16 | 0xaf<<8 | 0x12
	vhostSetVringKick  = 1<<30 | 8<<16 | 0xaf<<8 | 0x20
	vhostSetVringCall  = 1<<30 | 8<<16 | 0xaf<<8 | 0x21
	vhostSetVringErr   = 1<<30 | 8<<16 | 0xaf<<8 | 0x22
	vhostNetSetBackend = 1<<30 | 8<<16 | 0xaf<<8 | 0x30
)

// vhostFeatures are those of the ring and of frames that vhost-net has to know of. The header comes from the TAP.
const vhostFeatures = virtio.IndirectDesc | virtio.EventIdx | virtio.Version1 | featureMrgRxbuf

type vringState struct{ index, num uint32 } // vhost_vring_state

type vringFile struct { // vhost_vring_file
	index uint32
	fd    int32
}

type vringAddr struct { // vhost_vring_addr
	index, flags           uint32
	desc, used, avail, log uint64
}

type vhostRegion struct{ guest, size, host, _ uint64 } // vhost_memory_region

// chooseVhost decides whether the kernel moves the frames.
func (d *Device) chooseVhost() error {
	if d.cfg.Vhost == VhostOff || d.cfg.Vhost == VhostAuto && !d.cfg.Backend.Header() {
		return nil
	}
	if !d.cfg.Backend.Header() {
		return errors.New("vhost is for TAP interfaces only")
	}
	fd, err := openVhost()
	if err != nil {
		if d.cfg.Vhost == VhostAuto {
			return nil
		}
		return err
	}
	d.vhost = true
	return unix.Close(fd)
}

func openVhost() (int, error) {
	fd, err := unix.Open(vhostPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("open %s: %w (the kernel's module is missing: modprobe vhost_net)", vhostPath, err)
	case errors.Is(err, fs.ErrPermission):
		return -1, fmt.Errorf("open %s: %w (needs the right to read and write it, which group kvm has in most distributions)", vhostPath, err)
	case err != nil:
		return -1, fmt.Errorf("open %s: %w", vhostPath, err)
	}
	var has virtio.Features
	err = vhostCall(fd, vhostGetFeatures, unsafe.Pointer(&has))
	if err == nil && !has.Has(vhostFeatures) {
		err = fmt.Errorf("%s has features %#x, of %#x: %w", vhostPath, uint64(has), uint64(vhostFeatures), errors.ErrUnsupported)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func vhostCall(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("vhost request %#x: %w", request&0xff, errno)
		}
	}
}

// vhostPair is one pair of queues in the kernel's hands.
type vhostPair struct {
	fd, tap int
	rings   []uint32 // those that the driver has enabled: 0 receives, 1 sends
	on      bool
}

// startVhost hands the first pairs of queues to the kernel. What it returns takes them back: no frame moves afterwards.
// Broken is signalled when the kernel finds a ring that makes no sense.
func (d *Device) startVhost(a virtio.Activation, pairs int, broken *eventfd.EventFD) (stop func(), err error) {
	var started []*vhostPair
	stop = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.kernel = nil
		for _, p := range started {
			_ = p.set(false)
			_ = unix.Close(p.fd) // waits for the kernel's thread
		}
	}
	for i := range pairs {
		p, err := newVhostPair(a, a.Queues[2*i:2*i+2], broken)
		if err != nil {
			stop()
			return nil, err
		}
		p.tap = d.cfg.Ports[i].FD()
		started = append(started, p)
	}
	d.mu.Lock()
	d.kernel = started
	d.mu.Unlock()
	return stop, nil
}

// newVhostPair tells the kernel all about a pair of queues; it does not start yet.
func newVhostPair(a virtio.Activation, queues []*virtqueue.Queue, broken *eventfd.EventFD) (_ *vhostPair, err error) {
	fd, err := openVhost()
	if err != nil {
		return nil, err
	}
	p := &vhostPair{fd: fd}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	if err := vhostCall(fd, vhostSetOwner, nil); err != nil {
		return nil, err
	}
	features := a.Features & vhostFeatures
	if err := vhostCall(fd, vhostSetFeatures, unsafe.Pointer(&features)); err != nil {
		return nil, err
	}
	if err := setMemTable(fd, a.Memory); err != nil {
		return nil, err
	}
	for i, q := range queues {
		if q == nil {
			continue
		}
		if err := p.setRing(uint32(i), q.Config(), broken); err != nil {
			return nil, fmt.Errorf("ring %d: %w", i, err)
		}
		p.rings = append(p.rings, uint32(i))
	}
	return p, nil
}

func setMemTable(fd int, mem *memory.Memory) error {
	regions := mem.Regions()
	table := make([]vhostRegion, 0, len(regions)+1)
	table = append(table, vhostRegion{}) // the head of struct vhost_memory is 8 bytes, and goes at the end of this
	for _, r := range regions {
		table = append(table, vhostRegion{guest: uint64(r.Start), size: uint64(len(r.Bytes)), host: address(r.Bytes)})
	}
	head := unsafe.Add(unsafe.Pointer(&table[1]), -8)
	*(*uint32)(head) = uint32(len(regions))
	return vhostCall(fd, vhostSetMemTable, head)
}

func address(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

func (p *vhostPair) setRing(i uint32, c virtqueue.Config, broken *eventfd.EventFD) error {
	addr := vringAddr{index: i}
	for _, part := range []struct {
		to *uint64
		at memory.GPA
	}{{&addr.desc, c.Desc}, {&addr.used, c.Used}, {&addr.avail, c.Avail}} {
		b, err := c.Memory.Slice(part.at, 1)
		if err != nil {
			return err
		}
		*part.to = address(b)
	}
	num, base := vringState{i, uint32(c.Size)}, vringState{i, 0}
	kick, call, fault := vringFile{i, int32(c.Kick.FD())}, vringFile{i, int32(c.Interrupt.FD())}, vringFile{i, int32(broken.FD())}
	for _, r := range []struct {
		request uintptr
		arg     unsafe.Pointer
	}{
		{vhostSetVringNum, unsafe.Pointer(&num)},
		{vhostSetVringBase, unsafe.Pointer(&base)},
		{vhostSetVringAddr, unsafe.Pointer(&addr)},
		{vhostSetVringCall, unsafe.Pointer(&call)},
		{vhostSetVringErr, unsafe.Pointer(&fault)},
		{vhostSetVringKick, unsafe.Pointer(&kick)},
	} {
		if err := vhostCall(p.fd, r.request, r.arg); err != nil {
			return err
		}
	}
	return nil
}

// set connects the pair with its TAP, or cuts it off; then no frame moves any more.
func (p *vhostPair) set(on bool) error {
	if on == p.on {
		return nil
	}
	p.on = on
	fd := int32(-1)
	if on {
		fd = int32(p.tap)
	}
	var errs []error
	for _, i := range p.rings {
		f := vringFile{i, fd}
		errs = append(errs, vhostCall(p.fd, vhostNetSetBackend, unsafe.Pointer(&f)))
	}
	return errors.Join(errs...)
}
