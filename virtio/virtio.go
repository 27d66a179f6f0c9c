// Package virtio is the contract between a virtio device and the transport that carries it (Virtual I/O Device 1.2, the
// "specification" below). A device knows its queues, its features and its configuration; it never sees a transport's
// register, an interrupt line or a vector. A transport ([vmm/virtio/pci]) knows all of these and nothing of what the
// device is for.
//
// The devices are in the packages beside this one; [vmm/virtio/virtqueue] is the queue that they share, and
// [vmm/virtio/virtiotest] a driver in Go that plays the guest.
package virtio

import (
	"context"
	"fmt"

	"vmm/memory"
	"vmm/virtio/virtqueue"
)

// DeviceID is the kind of a device (§5).
type DeviceID uint16

// The kinds that there are here.
const (
	Net     DeviceID = 1
	Block   DeviceID = 2
	Console DeviceID = 3
	Entropy DeviceID = 4
	Balloon DeviceID = 5
	Vsock   DeviceID = 19
)

func (id DeviceID) String() string {
	switch id {
	case Net:
		return "net"
	case Block:
		return "blk"
	case Console:
		return "console"
	case Entropy:
		return "rng"
	case Balloon:
		return "balloon"
	case Vsock:
		return "vsock"
	}
	return fmt.Sprintf("device %d", uint16(id))
}

// Features is a set of feature bits (§2.2). Bits 0 to 23 and 50 to 127 belong to the kind of device; there is none
// beyond 63 so far.
type Features uint64

// The features that are not of one kind of device (§6). The transport offers those of the ring and version 1 by itself;
// a device that needs to know finds them in [Activation.Features].
const (
	IndirectDesc Features = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	EventIdx     Features = 1 << 29 // VIRTIO_F_EVENT_IDX
	Version1     Features = 1 << 32 // VIRTIO_F_VERSION_1
)

// Has tells whether all bits of g are in f.
func (f Features) Has(g Features) bool { return f&g == g }

// Device is a virtio device, as its transport sees it.
//
// The transport calls Serve once for each time that a driver takes the device into use, never twice at a time. The
// other methods may be called at any time, by any vCPU, during Serve too, and must not block.
type Device interface {
	ID() DeviceID
	// Features is what the device offers, always the same: the bits of its kind. The transport adds its own.
	Features() Features
	// QueueSizes has the greatest size of each queue, a power of two. Always the same.
	QueueSizes() []uint16

	// ReadConfig fills p from the device's configuration space (§2.5) at off. What is beyond its end reads as zero. The
	// guest chooses off and len(p).
	ReadConfig(off uint32, p []byte)
	// WriteConfig stores p there. What cannot be written vanishes.
	WriteConfig(off uint32, p []byte)

	// Serve owns the queues from DRIVER_OK until it returns: nil after ctx ends, with its goroutines joined and no
	// request in flight that could still touch guest memory. It returns soon after ctx ends: a guest waits for it in
	// its reset of the device. An error makes the transport set DEVICE_NEEDS_RESET; a broken ring is one, a bad
	// request is not.
	//
	// Afterwards the device is as new, but for what belongs to its back end: a new driver may be served.
	Serve(ctx context.Context, a Activation) error
}

// Activation is what a driver and a transport have agreed on.
type Activation struct {
	Features Features           // negotiated; always a subset of those offered
	Queues   []*virtqueue.Queue // by index, as many as QueueSizes; nil where the driver has enabled none
	Memory   *memory.Memory     // the guest's
}

// ConfigNotifier is implemented by a [Device] whose configuration space changes by itself: a disk that grows, a link
// that goes down.
type ConfigNotifier interface {
	// OnConfigChange gives the device what it has to call after each such change, at any time, from any goroutine, and
	// with no lock held that ReadConfig takes. The transport calls OnConfigChange once, before the guest runs.
	OnConfigChange(changed func())
}
