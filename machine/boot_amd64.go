package machine

import (
	"encoding/binary"

	"vmm/bootparam"
	"vmm/kvm"
)

// Bits of the control registers (Intel SDM vol. 3A §2.5) and of EFER (§2.2.1).
const (
	cr0PE = 1 << 0  // protected mode
	cr0MP = 1 << 1  // WAIT obeys TS
	cr0ET = 1 << 4  // hard-wired to one
	cr0NE = 1 << 5  // x87 errors as exceptions
	cr0WP = 1 << 16 // the kernel's writes obey read-only pages
	cr0PG = 1 << 31 // paging

	cr4PAE = 1 << 5

	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsFixed = 1 << 1 // always one
)

// MSRs that a boot needs (Intel SDM vol. 4).
const (
	msrMiscEnable   = 0x1a0
	msrMTRRDefType  = 0x2ff
	miscFastStrings = 1 << 0
	mtrrEnable      = 1 << 11
	mtrrWriteBack   = 6
)

// bootMSRs are set on each vCPU. A BIOS leaves the MTRRs enabled with write-back as the default type: Linux reports a
// firmware bug where they are off. An MSR that KVM refuses is left as it is.
func bootMSRs() []kvm.MSREntry {
	return []kvm.MSREntry{
		{Index: msrMiscEnable, Data: miscFastStrings},
		{Index: msrMTRRDefType, Data: mtrrEnable | mtrrWriteBack},
	}
}

// setBootState puts the first vCPU where the boot protocol wants it. What it does not touch is as KVM's reset of a vCPU
// leaves it, the x87 and SSE control words (0x37F and 0x1F80) among it.
func setBootState(v *kvm.VCPU, e bootparam.Entry) error {
	sregs, err := v.GetSregs()
	if err != nil {
		return err
	}
	long := e.Protocol == bootparam.Linux64
	sregs.CS = segment(e.CS)
	data := segment(e.DS)
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	sregs.TR = segment(e.TR)
	sregs.LDT = kvm.Segment{Unusable: 1}
	sregs.GDT = kvm.DTable{Base: uint64(e.GDT), Limit: e.GDTLimit}
	sregs.IDT = kvm.DTable{} // no handler: an exception before the kernel has its own is a triple fault

	sregs.CR0 = cr0PE | cr0ET | cr0NE
	if long {
		sregs.CR0 |= cr0MP | cr0WP | cr0PG
		sregs.CR3 = e.CR3
		sregs.CR4 = cr4PAE
		sregs.EFER = eferLME | eferLMA
	}
	if err := v.SetSregs(&sregs); err != nil {
		return err
	}
	return v.SetRegs(&kvm.Regs{RIP: e.RIP, RSI: e.RSI, RBX: e.RBX, RFLAGS: rflagsFixed})
}

// segment turns a segment of the boot protocols into a register of KVM's.
func segment(s bootparam.Segment) kvm.Segment {
	bit := func(on bool) uint8 {
		if on {
			return 1
		}
		return 0
	}
	return kvm.Segment{
		Selector: s.Selector, Limit: s.Limit, Type: s.Type, Present: 1,
		S: bit(s.CodeOrData), L: bit(s.Long), DB: bit(s.Big), G: bit(s.Granular),
	}
}

// setBootMSRs gives a vCPU the MSRs of [bootMSRs]. KVM stops at the first MSR that it refuses; the others still count.
func setBootMSRs(v *kvm.VCPU) error {
	for msrs := bootMSRs(); len(msrs) > 0; {
		n, err := v.SetMSRs(msrs)
		if err != nil {
			return err
		}
		msrs = msrs[min(n+1, len(msrs)):]
	}
	return nil
}

// Registers of the local APIC (Intel SDM vol. 3A §11.4.1), and the delivery modes of its local vectors.
const (
	lapicLVT0   = 0x350
	lapicLVT1   = 0x360
	lvtNMI      = 4 << 8
	lvtExtINT   = 7 << 8
	lvtModeMask = 7<<8 | 1<<16 // the mode and the mask bit
)

// setVirtualWire connects the PIC to the first vCPU's LINT0 and NMI to its LINT1, as firmware does (MultiProcessor
// Specification 1.4 §3.6.2.2). The others' local APICs start afresh at their INIT.
func setVirtualWire(v *kvm.VCPU) error {
	lapic, err := v.GetLAPIC()
	if err != nil {
		return err
	}
	setMode := func(reg int, mode uint32) {
		lvt := lapic.Regs[reg : reg+4]
		binary.LittleEndian.PutUint32(lvt, binary.LittleEndian.Uint32(lvt)&^lvtModeMask|mode)
	}
	setMode(lapicLVT0, lvtExtINT)
	setMode(lapicLVT1, lvtNMI)
	return v.SetLAPIC(&lapic)
}
