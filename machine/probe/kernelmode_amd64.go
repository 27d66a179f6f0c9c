package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/memory"
)

// Mode is how a host's KVM runs the guest's kernel code.
type Mode string

const (
	// Hardware runs it on the processor, as stock kernels need it.
	Hardware Mode = "hardware"
	// Emulated interprets it, and knows only some of the instructions.
	Emulated Mode = "emulated"
	// Unknown is for where KVM could not be tried.
	Unknown Mode = "unknown"
)

// The trial's guest-physical memory.
const (
	pml4      = 0x1000
	pdpt      = 0x2000
	pageDir   = 0x3000
	code      = 0x4000
	operand   = 0x5000 // of cmpxchg16b: 16 bytes
	xsaveArea = 0x6000 // of xrstor: 64-byte aligned, all zero, which is the initial state
	ramSize   = 0x8000
)

const hlt = 0xF4

// Instructions that every x86-64 Linux kernel executes at CPL 0 and that KVM's emulator does not know.
var (
	cmpxchg16b = []byte{0xF0, 0x48, 0x0F, 0xC7, 0x0F} // lock cmpxchg16b [rdi]
	xrstor64   = []byte{0x48, 0x0F, 0xAE, 0x2E}       // xrstor64 [rsi]
)

// KernelMode finds out how KVM runs kernel code by a trial: a VM of its own executes a few instructions in 64-bit mode
// at CPL 0. The error says why the mode is [Unknown].
func KernelMode(sys *kvm.System) (Mode, error) {
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		return Unknown, err
	}
	program := append([]byte(nil), cmpxchg16b...)
	if hasXSAVE(cpuid) {
		program = append(program, xrstor64...)
	}
	return try(sys, cpuid, program)
}

// try runs instructions in a VM.
func try(sys *kvm.System, cpuid []kvm.CPUIDEntry, program []byte) (mode Mode, err error) {
	mem, err := memory.Map(memory.Range{Size: ramSize})
	if err != nil {
		return Unknown, err
	}
	defer func() { err = errors.Join(err, mem.Close()) }()
	vm, err := sys.CreateVM()
	if err != nil {
		return Unknown, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	ram := mem.Regions()[0].Bytes
	region := kvm.MemoryRegion{MemorySize: ramSize, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&ram[0])))}
	if err := vm.SetUserMemoryRegion(region); err != nil {
		return Unknown, err
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return Unknown, err
	}
	defer func() { err = errors.Join(err, cpu.Close()) }()

	if err := cpu.SetCPUID2(cpuid); err != nil {
		return Unknown, err
	}
	copy(ram[code:], append(program, hlt))
	if err := enterLongMode(cpu, ram, hasXSAVE(cpuid)); err != nil {
		return Unknown, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = cpu.Run() // signals are for the rest of the process
	}
	if err != nil {
		return Unknown, fmt.Errorf("run the trial of kernel mode: %w", err)
	}
	switch reason := cpu.ExitReason(); {
	case reason == kvm.ExitHLT:
		return Hardware, nil
	case reason == kvm.ExitInternalError && cpu.InternalError().Suberror == kvm.SuberrorEmulation:
		return Emulated, nil
	default:
		return Unknown, fmt.Errorf("the trial of kernel mode ended with %v", reason)
	}
}

// hasXSAVE looks at CPUID.01H:ECX.XSAVE[26]: a processor too old for it needs no XRSTOR to run a kernel.
func hasXSAVE(cpuid []kvm.CPUIDEntry) bool {
	for _, e := range cpuid {
		if e.Function == 1 {
			return e.ECX&(1<<26) != 0
		}
	}
	return false
}

// enterLongMode makes the vCPU start at code in 64-bit mode, with the memory mapped to itself: Intel SDM vol. 3A §4.5,
// §10.8.5. Without an interrupt table each exception is a triple fault, so that the trial always ends.
func enterLongMode(cpu *kvm.VCPU, ram []byte, xsave bool) error {
	const (
		presentWritable = 1<<0 | 1<<1
		large           = 1 << 7 // a page of 2 MiB

		cr0PE, cr0MP, cr0NE, cr0PG = 1 << 0, 1 << 1, 1 << 5, 1 << 31
		cr4PAE, cr4OSFXSR          = 1 << 5, 1 << 9
		cr4OSXSAVE                 = 1 << 18
		eferLME, eferLMA           = 1 << 8, 1 << 10
	)
	binary.LittleEndian.PutUint64(ram[pml4:], pdpt|presentWritable)
	binary.LittleEndian.PutUint64(ram[pdpt:], pageDir|presentWritable)
	binary.LittleEndian.PutUint64(ram[pageDir:], large|presentWritable)

	s, err := cpu.GetSregs()
	if err != nil {
		return err
	}
	data := kvm.Segment{Limit: 0xFFFF_FFFF, Selector: 0x10, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CS = kvm.Segment{Limit: 0xFFFF_FFFF, Selector: 0x08, Type: 11, Present: 1, L: 1, S: 1, G: 1}
	s.IDT = kvm.DTable{}
	s.CR0 = cr0PE | cr0MP | cr0NE | cr0PG
	s.CR3 = pml4
	s.CR4 = cr4PAE | cr4OSFXSR
	if xsave {
		s.CR4 |= cr4OSXSAVE
	}
	s.EFER = eferLME | eferLMA
	if err := cpu.SetSregs(&s); err != nil {
		return err
	}
	// XRSTOR restores what EDX:EAX names: the x87 state.
	return cpu.SetRegs(&kvm.Regs{RIP: code, RFLAGS: 2, RSP: ramSize, RAX: 1, RDI: operand, RSI: xsaveArea})
}
