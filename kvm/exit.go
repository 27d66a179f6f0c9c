package kvm

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// runPage is the start of the structure that a vCPU shares with the kernel (kvm_run).
type runPage struct {
	request    uint32 // request_interrupt_window, immediate_exit, and the first two bytes of padding
	_          uint32
	exitReason ExitReason
	_          [4]byte // ready_for_interrupt_injection, if_flag, flags
	_          uint64  // cr8
	_          uint64  // apic_base
	exit       [256]byte
}

// immediateExit is the byte immediate_exit in runPage.request.
const immediateExit = 1 << 8

// ExitReason says why [VCPU.Run] returned without an error.
type ExitReason uint32

// The exits that an x86 guest can take with the capabilities that this package knows.
const (
	ExitUnknown       ExitReason = 0
	ExitException     ExitReason = 1
	ExitIO            ExitReason = 2 // see VCPU.IO
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5 // only without the kernel's interrupt controllers
	ExitMMIO          ExitReason = 6 // see VCPU.MMIO
	ExitIRQWindowOpen ExitReason = 7
	ExitShutdown      ExitReason = 8 // a triple fault
	ExitFailEntry     ExitReason = 9 // see VCPU.FailEntry
	ExitIntr          ExitReason = 10
	ExitSetTPR        ExitReason = 11
	ExitTPRAccess     ExitReason = 12
	ExitNMI           ExitReason = 16
	ExitInternalError ExitReason = 17 // see VCPU.InternalError
	ExitSystemEvent   ExitReason = 24 // see VCPU.SystemEvent
	ExitIOAPICEOI     ExitReason = 26
	ExitHyperV        ExitReason = 27
	ExitX86RDMSR      ExitReason = 29
	ExitX86WRMSR      ExitReason = 30
	ExitX86BusLock    ExitReason = 33
	ExitNotify        ExitReason = 37
)

// String returns the name that linux/kvm.h gives the exit, or its number in KVM_EXIT(n).
func (r ExitReason) String() string {
	if name, ok := exitNames[r]; ok {
		return name
	}
	return fmt.Sprintf("KVM_EXIT(%d)", uint32(r))
}

var exitNames = map[ExitReason]string{
	ExitUnknown:       "KVM_EXIT_UNKNOWN",
	ExitException:     "KVM_EXIT_EXCEPTION",
	ExitIO:            "KVM_EXIT_IO",
	ExitHypercall:     "KVM_EXIT_HYPERCALL",
	ExitDebug:         "KVM_EXIT_DEBUG",
	ExitHLT:           "KVM_EXIT_HLT",
	ExitMMIO:          "KVM_EXIT_MMIO",
	ExitIRQWindowOpen: "KVM_EXIT_IRQ_WINDOW_OPEN",
	ExitShutdown:      "KVM_EXIT_SHUTDOWN",
	ExitFailEntry:     "KVM_EXIT_FAIL_ENTRY",
	ExitIntr:          "KVM_EXIT_INTR",
	ExitSetTPR:        "KVM_EXIT_SET_TPR",
	ExitTPRAccess:     "KVM_EXIT_TPR_ACCESS",
	ExitNMI:           "KVM_EXIT_NMI",
	ExitInternalError: "KVM_EXIT_INTERNAL_ERROR",
	ExitSystemEvent:   "KVM_EXIT_SYSTEM_EVENT",
	ExitIOAPICEOI:     "KVM_EXIT_IOAPIC_EOI",
	ExitHyperV:        "KVM_EXIT_HYPERV",
	ExitX86RDMSR:      "KVM_EXIT_X86_RDMSR",
	ExitX86WRMSR:      "KVM_EXIT_X86_WRMSR",
	ExitX86BusLock:    "KVM_EXIT_X86_BUS_LOCK",
	ExitNotify:        "KVM_EXIT_NOTIFY",
}

// ExitReason returns why the last [VCPU.Run] returned, where it returned without an error.
func (c *VCPU) ExitReason() ExitReason { return c.run.exitReason }

// IO is a port access: Count accesses to Port, each of Size bytes, as a string instruction does many.
type IO struct {
	Write bool // OUT: Data is from the guest; otherwise the next Run gives Data to the guest
	Size  int  // bytes of one access: 1, 2 or 4
	Port  uint16
	Count int
	Data  []byte // Size*Count bytes, of the vCPU's page, until the next Run
}

const ioOut = 1

type ioExit struct { // kvm_run.io
	direction  uint8 // 0 or ioOut
	size       uint8
	port       uint16
	count      uint32
	dataOffset uint64 // from the start of the page
}

// IO describes an exit of reason [ExitIO].
func (c *VCPU) IO() IO {
	e := *(*ioExit)(unsafe.Pointer(&c.run.exit))
	end := e.dataOffset + uint64(e.size)*uint64(e.count)
	return IO{
		Write: e.direction == ioOut,
		Size:  int(e.size),
		Port:  e.port,
		Count: int(e.count),
		// The kernel chose the bounds, not the guest; were they wrong, the slice expression would panic.
		Data: c.page[e.dataOffset:end:end],
	}
}

