package kvm

import (
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

// The golden file holds what the kernel's headers say. It is embedded, so that the test binary can be carried to
// another machine.
//
//go:embed testdata/abi.golden
var abiGolden string

const abiGoldenPath = "testdata/abi.golden"

// A fact is an expression of C and the value that this package has for it.
type fact struct {
	expr  string
	value uint64
}

// TestABI checks every size, offset and number against the golden file, and the golden file against the headers where
// there is a C compiler.
func TestABI(t *testing.T) {
	facts := append(numbers(), layouts()...)
	var got strings.Builder
	for _, f := range facts {
		fmt.Fprintf(&got, "%s = %#x\n", f.expr, f.value)
	}
	golden := abiGolden
	if cc, err := exec.LookPath("cc"); err == nil {
		header := compile(t, cc, facts)
		if *update {
			require.NoError(t, os.WriteFile(abiGoldenPath, []byte(header), 0o644))
			golden = header
		}
		// A header older than the golden file lacks some of its names, and has none with another value.
		known := lines(golden)
		other := slices.DeleteFunc(lines(header), func(l string) bool { return slices.Contains(known, l) })
		require.Empty(t, other, "the kernel's headers differ from the golden file")
	} else {
		require.False(t, *update, "-update needs a C compiler: apt-get install gcc linux-libc-dev")
	}
	require.Equal(t, lines(golden), lines(got.String()))
}

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

// compile returns the lines of the golden file as the kernel's headers have them.
func compile(t *testing.T, cc string, facts []fact) string {
	var src strings.Builder
	src.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {\n")
	for _, f := range facts {
		line := fmt.Sprintf("printf(\"%s = %%#llx\\n\", (unsigned long long)(%s));\n", f.expr, f.expr)
		if strings.HasPrefix(f.expr, "KVM_") {
			line = "#ifdef " + f.expr + "\n" + line + "#endif\n"
		}
		src.WriteString(line)
	}
	src.WriteString("}\n")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	require.NoError(t, os.WriteFile(file, []byte(src.String()), 0o644))
	out, err := exec.Command(cc, "-o", program, file).CombinedOutput()
	require.NoError(t, err, "%s: install the headers with: apt-get install linux-libc-dev", out)
	out, err = exec.Command(program).Output()
	require.NoError(t, err)
	// printf has no 0x before a zero.
	return strings.ReplaceAll(string(out), " = 0\n", " = 0x0\n")
}

func numbers() []fact {
	facts := []fact{
		{"KVM_API_VERSION", APIVersion},

		{"KVM_GET_API_VERSION", kvmGetAPIVersion},
		{"KVM_CREATE_VM", kvmCreateVM},
		{"KVM_GET_MSR_INDEX_LIST", uint64(kvmGetMSRIndexList)},
		{"KVM_CHECK_EXTENSION", kvmCheckExtension},
		{"KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize},
		{"KVM_GET_SUPPORTED_CPUID", kvmGetSupportedCPUID},
		{"KVM_GET_MSR_FEATURE_INDEX_LIST", uint64(kvmGetMSRFeatureIndexList)},

		{"KVM_CREATE_VCPU", kvmCreateVCPU},
		{"KVM_SET_USER_MEMORY_REGION", uint64(kvmSetUserMemoryRegion)},
		{"KVM_SET_TSS_ADDR", kvmSetTSSAddr},
		{"KVM_SET_IDENTITY_MAP_ADDR", uint64(kvmSetIdentityMapAddr)},
		{"KVM_CREATE_IRQCHIP", kvmCreateIRQChip},
		{"KVM_IRQ_LINE", uint64(kvmIRQLine)},
		{"KVM_SET_GSI_ROUTING", kvmSetGSIRouting},
		{"KVM_COALESCED_MMIO_PAGE_OFFSET", coalescedPage},
		{"offsetof(struct kvm_coalesced_mmio_ring, last)", uint64(unsafe.Offsetof(coalescedRing{}.last))},
		{"offsetof(struct kvm_coalesced_mmio_ring, coalesced_mmio)", uint64(unsafe.Offsetof(coalescedRing{}.writes))},
		{"KVM_REGISTER_COALESCED_MMIO", uint64(kvmRegisterCoalesced)},
		{"KVM_UNREGISTER_COALESCED_MMIO", uint64(kvmUnregisterCoalesced)},
		{"KVM_IRQFD", uint64(kvmIRQFD)},
		{"KVM_CREATE_PIT2", uint64(kvmCreatePIT2)},
		{"KVM_IOEVENTFD", uint64(kvmIOEventFD)},
		{"KVM_SET_CLOCK", uint64(kvmSetClock)},
		{"KVM_GET_CLOCK", uint64(kvmGetClock)},
		{"KVM_ENABLE_CAP", uint64(kvmEnableCap)},
		{"KVM_SIGNAL_MSI", uint64(kvmSignalMSI)},

		{"KVM_RUN", kvmRun},
		{"KVM_GET_REGS", uint64(kvmGetRegs)},
		{"KVM_SET_REGS", uint64(kvmSetRegs)},
		{"KVM_GET_SREGS", uint64(kvmGetSregs)},
		{"KVM_SET_SREGS", uint64(kvmSetSregs)},
		{"KVM_GET_MSRS", kvmGetMSRs},
		{"KVM_SET_MSRS", kvmSetMSRs},
		{"KVM_GET_FPU", uint64(kvmGetFPU)},
		{"KVM_SET_FPU", uint64(kvmSetFPU)},
		{"KVM_GET_LAPIC", uint64(kvmGetLAPIC)},
		{"KVM_SET_LAPIC", uint64(kvmSetLAPIC)},
		{"KVM_SET_CPUID2", kvmSetCPUID2},
		{"KVM_GET_MP_STATE", uint64(kvmGetMPState)},
		{"KVM_SET_MP_STATE", uint64(kvmSetMPState)},
		{"KVM_GET_VCPU_EVENTS", uint64(kvmGetVCPUEvents)},
		{"KVM_SET_TSC_KHZ", kvmSetTSCKHz},
		{"KVM_GET_TSC_KHZ", kvmGetTSCKHz},
		{"KVM_KVMCLOCK_CTRL", kvmKVMClockCtrl},

		{"KVM_MEM_LOG_DIRTY_PAGES", MemLogDirtyPages},
		{"KVM_MEM_READONLY", MemReadonly},
		{"KVM_CLOCK_TSC_STABLE", ClockTSCStable},
		{"KVM_CLOCK_REALTIME", ClockRealtime},
		{"KVM_CLOCK_HOST_TSC", ClockHostTSC},
		{"KVM_PIT_SPEAKER_DUMMY", PITSpeakerDummy},
		{"KVM_IRQCHIP_PIC_MASTER", uint64(PICMaster)},
		{"KVM_IRQCHIP_PIC_SLAVE", uint64(PICSlave)},
		{"KVM_IRQCHIP_IOAPIC", uint64(IOAPIC)},
		{"KVM_IRQ_ROUTING_IRQCHIP", routeIRQChip},
		{"KVM_IRQ_ROUTING_MSI", routeMSI},
		{"KVM_IRQFD_FLAG_DEASSIGN", IRQFDDeassign},
		{"KVM_IRQFD_FLAG_RESAMPLE", IRQFDResample},
		{"KVM_IOEVENTFD_FLAG_DATAMATCH", IOEventDatamatch},
		{"KVM_IOEVENTFD_FLAG_PIO", IOEventPIO},
		{"KVM_IOEVENTFD_FLAG_DEASSIGN", IOEventDeassign},
		{"KVM_CPUID_FLAG_SIGNIFCANT_INDEX", CPUIDSignificantIndex},
		{"KVM_MP_STATE_RUNNABLE", uint64(MPRunnable)},
		{"KVM_MP_STATE_UNINITIALIZED", uint64(MPUninitialized)},
		{"KVM_MP_STATE_INIT_RECEIVED", uint64(MPInitReceived)},
		{"KVM_MP_STATE_HALTED", uint64(MPHalted)},
		{"KVM_MP_STATE_SIPI_RECEIVED", uint64(MPSIPIReceived)},
		{"KVM_EXIT_IO_IN", 0},
		{"KVM_EXIT_IO_OUT", ioOut},
		{"KVM_INTERNAL_ERROR_EMULATION", uint64(SuberrorEmulation)},
		{"KVM_INTERNAL_ERROR_SIMUL_EX", uint64(SuberrorSimultaneous)},
		{"KVM_INTERNAL_ERROR_DELIVERY_EV", uint64(SuberrorDelivery)},
		{"KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON", uint64(SuberrorUnexpectedExitReason)},
		{"KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES", emulationHasInstruction},
		{"KVM_SYSTEM_EVENT_SHUTDOWN", uint64(SystemEventShutdown)},
		{"KVM_SYSTEM_EVENT_RESET", uint64(SystemEventReset)},
		{"KVM_SYSTEM_EVENT_CRASH", uint64(SystemEventCrash)},
	}
	var named []fact
	for c, name := range capNames {
		named = append(named, fact{name, uint64(c)})
	}
	for r, name := range exitNames {
		named = append(named, fact{name, uint64(r)})
	}
	slices.SortFunc(named, func(a, b fact) int { return strings.Compare(a.expr, b.expr) })
	return append(facts, named...)
}

func layouts() []fact {
	page := unsafe.Offsetof(runPage{}.exit)
	var facts []fact
	for _, s := range []struct {
		goType reflect.Type
		cType  string
		fields string // of C, for each field of Go that has a name
	}{
		{reflect.TypeFor[CPUIDEntry](), "struct kvm_cpuid_entry2", "function index flags eax ebx ecx edx"},
		{reflect.TypeFor[MemoryRegion](), "struct kvm_userspace_memory_region",
			"slot flags guest_phys_addr memory_size userspace_addr"},
		{reflect.TypeFor[ClockData](), "struct kvm_clock_data", "clock flags realtime host_tsc"},
		{reflect.TypeFor[enableCap](), "struct kvm_enable_cap", "cap flags args"},
		{reflect.TypeFor[pitConfig](), "struct kvm_pit_config", "flags"},
		{reflect.TypeFor[GSIRoute](), "struct kvm_irq_routing_entry", "gsi type u"},
		{reflect.TypeFor[irqLevel](), "struct kvm_irq_level", "irq level"},
		{reflect.TypeFor[msi](), "struct kvm_msi", "address_lo address_hi data flags devid"},
		{reflect.TypeFor[irqfd](), "struct kvm_irqfd", "fd gsi flags resamplefd"},
		{reflect.TypeFor[coalescedZone](), "struct kvm_coalesced_mmio_zone", "addr size pio"},
		{reflect.TypeFor[coalescedWrite](), "struct kvm_coalesced_mmio", "phys_addr len pio data"},
		{reflect.TypeFor[ioeventfd](), "struct kvm_ioeventfd", "datamatch addr len fd flags"},
		{reflect.TypeFor[Regs](), "struct kvm_regs",
			"rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"},
		{reflect.TypeFor[Segment](), "struct kvm_segment",
			"base limit selector type present dpl db s l g avl unusable"},
		{reflect.TypeFor[DTable](), "struct kvm_dtable", "base limit"},
		{reflect.TypeFor[Sregs](), "struct kvm_sregs", "cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer " +
			"apic_base interrupt_bitmap"},
		{reflect.TypeFor[FPU](), "struct kvm_fpu", "fpr fcw fsw ftwx last_opcode last_ip last_dp xmm mxcsr"},
		{reflect.TypeFor[LAPICState](), "struct kvm_lapic_state", "regs"},
		{reflect.TypeFor[MSREntry](), "struct kvm_msr_entry", "index data"},
		{reflect.TypeFor[MPState](), "struct kvm_mp_state", ""},
		{reflect.TypeFor[VCPUEvents](), "struct kvm_vcpu_events", "exception.injected exception.nr " +
			"exception.has_error_code exception.pending exception.error_code interrupt.injected interrupt.nr " +
			"interrupt.soft interrupt.shadow nmi.injected nmi.pending nmi.masked sipi_vector flags smi.smm smi.pending " +
			"smi.smm_inside_nmi smi.latched_init triple_fault.pending exception_has_payload exception_payload"},
	} {
		facts = append(facts, fact{"sizeof(" + s.cType + ")", uint64(s.goType.Size())})
		facts = append(facts, fields(s.goType, s.cType, 0, s.fields)...)
	}

	// The arrays that follow a count, and what is before them.
	for _, s := range []string{"struct kvm_cpuid2", "struct kvm_msrs", "struct kvm_irq_routing"} {
		facts = append(facts, fact{"offsetof(" + s + ", entries)", listHeader})
	}
	facts = append(facts,
		fact{"offsetof(struct kvm_msr_list, indices)", 4},
		fact{"offsetof(struct kvm_irq_routing_entry, u.irqchip.irqchip)", uint64(unsafe.Offsetof(GSIRoute{}.u))},
		fact{"offsetof(struct kvm_irq_routing_entry, u.irqchip.pin)", uint64(unsafe.Offsetof(GSIRoute{}.u)) + 4},
		fact{"offsetof(struct kvm_irq_routing_entry, u.msi.address_lo)", uint64(unsafe.Offsetof(GSIRoute{}.u))},
		fact{"offsetof(struct kvm_irq_routing_entry, u.msi.address_hi)", uint64(unsafe.Offsetof(GSIRoute{}.u)) + 4},
		fact{"offsetof(struct kvm_irq_routing_entry, u.msi.data)", uint64(unsafe.Offsetof(GSIRoute{}.u)) + 8},
		fact{"offsetof(struct kvm_run, request_interrupt_window)", uint64(unsafe.Offsetof(runPage{}.request))},
		fact{"1 << 8 * offsetof(struct kvm_run, immediate_exit)", immediateExit},
		fact{"offsetof(struct kvm_run, exit_reason)", uint64(unsafe.Offsetof(runPage{}.exitReason))},
		fact{"sizeof(((struct kvm_run *)0)->padding)", uint64(unsafe.Sizeof(runPage{}.exit))},
	)
	// The members of the union in kvm_run.
	for _, s := range []struct {
		goType reflect.Type
		fields string
	}{
		{reflect.TypeFor[ioExit](), "io.direction io.size io.port io.count io.data_offset"},
		{reflect.TypeFor[mmioExit](), "mmio.phys_addr mmio.data mmio.len mmio.is_write"},
		{reflect.TypeFor[failEntryExit](), "fail_entry.hardware_entry_failure_reason fail_entry.cpu"},
		{reflect.TypeFor[internalExit](), "internal.suberror internal.ndata internal.data"},
		{reflect.TypeFor[internalExit](), "system_event.type system_event.ndata system_event.data"},
	} {
		facts = append(facts, fields(s.goType, "struct kvm_run", page, s.fields)...)
	}
	// An emulation failure's data are flags, a length, and bytes.
	data := uint64(page + unsafe.Offsetof(internalExit{}.data))
	return append(facts,
		fact{"offsetof(struct kvm_run, emulation_failure.flags)", data},
		fact{"offsetof(struct kvm_run, emulation_failure.insn_size)", data + 8},
		fact{"offsetof(struct kvm_run, emulation_failure.insn_bytes)", data + 9},
		fact{"sizeof(((struct kvm_run *)0)->emulation_failure.insn_bytes)", maxInstruction})
}

// fields returns the offset and the size of each named field of a struct, of those without a type name also inside.
func fields(goType reflect.Type, cType string, base uintptr, cNames string) []fact {
	names := strings.Fields(cNames)
	var facts []fact
	var walk func(reflect.Type, uintptr)
	walk = func(t reflect.Type, base uintptr) {
		for i := range t.NumField() {
			f := t.Field(i)
			switch {
			case f.Name == "_":
			case f.Type.Kind() == reflect.Struct && f.Type.Name() == "":
				walk(f.Type, base+f.Offset)
			default:
				facts = append(facts,
					fact{fmt.Sprintf("offsetof(%s, %s)", cType, names[0]), uint64(base + f.Offset)},
					fact{fmt.Sprintf("sizeof(((%s *)0)->%s)", cType, names[0]), uint64(f.Type.Size())})
				names = names[1:]
			}
		}
	}
	if len(names) > 0 {
		walk(goType, base)
	}
	return facts
}

func TestNames(t *testing.T) {
	require.Equal(t, "KVM_CAP_IRQCHIP", CapIRQChip.String())
	require.Equal(t, "KVM_CAP(9999)", Cap(9999).String())
	require.Equal(t, "KVM_EXIT_MMIO", ExitMMIO.String())
	require.Equal(t, "KVM_EXIT(9999)", ExitReason(9999).String())
	require.Equal(t, "emulation failure", SuberrorEmulation.String())
	require.Equal(t, "simultaneous exceptions", SuberrorSimultaneous.String())
	require.Equal(t, "exit during event delivery", SuberrorDelivery.String())
	require.Equal(t, "unexpected exit reason", SuberrorUnexpectedExitReason.String())
	require.Equal(t, "suberror 99", Suberror(99).String())
	require.Equal(t, "kvm api version 11, want 12", (&VersionError{Version: 11}).Error())
}
