package machine

import (
	"fmt"
	"strings"

	"vmm/kvm"
	"vmm/machine/probe"
)

// CrashError reports that a vCPU cannot go on: KVM could not emulate an instruction, could not enter the guest, or left
// it for a reason that no device here answers for.
type CrashError struct {
	CPU         int
	What        string // what KVM said: "internal error: emulation failure", "failed entry: hardware reason 0x80000021"
	Instruction []byte // the bytes at RIP, where KVM gave them
	Diagnosis   string // what it means and what helps
	Regs        *kvm.Regs
	Sregs       *kvm.Sregs // both nil where KVM could not read them
	Err         error      // what KVM_RUN failed with; nil where it gave an exit
}

// Error is one line; [CrashError.Detail] has the rest.
func (e *CrashError) Error() string {
	s := fmt.Sprintf("vCPU %d: %s", e.CPU, e.What)
	if e.Regs != nil {
		s += fmt.Sprintf(" at RIP %#x", e.Regs.RIP)
	}
	if e.Diagnosis != "" {
		s += ": " + e.Diagnosis
	}
	return s
}

// Unwrap returns Err.
func (e *CrashError) Unwrap() error { return e.Err }

// Detail is the state of the vCPU in several lines: the instruction's bytes and the registers.
func (e *CrashError) Detail() string {
	var s strings.Builder
	if len(e.Instruction) > 0 {
		fmt.Fprintf(&s, "instruction: % x\n", e.Instruction)
	}
	if r := e.Regs; r != nil {
		fmt.Fprintf(&s, "RAX %016x  RBX %016x  RCX %016x  RDX %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
		fmt.Fprintf(&s, "RSI %016x  RDI %016x  RBP %016x  RSP %016x\n", r.RSI, r.RDI, r.RBP, r.RSP)
		fmt.Fprintf(&s, "R8  %016x  R9  %016x  R10 %016x  R11 %016x\n", r.R8, r.R9, r.R10, r.R11)
		fmt.Fprintf(&s, "R12 %016x  R13 %016x  R14 %016x  R15 %016x\n", r.R12, r.R13, r.R14, r.R15)
		fmt.Fprintf(&s, "RIP %016x  RFLAGS %08x\n", r.RIP, r.RFLAGS)
	}
	if r := e.Sregs; r != nil {
		fmt.Fprintf(&s, "CR0 %016x  CR2 %016x  CR3 %016x  CR4 %016x  EFER %x\n", r.CR0, r.CR2, r.CR3, r.CR4, r.EFER)
		segment := func(name string, g kvm.Segment) {
			fmt.Fprintf(&s, "%-3s %04x base %016x limit %08x type %x dpl %d db %d l %d present %d\n",
				name, g.Selector, g.Base, g.Limit, g.Type, g.DPL, g.DB, g.L, g.Present)
		}
		segment("CS", r.CS)
		segment("DS", r.DS)
		segment("SS", r.SS)
		segment("TR", r.TR)
		fmt.Fprintf(&s, "GDT base %016x limit %04x  IDT base %016x limit %04x\n",
			r.GDT.Base, r.GDT.Limit, r.IDT.Base, r.IDT.Limit)
	}
	return s.String()
}

// crash ends the board because of an exit that has no answer, or, where err is set, because KVM_RUN itself failed. It
// runs on the vCPU's own thread, the only one that may ask KVM for its registers.
func (v *vcpu) crash(err error) {
	e := &CrashError{CPU: v.ID(), Err: err}
	if regs, err := v.GetRegs(); err == nil {
		e.Regs = &regs
	}
	if sregs, err := v.GetSregs(); err == nil {
		e.Sregs = &sregs
	}
	switch reason := v.ExitReason(); {
	case err != nil:
		e.What = "KVM_RUN failed: " + err.Error()
	case reason == kvm.ExitInternalError:
		internal := v.InternalError()
		e.What = "KVM internal error: " + internal.Suberror.String()
		e.Instruction = internal.Instruction()
		e.Diagnosis = v.board.diagnose(internal)
	case reason == kvm.ExitFailEntry:
		entry := v.FailEntry()
		e.What = fmt.Sprintf("the CPU refused to enter the guest: hardware reason %#x on CPU %d", entry.HardwareReason, entry.CPU)
		e.Diagnosis = "the guest's state is one that this host's CPU cannot run"
	default:
		e.What = "KVM left the guest with an exit that this machine does not handle: " + reason.String()
	}
	v.board.end(Exit{}, e)
}

// diagnose says what an internal error means to the person who sees it.
func (b *board) diagnose(e kvm.InternalError) string {
	if e.Suberror != kvm.SuberrorEmulation {
		return "this points at the host's KVM; see its kernel log"
	}
	// A KVM that emulates all kernel code fails here with instructions that every Linux kernel uses.
	if mode, err := probe.KernelMode(b.m.sys); err == nil && mode == probe.Emulated {
		return "this host's KVM emulates the guest's kernel code and lacks this instruction, so that it cannot run stock" +
			" kernels: use a host with hardware virtualization (see vmm probe)"
	}
	return "KVM had to emulate an instruction that it does not know; the guest jumped astray, or touched a device with" +
		" an unusual instruction"
}