// MMIO is an access to guest-physical memory without a memslot.
type MMIO struct {
	Write bool // Data is from the guest; otherwise the next Run gives Data to the guest
	Addr  uint64
	Data  []byte // 1 to 8 bytes, of the vCPU's page, until the next Run
}

type mmioExit struct { // kvm_run.mmio
	addr    uint64
	data    [8]byte
	len     uint32
	isWrite uint8
}

// MMIO describes an exit of reason [ExitMMIO].
func (c *VCPU) MMIO() MMIO {
	e := (*mmioExit)(unsafe.Pointer(&c.run.exit))
	n := e.len
	return MMIO{Write: e.isWrite != 0, Addr: e.addr, Data: e.data[:n:n]}
}

// FailEntry is why the processor refused to enter the guest.
type FailEntry struct {
	HardwareReason uint64 // the processor's code: of VMX or SVM
	CPU            uint32 // the host's
}

// FailEntry describes an exit of reason [ExitFailEntry].
func (c *VCPU) FailEntry() FailEntry {
	e := (*failEntryExit)(unsafe.Pointer(&c.run.exit))
	return FailEntry{HardwareReason: e.reason, CPU: e.cpu}
}

type failEntryExit struct { // kvm_run.fail_entry
	reason uint64
	cpu    uint32
}

// Suberror is the kind of an [InternalError].
type Suberror uint32

// The internal errors of KVM.
const (
	SuberrorEmulation            Suberror = 1 // an instruction that KVM had to emulate, and can't
	SuberrorSimultaneous         Suberror = 2 // exceptions in the delivery of an exception
	SuberrorDelivery             Suberror = 3 // an exit in the delivery of an event
	SuberrorUnexpectedExitReason Suberror = 4
)

func (s Suberror) String() string {
	switch s {
	case SuberrorEmulation:
		return "emulation failure"
	case SuberrorSimultaneous:
		return "simultaneous exceptions"
	case SuberrorDelivery:
		return "exit during event delivery"
	case SuberrorUnexpectedExitReason:
		return "unexpected exit reason"
	}
	return fmt.Sprintf("suberror %d", uint32(s))
}

// InternalError is a failure of KVM to run the guest on.
type InternalError struct {
	Suberror Suberror
	Data     []uint64 // what KVM tells about it, at most 16 words; the meaning is the suberror's
}

type internalExit struct { // kvm_run.internal, kvm_run.system_event
	kind  uint32
	ndata uint32
	data  [16]uint64
}

// words copies what the exit tells, so that it outlives the vCPU.
func (e *internalExit) words() []uint64 {
	n := min(int(e.ndata), len(e.data))
	return append([]uint64(nil), e.data[:n]...)
}

// InternalError describes an exit of reason [ExitInternalError].
func (c *VCPU) InternalError() InternalError {
	e := (*internalExit)(unsafe.Pointer(&c.run.exit))
	return InternalError{Suberror: Suberror(e.kind), Data: e.words()}
}

// emulationHasInstruction is the flag, in the first word of an emulation failure's data, of the two words of
// instruction bytes behind it (kvm_run.emulation_failure).
const emulationHasInstruction = 1 << 0

// maxInstruction is the longest instruction of x86 in bytes.
const maxInstruction = 15

// Instruction returns the bytes at the guest's instruction pointer, at most 15, where a failed emulation tells them:
// the instruction that failed, and maybe some after it. It is nil otherwise.
func (e InternalError) Instruction() []byte {
	if e.Suberror != SuberrorEmulation || len(e.Data) < 3 || e.Data[0]&emulationHasInstruction == 0 {
		return nil
	}
	var b [1 + maxInstruction]byte // a length, and the bytes
	binary.LittleEndian.PutUint64(b[0:], e.Data[1])
	binary.LittleEndian.PutUint64(b[8:], e.Data[2])
	return b[1 : 1+min(int(b[0]), maxInstruction)]
}

// SystemEventType is the kind of a [SystemEvent].
type SystemEventType uint32

// The system events that an x86 guest can raise.
const (
	SystemEventShutdown SystemEventType = 1
	SystemEventReset    SystemEventType = 2
	SystemEventCrash    SystemEventType = 3
)

// SystemEvent is something that the guest did to the whole machine, by a paravirtual interface of KVM.
type SystemEvent struct {
	Type SystemEventType
	Data []uint64 // at most 16 words
}

// SystemEvent describes an exit of reason [ExitSystemEvent].
func (c *VCPU) SystemEvent() SystemEvent {
	e := (*internalExit)(unsafe.Pointer(&c.run.exit))
	return SystemEvent{Type: SystemEventType(e.kind), Data: e.words()}
}
