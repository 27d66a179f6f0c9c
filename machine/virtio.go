package machine

import (
	"fmt"
	"sync"

	"vmm/devices"
	"vmm/devices/pci"
	virtiopci "vmm/virtio/pci"
)

// Virtio devices have the PCI devices from 1 on; when all are taken, they become further functions of them.
const (
	pciDevices     = 32
	pciFunctions   = 8
	maxVirtio      = (pciDevices - 1) * pciFunctions
	firstPCIDevice = 1
)

// virtioPlace is where virtio device i is on the bus.
func virtioPlace(i int) pci.BDF {
	return pci.NewBDF(0, uint8(firstPCIDevice+i%(pciDevices-firstPCIDevice)), uint8(i/(pciDevices-firstPCIDevice)))
}

// addVirtio puts the virtio devices on the bus.
func (b *board) addVirtio(root *pci.Root) error {
	host, err := newVirtioHost(b.vm, b.router)
	if err != nil {
		return err
	}
	var pins [len(gsiINTx)]*sharedLine
	for i, gsi := range gsiINTx {
		pins[i] = &sharedLine{line: b.lead(&gsiLine{gsi: uint32(gsi)})}
	}
	for i, dev := range b.m.cfg.Virtio {
		at := virtioPlace(i)
		pin := int(at.Device()) % len(pins) // INTA# of each device, as the ACPI table routes it
		t, err := virtiopci.New(virtiopci.Config{
			Device: dev,
			Memory: b.m.mem,
			Host:   host,
			INTx:   pins[pin].input(),
			Line:   gsiINTx[pin],
		})
		if err != nil {
			return &ConfigError{Field: "Virtio", Err: fmt.Errorf("device %d: %w", i, err)}
		}
		b.transports = append(b.transports, t)
		if err := root.Add(at, t.Function()); err != nil {
			return err
		}
	}
	return root.AssignBARs()
}

// sharedLine is a level-triggered interrupt line that several devices pull: it is high while any of them is.
type sharedLine struct {
	line devices.IRQLine
	mu   sync.Mutex // guards high; held while line is driven; taken before the line's own
	high int        // devices that pull
}

// input returns one device's connection.
func (s *sharedLine) input() devices.IRQLine { return &sharedInput{shared: s} }

type sharedInput struct {
	shared *sharedLine
	high   bool // guarded by shared.mu
}

// SetLevel implements devices.IRQLine.
func (i *sharedInput) SetLevel(high bool) error {
	s := i.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if high == i.high {
		return nil
	}
	i.high = high
	if high {
		s.high++
		if s.high > 1 {
			return nil
		}
	} else {
		s.high--
		if s.high > 0 {
			return nil
		}
	}
	return s.line.SetLevel(high)
}
