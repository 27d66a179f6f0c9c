package kvm

import (
	"fmt"
	"unsafe"
)

// Regs are the general registers (kvm_regs).
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is a segment register with its hidden part (kvm_segment). The fields from Type to AVL are those of a
// descriptor: Intel SDM vol. 3A §3.4.5.
type Segment struct {
	Base     uint64
	Limit    uint32 // bytes, whatever G says
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is a descriptor table register (kvm_dtable).
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs are the special registers (kvm_sregs).
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64 // at most one bit: an external interrupt that the CPU took and did not deliver yet
}

// FPU is the x87 and SSE state (kvm_fpu).
type FPU struct {
	FPR        [8][16]byte
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // the tag word as FXSAVE has it
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32 // KVM neither sets nor tells it: a vCPU starts with the reset value, 0x1F80
	_          uint32
}

// LAPICState is the local APIC's register page, as the guest sees it in xAPIC mode (kvm_lapic_state).
type LAPICState struct{ Regs [0x400]byte }

// MSREntry is an MSR and its value (kvm_msr_entry).
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

// VCPUEvents are the exceptions, interrupts and NMIs on their way (kvm_vcpu_events).
type VCPUEvents struct {
	Exception struct {
		Injected, Nr, HasErrorCode, Pending uint8
		ErrorCode                           uint32
	}
	Interrupt struct{ Injected, Nr, Soft, Shadow uint8 }
	NMI       struct {
		Injected, Pending, Masked uint8
		_                         uint8
	}
	SIPIVector          uint32
	Flags               uint32 // which fields are valid
	SMI                 struct{ SMM, Pending, SMMInsideNMI, LatchedInit uint8 }
	TripleFaultPending  uint8
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// GetRegs returns the general registers (KVM_GET_REGS).
func (c *VCPU) GetRegs() (Regs, error) {
	var r Regs
	err := c.do("get registers", kvmGetRegs, unsafe.Pointer(&r))
	return r, err
}

// SetRegs sets the general registers (KVM_SET_REGS).
func (c *VCPU) SetRegs(r *Regs) error {
	return c.do("set registers", kvmSetRegs, unsafe.Pointer(r))
}

// GetSregs returns the special registers (KVM_GET_SREGS).
func (c *VCPU) GetSregs() (Sregs, error) {
	var s Sregs
	err := c.do("get special registers", kvmGetSregs, unsafe.Pointer(&s))
	return s, err
}

// SetSregs sets the special registers (KVM_SET_SREGS).
func (c *VCPU) SetSregs(s *Sregs) error {
	return c.do("set special registers", kvmSetSregs, unsafe.Pointer(s))
}

// GetFPU returns the x87 and SSE state (KVM_GET_FPU).
func (c *VCPU) GetFPU() (FPU, error) {
	var f FPU
	err := c.do("get fpu", kvmGetFPU, unsafe.Pointer(&f))
	return f, err
}

// SetFPU sets the x87 and SSE state (KVM_SET_FPU).
func (c *VCPU) SetFPU(f *FPU) error { return c.do("set fpu", kvmSetFPU, unsafe.Pointer(f)) }

// GetLAPIC returns the local APIC's registers (KVM_GET_LAPIC).
func (c *VCPU) GetLAPIC() (LAPICState, error) {
	var s LAPICState
	err := c.do("get lapic", kvmGetLAPIC, unsafe.Pointer(&s))
	return s, err
}

// SetLAPIC sets the local APIC's registers (KVM_SET_LAPIC).
func (c *VCPU) SetLAPIC(s *LAPICState) error {
	return c.do("set lapic", kvmSetLAPIC, unsafe.Pointer(s))
}

// GetVCPUEvents returns the exceptions, interrupts and NMIs on their way (KVM_GET_VCPU_EVENTS).
func (c *VCPU) GetVCPUEvents() (VCPUEvents, error) {
	var e VCPUEvents
	err := c.do("get events", kvmGetVCPUEvents, unsafe.Pointer(&e))
	return e, err
}

// GetMSRs reads MSRs in the order of indices (KVM_GET_MSRS). It stops at the first that KVM refuses, and returns those
// before it: fewer than asked for, without an error.
func (c *VCPU) GetMSRs(indices ...uint32) ([]MSREntry, error) {
	l := makeList[MSREntry](len(indices))
	entries := l.entries()
	for i, index := range indices {
		entries[i].Index = index
	}
	n, err := ioctlPtr(c.fd, kvmGetMSRs, l.pointer())
	if err != nil {
		return nil, fmt.Errorf("vcpu %d: get %d msrs: %w", c.id, len(indices), err)
	}
	return entries[:n], nil
}

// SetMSRs writes MSRs in order (KVM_SET_MSRS). It stops at the first that KVM refuses, and returns how many it took:
// where that is fewer than given, without an error, entries[n] is the refused one.
func (c *VCPU) SetMSRs(entries []MSREntry) (n int, err error) {
	n, err = ioctlPtr(c.fd, kvmSetMSRs, listOf(entries).pointer())
	if err != nil {
		return 0, fmt.Errorf("vcpu %d: set %d msrs: %w", c.id, len(entries), err)
	}
	return n, nil
}
