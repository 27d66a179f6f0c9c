package kvm

import (
	"fmt"
	"unsafe"
)

// CreateIRQChip makes the interrupt controllers in the kernel: two 8259 PICs, an IOAPIC, and a local APIC in each vCPU
// made later (KVM_CREATE_IRQCHIP). GSIs 0 to 15 go to PIC and IOAPIC, 16 to 23 to the IOAPIC, until [VM.SetGSIRouting].
func (vm *VM) CreateIRQChip() error {
	if _, err := ioctl(vm.fd, kvmCreateIRQChip, 0); err != nil {
		return fmt.Errorf("create irqchip: %w", err)
	}
	return nil
}

// PITSpeakerDummy is a flag of [VM.CreatePIT2]: the kernel has port 0x61 too, which the PIT's second channel is
// calibrated by.
const PITSpeakerDummy = 1 << 0

type pitConfig struct { // kvm_pit_config
	flags uint32
	_     [15]uint32
}

// CreatePIT2 makes an i8254 timer in the kernel (KVM_CREATE_PIT2). After [VM.CreateIRQChip].
func (vm *VM) CreatePIT2(flags uint32) error {
	c := pitConfig{flags: flags}
	if _, err := ioctlPtr(vm.fd, kvmCreatePIT2, unsafe.Pointer(&c)); err != nil {
		return fmt.Errorf("create pit, flags %#x: %w", flags, err)
	}
	return nil
}

// IRQChip names one of the kernel's interrupt controllers.
type IRQChip uint32

// The controllers that a GSI can be routed to.
const (
	PICMaster IRQChip = 0
	PICSlave  IRQChip = 1
	IOAPIC    IRQChip = 2
)

// The types of a route.
const (
	routeIRQChip = 1
	routeMSI     = 2
)

// GSIRoute is an entry of the GSI routing table (kvm_irq_routing_entry): what [IRQChipRoute] or [MSIRoute] returns.
type GSIRoute struct {
	gsi  uint32
	kind uint32
	_    uint32 // flags: none with the types above
	_    uint32
	u    [8]uint32
}

// GSI returns the number of the interrupt that is routed.
func (r GSIRoute) GSI() uint32 { return r.gsi }

// IRQChipRoute routes a GSI to a pin of an interrupt controller.
func IRQChipRoute(gsi uint32, chip IRQChip, pin uint32) GSIRoute {
	return GSIRoute{gsi: gsi, kind: routeIRQChip, u: [8]uint32{uint32(chip), pin}}
}

// MSIRoute makes an assertion of a GSI send a message: data written to addr, as a PCI device would.
func MSIRoute(gsi uint32, addr uint64, data uint32) GSIRoute {
	return GSIRoute{gsi: gsi, kind: routeMSI, u: [8]uint32{uint32(addr), uint32(addr >> 32), data}}
}

// SetGSIRouting replaces the whole GSI routing table (KVM_SET_GSI_ROUTING). A GSI may have several routes to interrupt
// controllers, or one that is a message.
func (vm *VM) SetGSIRouting(routes []GSIRoute) error {
	l := listOf(routes)
	if _, err := ioctlPtr(vm.fd, kvmSetGSIRouting, l.pointer()); err != nil {
		return fmt.Errorf("set gsi routing, %d routes: %w", len(routes), err)
	}
	return nil
}

type irqLevel struct{ gsi, level uint32 } // kvm_irq_level

// IRQLine sets the level of a GSI (KVM_IRQ_LINE). An edge is high and then low.
func (vm *VM) IRQLine(gsi uint32, high bool) error {
	l := irqLevel{gsi: gsi}
	if high {
		l.level = 1
	}
	if _, err := ioctlPtr(vm.fd, kvmIRQLine, unsafe.Pointer(&l)); err != nil {
		return fmt.Errorf("set gsi %d to level %d: %w", gsi, l.level, err)
	}
	return nil
}

// MSI is a message-signalled interrupt: the write that a device would do.
type MSI struct {
	Addr uint64
	Data uint32
}

type msi struct { // kvm_msi
	addrLow, addrHigh uint32
	data              uint32
	flags             uint32
	device            uint32
	_                 [12]byte
}

// SignalMSI delivers a message without a route (KVM_SIGNAL_MSI). It reports whether any vCPU took it: a guest that has
// its local APIC off takes none, which is no error.
func (vm *VM) SignalMSI(m MSI) (delivered bool, err error) {
	k := msi{addrLow: uint32(m.Addr), addrHigh: uint32(m.Addr >> 32), data: m.Data}
	n, err := ioctlPtr(vm.fd, kvmSignalMSI, unsafe.Pointer(&k))
	if err != nil {
		return false, fmt.Errorf("signal msi %#x to %#x: %w", m.Data, m.Addr, err)
	}
	return n > 0, nil
}

// Flags of an [IRQFD].
const (
	IRQFDDeassign = 1 << 0 // take the binding away
	IRQFDResample = 1 << 1 // level-triggered; wants CapIRQFDResample
)

// IRQFD binds an eventfd to a GSI: each write to it asserts the interrupt.
type IRQFD struct {
	FD    int // an eventfd, the caller's; the kernel drops the binding when its last descriptor is closed
	GSI   uint32
	Flags uint32
	// ResampleFD is with IRQFDResample an eventfd that the kernel writes at the guest's end of interrupt, having
	// lowered the line.
	ResampleFD int
}

type irqfd struct { // kvm_irqfd
	fd, gsi, flags, resampleFD uint32
	_                          [16]byte
}

// IRQFD makes or takes away the binding of an eventfd to a GSI (KVM_IRQFD).
func (vm *VM) IRQFD(f IRQFD) error {
	k := irqfd{fd: uint32(f.FD), gsi: f.GSI, flags: f.Flags, resampleFD: uint32(f.ResampleFD)}
	if _, err := ioctlPtr(vm.fd, kvmIRQFD, unsafe.Pointer(&k)); err != nil {
		return fmt.Errorf("irqfd %d of gsi %d, flags %#x: %w", f.FD, f.GSI, f.Flags, err)
	}
	return nil
}

// Flags of an [IOEvent].
const (
	IOEventDatamatch = 1 << 0 // only writes of the value Match
	IOEventPIO       = 1 << 1 // Addr is a port
	IOEventDeassign  = 1 << 2 // take the binding away; all else as it was made
)

// IOEvent binds an eventfd to a guest's write: the kernel signals it, and the vCPU runs on without an exit.
type IOEvent struct {
	Addr  uint64 // guest-physical address or port
	Len   uint32 // the write's bytes: 1, 2, 4 or 8; or 0 for any, without IOEventDatamatch (CapIOEventFDAnyLength)
	FD    int    // an eventfd, the caller's
	Match uint64
	Flags uint32
}

type ioeventfd struct { // kvm_ioeventfd
	match uint64
	addr  uint64
	len   uint32
	fd    int32
	flags uint32
	_     [36]byte
}

// IOEventFD makes or takes away the binding of an eventfd to a guest's write (KVM_IOEVENTFD).
func (vm *VM) IOEventFD(e IOEvent) error {
	k := ioeventfd{match: e.Match, addr: e.Addr, len: e.Len, fd: int32(e.FD), flags: e.Flags}
	if _, err := ioctlPtr(vm.fd, kvmIOEventFD, unsafe.Pointer(&k)); err != nil {
		return fmt.Errorf("ioeventfd %d at [%#x, +%d), flags %#x: %w", e.FD, e.Addr, e.Len, e.Flags, err)
	}
	return nil
}
