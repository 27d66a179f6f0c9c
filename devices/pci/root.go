package pci

import (
	"errors"
	"fmt"
	"sync"

	"vmm/devices"
)

// Window is a range of addresses in which BARs may be placed.
type Window struct {
	Start, Size uint64
}

// contains tells whether [addr, addr+size) is inside w.
func (w Window) contains(addr, size uint64) bool {
	return addr >= w.Start && addr-w.Start < w.Size && size <= w.Size-(addr-w.Start)
}

// Config is what a root bus is attached to.
type Config struct {
	// PIO and MMIO are the buses that BARs appear on.
	PIO, MMIO *devices.Bus
	// PIOWindows and MMIOWindows are where BARs can be reached: what the host bridge's _CRS tells the guest. They must
	// leave out RAM and every address that KVM serves itself, such as the local APIC's and the IOAPIC's, which the
	// buses don't know. A BAR must fit into one window.
	PIOWindows, MMIOWindows []Window
}

// Root is a root bus. It is safe for use by all vCPUs.
type Root struct {
	pio, mmio               *devices.Bus
	pioWindows, mmioWindows []Window

	mu        sync.Mutex     // guards all below, and the state of the functions; taken before a bus's own lock
	functions [256]*Function // by device and function number
	address   uint32         // CONFIG_ADDRESS
}

// NewRoot returns a root bus with its host bridge at 00:00.0 and nothing else.
func NewRoot(cfg Config) (*Root, error) {
	if cfg.PIO == nil || cfg.MMIO == nil {
		return nil, errors.New("pci root: a bus is missing")
	}
	for _, w := range append(append([]Window(nil), cfg.PIOWindows...), cfg.MMIOWindows...) {
		if w.Size == 0 || w.Start+w.Size-1 < w.Start {
			return nil, fmt.Errorf("pci root: window [%#x, +%#x): not a range", w.Start, w.Size)
		}
	}
	r := &Root{
		pio: cfg.PIO, pioWindows: append([]Window(nil), cfg.PIOWindows...),
		mmio: cfg.MMIO, mmioWindows: append([]Window(nil), cfg.MMIOWindows...),
	}
	bridge, err := NewFunction(FunctionConfig{
		VendorID: hostBridgeVendor,
		DeviceID: hostBridgeDevice,
		Class:    classHostBridge,
	})
	if err != nil {
		return nil, err
	}
	if err := r.Add(NewBDF(0, 0, 0), bridge); err != nil {
		return nil, err
	}
	return r, nil
}

// The host bridge is the one that the PCI ID database knows as "QEMU PCIe Host bridge": lspci has a name for it, and
// Linux no quirk. An ID of a real chipset would make promises about registers that are not here.
const (
	hostBridgeVendor = 0x1b36
	hostBridgeDevice = 0x0008
	classHostBridge  = 0x060000
)

// Add puts f at the place that at names. A device must have a function 0, so that one is added first.
func (r *Root) Add(at BDF, f *Function) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	zero := r.functions[uint8(at)&^7]
	switch {
	case at.Bus() != 0:
		return fmt.Errorf("pci function at %v: there is no bus %d", at, at.Bus())
	case f.attached:
		return fmt.Errorf("pci function at %v: is on a bus already", at)
	case r.functions[at] != nil:
		return fmt.Errorf("pci function at %v: the place is taken", at)
	case at.Function() != 0 && zero == nil:
		return fmt.Errorf("pci function at %v: its device has no function 0", at)
	}
	if at.Function() != 0 {
		// Only function 0 is asked, but hardware agrees with itself (PCI Express Base 5.0 §7.5.1.1.9).
		for _, g := range []*Function{zero, f} {
			g.state.regs[regHeaderType] |= headerMultiFunction
			g.initial[regHeaderType] |= headerMultiFunction
		}
	}
	for i, b := range f.bars {
		if b != nil {
			b.name = fmt.Sprintf("pci %v BAR %d", at, i)
		}
	}
	f.attached = true
	f.initial = f.state.regs
	r.functions[at] = f
	return nil
}

// read fills p from register reg of the function at the given place, with ones where there is none. p lies inside one
// dword.
func (r *Root) read(at BDF, reg int, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.find(at); f != nil {
		f.read(reg, p)
		return
	}
	ones(p)
}

// write is the counterpart of read.
func (r *Root) write(at BDF, reg int, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.find(at)
	if f == nil {
		return
	}
	f.write(reg, p)
	if f.resetRequested() {
		r.reset(f)
		return
	}
	// The enable bits are in the first byte of the command register, where an access to them has to start.
	if reg == regCommand || reg >= regBAR(0) && reg < regBAR(numBARs) {
		r.remap()
	}
}

// find returns the function at the given place, or nil.
func (r *Root) find(at BDF) *Function {
	if at.Bus() != 0 {
		return nil
	}
	return r.functions[at]
}

// bars iterates over all BARs, as a function and an index in it, in the order of their places.
func (r *Root) bars(yield func(f *Function, i int) bool) {
	for _, f := range r.functions {
		if f == nil {
			continue
		}
		for i, b := range f.bars {
			if b != nil && !yield(f, i) {
				return
			}
		}
	}
}

// remap makes the buses agree with the registers. It unmaps first, since a BAR may have moved to where another one was,
// and then tries all that are not mapped, since a BAR that moved away may have freed the place of another.
func (r *Root) remap() {
	for f, i := range r.bars {
		if m := f.state.mapped[i]; m.on && m != f.decode(i) {
			r.unmap(f, i)
		}
	}
	for f, i := range r.bars {
		if !f.state.mapped[i].on {
			r.tryMap(f, i)
		}
	}
}

// tryMap maps BAR i of f if it is enabled, inside a window, and alone there.
func (r *Root) tryMap(f *Function, i int) {
	b, m := f.bars[i], f.decode(i)
	bus, windows := r.route(b.Kind)
	if !m.on || !inside(windows, m.addr, b.Size) || bus.Add(b.name, m.addr, b.Size, b.Device) != nil {
		return
	}
	f.state.mapped[i] = m
	if b.OnMap != nil {
		b.OnMap(m.addr)
	}
}

func (r *Root) unmap(f *Function, i int) {
	b, m := f.bars[i], f.state.mapped[i]
	if b.OnUnmap != nil {
		b.OnUnmap(m.addr)
	}
	bus, _ := r.route(b.Kind)
	bus.Remove(m.addr)
	f.state.mapped[i] = mapping{}
}

// route returns the bus of a kind of BAR, and its windows.
func (r *Root) route(k BARKind) (*devices.Bus, []Window) {
	if k == IO {
		return r.pio, r.pioWindows
	}
	return r.mmio, r.mmioWindows
}

func inside(windows []Window, addr, size uint64) bool {
	for _, w := range windows {
		if w.contains(addr, size) {
			return true
		}
	}
	return false
}
