package pci

import (
	"encoding/binary"

	devpci "vmm/devices/pci"
	"vmm/virtio"
)

// The identity of the functions (§4.1.2). A revision of 1 is a modern device's.
const (
	vendorID        = 0x1af4
	deviceIDBase    = 0x1040
	revision        = 1
	subsystemID     = 0x1100 // any; this is what Linux's and Windows' drivers are used to
	capMSIX         = 0x11
	capVendor       = 0x09
	headerOfVirtCap = 14 // bytes of struct virtio_pci_cap after the ID and the next pointer
)

// class is the PCI class code of a kind of device: what lspci calls it, and what some systems choose a driver by.
func class(id virtio.DeviceID) uint32 {
	switch id {
	case virtio.Net:
		return 0x020000 // Ethernet controller
	case virtio.Block:
		return 0x018000 // mass storage controller
	case virtio.Console:
		return 0x078000 // communication controller
	case virtio.Vsock:
		return 0x028000 // network controller
	}
	return 0xff0000 // unclassified
}

// Kinds of the capability (§4.1.4).
const (
	cfgCommon = 1
	cfgNotify = 2
	cfgISR    = 3
	cfgDevice = 4
	cfgPCI    = 5
)

// Fields of struct virtio_pci_cap in a capability's body, which begins after the ID and the next pointer.
const (
	fieldBAR    = 2
	fieldOffset = 6
	fieldLength = 10
	fieldData   = 14 // of the PCI access capability
	endOfData   = 18
)

// buildFunction makes the PCI function.
func (t *Transport) buildFunction() error {
	id := t.cfg.Device.ID()
	f, err := devpci.NewFunction(devpci.FunctionConfig{
		VendorID:          vendorID,
		DeviceID:          deviceIDBase + uint16(id),
		Class:             class(id),
		Revision:          revision,
		SubsystemVendorID: vendorID,
		SubsystemID:       subsystemID,
		InterruptPin:      1,
		InterruptLine:     t.cfg.Line,
		OnCommand:         t.onCommand,
	})
	if err != nil {
		return err
	}
	err = f.AddBAR(devpci.BAR{
		Index:   barIndex,
		Kind:    devpci.Mem64,
		Size:    barSize,
		Device:  bar{t},
		OnMap:   t.bindDoorbells,
		OnUnmap: t.onUnmap,
	})
	if err != nil {
		return err
	}
	for _, c := range []devpci.Capability{
		structure(cfgCommon, commonStart, commonSize),
		structure(cfgISR, isrStart, 1),
		structure(cfgDevice, configStart, configSize),
		structure(cfgNotify, notifyStart, uint32(notifyEach*len(t.sizes)), notifyEach, 0, 0, 0),
		t.pciAccess(),
		t.msixCapability(),
	} {
		if _, err := f.AddCapability(c); err != nil {
			return err
		}
	}
	t.function, t.intx.function = f, f
	return f.AddFunctionReset(t.onFunctionReset, t.pending)
}

// structure is the capability that tells where a part of the BAR is; more follows its header.
func structure(kind uint8, offset, length uint32, more ...byte) devpci.Capability {
	body := make([]byte, headerOfVirtCap, headerOfVirtCap+len(more))
	body[0] = uint8(2 + cap(body)) // cap_len
	body[1] = kind
	body[fieldBAR] = barIndex
	binary.LittleEndian.PutUint32(body[fieldOffset:], offset)
	binary.LittleEndian.PutUint32(body[fieldLength:], length)
	return devpci.Capability{ID: capVendor, Body: append(body, more...)}
}

// pciAccess is the window through which firmware reaches the BAR without having mapped it (§4.1.4.9).
func (t *Transport) pciAccess() devpci.Capability {
	c := structure(cfgPCI, 0, 0, 0, 0, 0, 0)
	c.Writable = make([]byte, len(c.Body))
	c.Writable[fieldBAR] = 0xff
	for i := fieldOffset; i < endOfData; i++ {
		c.Writable[i] = 0xff
	}
	c.OnRead = func(body []byte, off, n int) {
		if off+n > fieldData {
			if at, p, ok := accessed(body); ok {
				bar{t}.Read(at, p)
			}
		}
	}
	c.OnWrite = func(body []byte, off, n int) {
		if off+n > fieldData {
			if at, p, ok := accessed(body); ok {
				bar{t}.Write(at, p)
			}
		}
	}
	return c
}

// accessed returns which bytes of the BAR the PCI access capability's fields name, and the window's bytes for them.
func accessed(body []byte) (off uint64, p []byte, ok bool) {
	at := binary.LittleEndian.Uint32(body[fieldOffset:])
	n := binary.LittleEndian.Uint32(body[fieldLength:])
	if body[fieldBAR] != barIndex || n != 1 && n != 2 && n != 4 || at%n != 0 || at >= barSize {
		return 0, nil, false
	}
	return uint64(at), body[fieldData:][:n], true
}

// msixCapability is the MSI-X capability (PCI Local Bus 3.0 §6.8.2): message control, then where the table and the pending
// bits are.
func (t *Transport) msixCapability() devpci.Capability {
	body := make([]byte, 10)
	binary.LittleEndian.PutUint16(body[0:], uint16(len(t.vectors)-1))
	binary.LittleEndian.PutUint32(body[2:], tableStart|barIndex)
	binary.LittleEndian.PutUint32(body[6:], pbaStart|barIndex)
	return devpci.Capability{
		ID: capMSIX, Body: body,
		Writable: []byte{0, (msixEnable | msixFunctionMask) >> 8},
		OnWrite: func(body []byte, _, _ int) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.setMSIX(binary.LittleEndian.Uint16(body))
		},
	}
}

func (t *Transport) onUnmap(uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unbindDoorbells()
}
