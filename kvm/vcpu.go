package kvm

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual CPU. It belongs to the OS thread that runs it: all its methods are for that thread, except
// [VCPU.ID] and [VCPU.SetImmediateExit] (the kernel would make other threads wait until the guest exits).
type VCPU struct {
	fd   int
	id   int
	page []byte   // what KVM shares: a runPage, and behind it the data of port accesses
	run  *runPage // the start of page
}

// CreateVCPU makes a vCPU (KVM_CREATE_VCPU). Its id is its local APIC's.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(vm.fd, kvmCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("create vcpu %d: %w", id, err)
	}
	c := &VCPU{fd: fd, id: id}
	c.page, err = unix.Mmap(fd, 0, vm.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map vcpu %d: %w", id, err), c.Close())
	}
	c.run = (*runPage)(unsafe.Pointer(&c.page[0]))
	return c, nil
}

// Close gives up the vCPU and what [VCPU.IO] and [VCPU.MMIO] returned. It must not run. It is idempotent.
func (c *VCPU) Close() error {
	var unmap error
	if c.page != nil {
		if err := unix.Munmap(c.page); err != nil {
			unmap = fmt.Errorf("unmap vcpu %d: %w", c.id, err)
		}
		c.page, c.run = nil, nil
	}
	return errors.Join(unmap, closeFD(&c.fd, "vcpu"))
}

// ID returns the id that the vCPU was made with.
func (c *VCPU) ID() int { return c.id }

// Run runs the guest until it exits to user space, for a reason that [VCPU.ExitReason] tells (KVM_RUN). It first
// completes the access of the last exit, with the data that the caller put in place.
//
// The error is a bare unix.Errno. EINTR: a signal or [VCPU.SetImmediateExit] made it stop, and nothing else happened;
// the last access is complete. EAGAIN: the vCPU waits for its start-up and was woken early; run it again.
func (c *VCPU) Run() error {
	// Not RawSyscall: the guest may run for ever, and the scheduler has to know that this thread is away.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), kvmRun, 0); errno != 0 {
		return errno
	}
	return nil
}

// SetImmediateExit makes the next [VCPU.Run], and each one after it, return with EINTR before the guest runs, until it
// is reset. Any thread may call it. To stop a vCPU that may be in the guest: set it, then send the vCPU's thread a
// signal; the vCPU's thread resets it after the EINTR (sooner, and a stop that comes between the reset and KVM_RUN is
// lost).
func (c *VCPU) SetImmediateExit(on bool) {
	// Go has no atomic bytes. The word's other bytes are the caller's as well, and zero in use with the kernel's
	// interrupt controllers.
	var word uint32
	if on {
		word = immediateExit
	}
	atomic.StoreUint32(&c.run.request, word)
}

// MPState is a vCPU's multiprocessing state.
type MPState uint32

// The states of an x86 vCPU.
const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1 // waits for INIT
	MPInitReceived  MPState = 2 // waits for SIPI
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)

// GetMPState returns the multiprocessing state (KVM_GET_MP_STATE).
func (c *VCPU) GetMPState() (MPState, error) {
	var s MPState
	err := c.do("get mp state", kvmGetMPState, unsafe.Pointer(&s))
	return s, err
}

// SetMPState sets the multiprocessing state (KVM_SET_MP_STATE).
func (c *VCPU) SetMPState(s MPState) error {
	return c.do("set mp state", kvmSetMPState, unsafe.Pointer(&s))
}

// TSCKHz returns the rate of the guest's TSC (KVM_GET_TSC_KHZ).
func (c *VCPU) TSCKHz() (int, error) {
	n, err := ioctl(c.fd, kvmGetTSCKHz, 0)
	if err != nil {
		return 0, fmt.Errorf("vcpu %d: get tsc rate: %w", c.id, err)
	}
	return n, nil
}

// SetTSCKHz sets the rate of the guest's TSC (KVM_SET_TSC_KHZ). Beyond a small tolerance it wants CapTSCControl.
func (c *VCPU) SetTSCKHz(khz int) error {
	if _, err := ioctl(c.fd, kvmSetTSCKHz, uintptr(khz)); err != nil {
		return fmt.Errorf("vcpu %d: set tsc rate %d kHz: %w", c.id, khz, err)
	}
	return nil
}

// KVMClockCtrl tells the guest, by its kvmclock, that it was stopped, so that its watchdogs bear with it
// (KVM_KVMCLOCK_CTRL). EINVAL where the guest has no kvmclock.
func (c *VCPU) KVMClockCtrl() error {
	if _, err := ioctl(c.fd, kvmKVMClockCtrl, 0); err != nil {
		return fmt.Errorf("vcpu %d: kvmclock ctrl: %w", c.id, err)
	}
	return nil
}

// do issues a request whose argument is a structure and whose result says nothing.
func (c *VCPU) do(what string, request uintptr, arg unsafe.Pointer) error {
	if _, err := ioctlPtr(c.fd, request, arg); err != nil {
		return fmt.Errorf("vcpu %d: %s: %w", c.id, what, err)
	}
	return nil
}
