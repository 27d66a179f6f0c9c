// Package pci is the PCI transport of virtio devices (Virtual I/O Device 1.2 §4.1): a PCI function whose registers carry
// one [virtio.Device]. Modern only: there is no legacy interface.
//
// One 64-bit memory BAR of 32 KiB, BAR 0, has it all:
//
//	0000  common configuration (§4.1.4.3)
//	      00  device_feature_select  W   20  device_feature             (a word of what is offered)
//	      08  driver_feature_select  W   0c  driver_feature          W  (until FEATURES_OK)
//	      10  config_msix_vector     W   12  num_queues
//	      14  device_status          W   15  config_generation
//	      16  queue_select           W   18  queue_size              W  (until the queue is enabled, as all that follows)
//	      1a  queue_msix_vector      W   1c  queue_enable            W
//	      1e  queue_notify_off           20  queue_desc              W
//	      28  queue_driver           W   30  queue_device            W
//	1000  ISR status, cleared by a read (§4.1.4.5)
//	2000  the device's own configuration (§4.1.4.6)
//	3000  notification: queue n's address is n words up (§4.1.4.4); any write kicks it
//	4000  MSI-X table
//	5000  MSI-X pending bits
//
// The capabilities are those five of §4.1.4, MSI-X, and Advanced Features for the function level reset.
//
// # Data path
//
// A kick is a write to the queue's notification address: the host's kernel signals the queue's eventfd ([Host.BindDoorbell])
// and the vCPU runs on. An interrupt is a signal of the vector's eventfd, which the host's kernel turns into the message
// that the guest has put into the MSI-X table ([Vector.Connect]). There is one vector for each queue, and one for changes
// of the configuration; the guest may map them as it likes. While a vector is masked its eventfd is not connected, and
// keeps the signal: that is its pending bit, and connecting it delivers the interrupt.
//
// # Reset
//
// Writing 0 to device_status, a function level reset, and clearing the function's bus master bit end the device's Serve.
// None waits: a device with I/O in flight needs a moment, and device_status reads as before until it is done, as §4.1.4.3.2
// wants it. Without the bus master bit a function must not touch memory: a kernel that another one has started by
// kexec relies on it. The device is stopped, and needs a reset to go on.
//
// # Deviations
//
//   - Registers are accessed at their natural width, as §4.1.3.1 obliges the driver to; the halves of 64-bit registers
//     too. Other writes vanish.
//   - queue_notify_data and queue_reset do not exist: the features that they need are not offered.
//   - A queue that is enabled after DRIVER_OK stays out of use until the next reset.
package pci

import (
	"vmm/devices"
	"vmm/internal/eventfd"
	"vmm/memory"
	"vmm/virtio"
)

// Host is what a transport needs of the machine that it is in. Its methods may be called from any goroutine.
type Host interface {
	// BindDoorbell makes each write of the guest's at addr, of any width, signal e instead of reaching the transport. An
	// error is no harm: the write then comes as an access of the BAR.
	BindDoorbell(addr uint64, e *eventfd.EventFD) error
	// UnbindDoorbell takes that back.
	UnbindDoorbell(addr uint64, e *eventfd.EventFD)
	// NewVector makes e the source of a message-signalled interrupt, which is not connected yet.
	NewVector(e *eventfd.EventFD) (Vector, error)
}

// Vector is a message-signalled interrupt whose source is an eventfd. The transport calls one method at a time.
type Vector interface {
	// Connect makes each signal of the eventfd write data to addr, one that is pending too.
	Connect(addr uint64, data uint32) error
	// Disconnect lets signals stay in the eventfd.
	Disconnect()
}

// Config is what a transport is made of.
type Config struct {
	Device virtio.Device
	Memory *memory.Memory // the guest's
	Host   Host

	// INTx is the function's pin INTA#, for guests that don't use MSI-X, and Line the number that firmware would write
	// into the interrupt line register.
	INTx devices.IRQLine
	Line uint8
}

// The parts of the BAR.
const (
	barIndex = 0
	barSize  = 0x8000

	commonStart = 0x0000
	commonSize  = 0x38
	isrStart    = 0x1000
	configStart = 0x2000
	configSize  = 0x1000
	notifyStart = 0x3000
	notifyEach  = 4 // notify_off_multiplier
	tableStart  = 0x4000
	pbaStart    = 0x5000
	partSize    = 0x1000

	vectorSize = 16 // bytes of a vector in the MSI-X table
	maxVectors = partSize / vectorSize
)

// Registers of the common configuration.
const (
	regDeviceFeatureSelect = 0x00
	regDeviceFeature       = 0x04
	regDriverFeatureSelect = 0x08
	regDriverFeature       = 0x0c
	regConfigVector        = 0x10
	regNumQueues           = 0x12
	regStatus              = 0x14
	regGeneration          = 0x15
	regQueueSelect         = 0x16
	regQueueSize           = 0x18
	regQueueVector         = 0x1a
	regQueueEnable         = 0x1c
	regQueueNotifyOff      = 0x1e
	regQueueDesc           = 0x20
	regQueueDriver         = 0x28
	regQueueDevice         = 0x30
)

// Bits of device_status (§2.1). ACKNOWLEDGE (1), DRIVER (2) and FAILED (128) mean nothing to a device.
const (
	statusDriverOK   = 4
	statusFeaturesOK = 8
	statusNeedsReset = 64
)

// Bits of the ISR status.
const (
	isrQueue  = 1
	isrConfig = 2
)

// noVector is VIRTIO_MSI_NO_VECTOR: no interrupt for this event.
const noVector = 0xffff
