package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// A coalesced write is one that KVM notes in a ring instead of leaving the guest for it; user space reads the ring when
// it comes by. It fits registers whose writes need no answer (api.rst §4.116).

// coalescedPage is where the ring lies in what KVM shares with a vCPU, in pages (KVM_COALESCED_MMIO_PAGE_OFFSET). All
// vCPUs of a VM share one ring.
const (
	coalescedPage = 2
	pageSize      = 4096
)

type coalescedZone struct { // kvm_coalesced_mmio_zone
	addr uint64
	size uint32
	pio  uint32
}

type coalescedWrite struct { // kvm_coalesced_mmio
	addr uint64
	len  uint32
	pio  uint32
	data [8]byte
}

type coalescedRing struct { // kvm_coalesced_mmio_ring
	first  uint32 // ours to advance
	last   uint32 // the kernel's
	writes [(pageSize - 8) / unsafe.Sizeof(coalescedWrite{})]coalescedWrite
}

// CoalescePorts makes KVM note the writes to [port, port+size) in the ring (on), or leave the guest for each again. It
// needs [CapCoalescedPIO].
func (vm *VM) CoalescePorts(port uint16, size uint32, on bool) error {
	zone := coalescedZone{addr: uint64(port), size: size, pio: 1}
	request := kvmRegisterCoalesced
	if !on {
		request = kvmUnregisterCoalesced
	}
	if _, err := ioctlPtr(vm.fd, request, unsafe.Pointer(&zone)); err != nil {
		return fmt.Errorf("coalesce ports [%#x, +%d), %t: %w", port, size, on, err)
	}
	return nil
}

// DrainCoalesced hands each noted write to a port to f, oldest first, and forgets it. Data is of the ring and valid in
// the call. A VM's writes come in the guest's order if they are drained before each exit is handled, by one caller at a
// time. Any thread may call it, on any vCPU of the VM.
func (c *VCPU) DrainCoalesced(f func(port uint16, data []byte)) {
	ring := (*coalescedRing)(unsafe.Pointer(&c.page[coalescedPage*pageSize]))
	const n = uint32(len(ring.writes))
	first := ring.first % n
	for first != atomic.LoadUint32(&ring.last)%n {
		w := &ring.writes[first]
		f(uint16(w.addr), w.data[:min(w.len, 8)])
		first = (first + 1) % n
		atomic.StoreUint32(&ring.first, first) // gives the entry back to the kernel
	}
}

// HasCoalesced tells whether there is something to drain. It costs two loads.
func (c *VCPU) HasCoalesced() bool {
	ring := (*coalescedRing)(unsafe.Pointer(&c.page[coalescedPage*pageSize]))
	return atomic.LoadUint32(&ring.first) != atomic.LoadUint32(&ring.last)
}
