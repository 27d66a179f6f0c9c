package kvm

import (
	"fmt"
	"unsafe"
)

// VM is a virtual machine: guest-physical memory, interrupt controllers, and the vCPUs made from it.
type VM struct {
	fd       int
	mmapSize int
}

// Close gives up the VM. The kernel keeps it, with the guest's memory pinned to it, until its vCPUs are closed too. It
// is idempotent.
func (vm *VM) Close() error { return closeFD(&vm.fd, "vm") }

// Extension returns the value of a capability as it is for this VM, 0 where it lacks it (KVM_CHECK_EXTENSION).
func (vm *VM) Extension(c Cap) (int, error) { return checkExtension(vm.fd, c) }

// Flags of a [MemoryRegion].
const (
	MemLogDirtyPages = 1 << 0 // note which pages the guest writes
	MemReadonly      = 1 << 1 // writes are MMIO exits; wants CapReadonlyMem
)

// MemoryRegion is a memslot (kvm_userspace_memory_region): host memory, at a guest-physical address.
type MemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64 // a multiple of the page size
	MemorySize    uint64 // bytes, a multiple of the page size; 0 deletes the slot
	UserspaceAddr uint64 // the host virtual address: of a mapping, never of Go's heap
}

// SetUserMemoryRegion makes, changes or deletes a memslot (KVM_SET_USER_MEMORY_REGION). The host memory stays the
// caller's, and stays mapped for as long as the slot is there.
func (vm *VM) SetUserMemoryRegion(r MemoryRegion) error {
	if _, err := ioctlPtr(vm.fd, kvmSetUserMemoryRegion, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("set memslot %d [%#x, +%#x): %w", r.Slot, r.GuestPhysAddr, r.MemorySize, err)
	}
	return nil
}

// SetTSSAddr says where the three pages are, below 4 GiB and in no memslot, that Intel's real-mode support needs
// (KVM_SET_TSS_ADDR). Before the first vCPU.
func (vm *VM) SetTSSAddr(addr uint64) error {
	if _, err := ioctl(vm.fd, kvmSetTSSAddr, uintptr(addr)); err != nil {
		return fmt.Errorf("set tss address %#x: %w", addr, err)
	}
	return nil
}

// SetIdentityMapAddr says where the page is, below 4 GiB and in no memslot, that Intel's real-mode support needs beside
// those of [VM.SetTSSAddr] (KVM_SET_IDENTITY_MAP_ADDR). Before the first vCPU.
func (vm *VM) SetIdentityMapAddr(addr uint64) error {
	if _, err := ioctlPtr(vm.fd, kvmSetIdentityMapAddr, unsafe.Pointer(&addr)); err != nil {
		return fmt.Errorf("set identity map address %#x: %w", addr, err)
	}
	return nil
}

// ClockData is the VM's kvmclock (kvm_clock_data).
type ClockData struct {
	Clock    uint64 // nanoseconds
	Flags    uint32
	_        uint32
	Realtime uint64 // the host's CLOCK_REALTIME, nanoseconds; with ClockRealtime
	HostTSC  uint64 // with ClockHostTSC
	_        [4]uint32
}

// Flags of [ClockData].
const (
	ClockTSCStable = 1 << 1 // the same for all vCPUs at that moment
	ClockRealtime  = 1 << 2
	ClockHostTSC   = 1 << 3
)

// GetClock reads the VM's kvmclock (KVM_GET_CLOCK).
func (vm *VM) GetClock() (ClockData, error) {
	var c ClockData
	if _, err := ioctlPtr(vm.fd, kvmGetClock, unsafe.Pointer(&c)); err != nil {
		return ClockData{}, fmt.Errorf("get clock: %w", err)
	}
	return c, nil
}

// SetClock sets the VM's kvmclock (KVM_SET_CLOCK). Of the flags it takes ClockRealtime alone, which lets the clock go
// on by the time passed since c.Realtime.
func (vm *VM) SetClock(c ClockData) error {
	if _, err := ioctlPtr(vm.fd, kvmSetClock, unsafe.Pointer(&c)); err != nil {
		return fmt.Errorf("set clock %d, flags %#x: %w", c.Clock, c.Flags, err)
	}
	return nil
}

type enableCap struct { // kvm_enable_cap
	cap, flags uint32
	args       [4]uint64
	_          [64]byte
}

// EnableCap switches on a capability that wants it, for the whole VM (KVM_ENABLE_CAP). At most four arguments.
func (vm *VM) EnableCap(c Cap, args ...uint64) error {
	e := enableCap{cap: uint32(c)}
	if copy(e.args[:], args) < len(args) {
		return fmt.Errorf("enable %v: %d arguments, at most %d", c, len(args), len(e.args))
	}
	if _, err := ioctlPtr(vm.fd, kvmEnableCap, unsafe.Pointer(&e)); err != nil {
		return fmt.Errorf("enable %v %#x: %w", c, args, err)
	}
	return nil
}
