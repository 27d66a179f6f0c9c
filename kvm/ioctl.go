package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The parts of a request number: direction, KVM's type byte, and the place of the argument's size
// (Linux include/uapi/asm-generic/ioctl.h).
const (
	kvmIO   = 0xAE << 8
	kvmIOW  = kvmIO | 1<<30 // user space writes, the kernel reads
	kvmIOR  = kvmIO | 2<<30
	kvmIOWR = kvmIOR | kvmIOW

	sizeShift = 16
)

// The requests (Linux include/uapi/linux/kvm.h). Where the argument ends in an array of variable length, the request
// holds the size of what comes before it.
const (
	// On the system.
	kvmGetAPIVersion          = kvmIO // 0x00
	kvmCreateVM               = kvmIO | 0x01
	kvmGetMSRIndexList        = kvmIOWR | 0x02 | unsafe.Sizeof(uint32(0))<<sizeShift
	kvmCheckExtension         = kvmIO | 0x03
	kvmGetVCPUMmapSize        = kvmIO | 0x04
	kvmGetSupportedCPUID      = kvmIOWR | 0x05 | listHeader<<sizeShift
	kvmGetMSRFeatureIndexList = kvmIOWR | 0x0a | unsafe.Sizeof(uint32(0))<<sizeShift

	// On a VM.
	kvmCreateVCPU          = kvmIO | 0x41
	kvmSetUserMemoryRegion = kvmIOW | 0x46 | unsafe.Sizeof(MemoryRegion{})<<sizeShift
	kvmSetTSSAddr          = kvmIO | 0x47
	kvmSetIdentityMapAddr  = kvmIOW | 0x48 | unsafe.Sizeof(uint64(0))<<sizeShift
	kvmCreateIRQChip       = kvmIO | 0x60
	kvmIRQLine             = kvmIOW | 0x61 | unsafe.Sizeof(irqLevel{})<<sizeShift
	kvmSetGSIRouting       = kvmIOW | 0x6a | listHeader<<sizeShift
	kvmRegisterCoalesced   = kvmIOW | 0x67 | unsafe.Sizeof(coalescedZone{})<<sizeShift
	kvmUnregisterCoalesced = kvmIOW | 0x68 | unsafe.Sizeof(coalescedZone{})<<sizeShift
	kvmIRQFD               = kvmIOW | 0x76 | unsafe.Sizeof(irqfd{})<<sizeShift
	kvmCreatePIT2          = kvmIOW | 0x77 | unsafe.Sizeof(pitConfig{})<<sizeShift
	kvmIOEventFD           = kvmIOW | 0x79 | unsafe.Sizeof(ioeventfd{})<<sizeShift
	kvmSetClock            = kvmIOW | 0x7b | unsafe.Sizeof(ClockData{})<<sizeShift
	kvmGetClock            = kvmIOR | 0x7c | unsafe.Sizeof(ClockData{})<<sizeShift
	kvmEnableCap           = kvmIOW | 0xa3 | unsafe.Sizeof(enableCap{})<<sizeShift
	kvmSignalMSI           = kvmIOW | 0xa5 | unsafe.Sizeof(msi{})<<sizeShift

	// On a vCPU.
	kvmRun           = kvmIO | 0x80
	kvmGetRegs       = kvmIOR | 0x81 | unsafe.Sizeof(Regs{})<<sizeShift
	kvmSetRegs       = kvmIOW | 0x82 | unsafe.Sizeof(Regs{})<<sizeShift
	kvmGetSregs      = kvmIOR | 0x83 | unsafe.Sizeof(Sregs{})<<sizeShift
	kvmSetSregs      = kvmIOW | 0x84 | unsafe.Sizeof(Sregs{})<<sizeShift
	kvmGetMSRs       = kvmIOWR | 0x88 | listHeader<<sizeShift
	kvmSetMSRs       = kvmIOW | 0x89 | listHeader<<sizeShift
	kvmGetFPU        = kvmIOR | 0x8c | unsafe.Sizeof(FPU{})<<sizeShift
	kvmSetFPU        = kvmIOW | 0x8d | unsafe.Sizeof(FPU{})<<sizeShift
	kvmGetLAPIC      = kvmIOR | 0x8e | unsafe.Sizeof(LAPICState{})<<sizeShift
	kvmSetLAPIC      = kvmIOW | 0x8f | unsafe.Sizeof(LAPICState{})<<sizeShift
	kvmSetCPUID2     = kvmIOW | 0x90 | listHeader<<sizeShift
	kvmGetMPState    = kvmIOR | 0x98 | unsafe.Sizeof(MPState(0))<<sizeShift
	kvmSetMPState    = kvmIOW | 0x99 | unsafe.Sizeof(MPState(0))<<sizeShift
	kvmGetVCPUEvents = kvmIOR | 0x9f | unsafe.Sizeof(VCPUEvents{})<<sizeShift
	kvmSetTSCKHz     = kvmIO | 0xa2
	kvmGetTSCKHz     = kvmIO | 0xa3
	kvmKVMClockCtrl  = kvmIO | 0xad
)

// ioctl issues a request whose argument is a number (or nothing), and again for as long as a signal interrupts it. It
// returns the request's result.
func ioctl(fd int, request, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// ioctlPtr is [ioctl] for a request whose argument is an address. The address becomes a number only in the call of
// Syscall itself, which is what keeps its object alive and in place.
func ioctlPtr(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// listHeader is the size of what precedes the entries of a [list].
const listHeader = 8

// A list is one of KVM's counted arrays: a 32-bit count, 32 bits of padding or flags, then the entries, whose size is a
// multiple of eight (kvm_cpuid2, kvm_msrs, kvm_irq_routing).
type list[E any] struct{ words []uint64 }

func makeList[E any](n int) list[E] {
	entryWords := int(unsafe.Sizeof(*new(E)) / 8)
	l := list[E]{make([]uint64, 1+max(n, 1)*entryWords)}
	l.words[0] = uint64(n) // the count is the low half: x86 is little-endian
	return l
}

func listOf[E any](entries []E) list[E] {
	l := makeList[E](len(entries))
	copy(l.entries(), entries)
	return l
}

func (l list[E]) pointer() unsafe.Pointer { return unsafe.Pointer(&l.words[0]) }

// entries returns as many entries as the count says, which a request may have lowered. They alias the list.
func (l list[E]) entries() []E {
	return unsafe.Slice((*E)(unsafe.Pointer(&l.words[1])), int(uint32(l.words[0])))
}
