package kvm

import "fmt"

// Cap is a capability of KVM (KVM_CHECK_EXTENSION).
type Cap int

// The capabilities that a monitor of this kind asks for.
const (
	CapIRQChip                Cap = 0
	CapUserMemory             Cap = 3
	CapSetTSSAddr             Cap = 4
	CapExtCPUID               Cap = 7
	CapClocksource            Cap = 8
	CapNRVCPUs                Cap = 9  // recommended number of vCPUs in a VM
	CapNRMemslots             Cap = 10 // number of memslots in a VM
	CapMPState                Cap = 14
	CapIRQRouting             Cap = 25 // number of GSIs that can be routed
	CapIRQFD                  Cap = 32
	CapPIT2                   Cap = 33
	CapIOEventFD              Cap = 36
	CapSetIdentityMapAddr     Cap = 37
	CapAdjustClock            Cap = 39 // flags that ClockData may have
	CapInternalErrorData      Cap = 40
	CapVCPUEvents             Cap = 41
	CapTSCControl             Cap = 60
	CapGetTSCKHz              Cap = 61
	CapMaxVCPUs               Cap = 66 // greatest number of vCPUs in a VM
	CapTSCDeadlineTimer       Cap = 72
	CapKVMClockCtrl           Cap = 76
	CapSignalMSI              Cap = 77
	CapReadonlyMem            Cap = 81
	CapIRQFDResample          Cap = 82
	CapEnableCapVM            Cap = 98
	CapCheckExtensionVM       Cap = 105
	CapSplitIRQChip           Cap = 121
	CapIOEventFDAnyLength     Cap = 122
	CapMaxVCPUID              Cap = 128 // upper bound of vCPU ids, exclusive
	CapX2APICAPI              Cap = 129 // flags that it may be enabled with
	CapImmediateExit          Cap = 136
	CapX86DisableExits        Cap = 143 // exits that may be disabled
	CapGetMSRFeatures         Cap = 153
	CapCoalescedPIO           Cap = 162
	CapExitOnEmulationFailure Cap = 204
	CapSystemEventData        Cap = 215
	CapTripleFaultEvent       Cap = 218
)

// capNames are the names of linux/kvm.h.
var capNames = map[Cap]string{
	CapIRQChip:                "KVM_CAP_IRQCHIP",
	CapUserMemory:             "KVM_CAP_USER_MEMORY",
	CapSetTSSAddr:             "KVM_CAP_SET_TSS_ADDR",
	CapExtCPUID:               "KVM_CAP_EXT_CPUID",
	CapClocksource:            "KVM_CAP_CLOCKSOURCE",
	CapNRVCPUs:                "KVM_CAP_NR_VCPUS",
	CapNRMemslots:             "KVM_CAP_NR_MEMSLOTS",
	CapMPState:                "KVM_CAP_MP_STATE",
	CapIRQRouting:             "KVM_CAP_IRQ_ROUTING",
	CapIRQFD:                  "KVM_CAP_IRQFD",
	CapPIT2:                   "KVM_CAP_PIT2",
	CapIOEventFD:              "KVM_CAP_IOEVENTFD",
	CapSetIdentityMapAddr:     "KVM_CAP_SET_IDENTITY_MAP_ADDR",
	CapAdjustClock:            "KVM_CAP_ADJUST_CLOCK",
	CapInternalErrorData:      "KVM_CAP_INTERNAL_ERROR_DATA",
	CapVCPUEvents:             "KVM_CAP_VCPU_EVENTS",
	CapTSCControl:             "KVM_CAP_TSC_CONTROL",
	CapGetTSCKHz:              "KVM_CAP_GET_TSC_KHZ",
	CapMaxVCPUs:               "KVM_CAP_MAX_VCPUS",
	CapTSCDeadlineTimer:       "KVM_CAP_TSC_DEADLINE_TIMER",
	CapKVMClockCtrl:           "KVM_CAP_KVMCLOCK_CTRL",
	CapSignalMSI:              "KVM_CAP_SIGNAL_MSI",
	CapReadonlyMem:            "KVM_CAP_READONLY_MEM",
	CapIRQFDResample:          "KVM_CAP_IRQFD_RESAMPLE",
	CapEnableCapVM:            "KVM_CAP_ENABLE_CAP_VM",
	CapCheckExtensionVM:       "KVM_CAP_CHECK_EXTENSION_VM",
	CapSplitIRQChip:           "KVM_CAP_SPLIT_IRQCHIP",
	CapIOEventFDAnyLength:     "KVM_CAP_IOEVENTFD_ANY_LENGTH",
	CapMaxVCPUID:              "KVM_CAP_MAX_VCPU_ID",
	CapX2APICAPI:              "KVM_CAP_X2APIC_API",
	CapImmediateExit:          "KVM_CAP_IMMEDIATE_EXIT",
	CapX86DisableExits:        "KVM_CAP_X86_DISABLE_EXITS",
	CapGetMSRFeatures:         "KVM_CAP_GET_MSR_FEATURES",
	CapCoalescedPIO:           "KVM_CAP_COALESCED_PIO",
	CapExitOnEmulationFailure: "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
	CapSystemEventData:        "KVM_CAP_SYSTEM_EVENT_DATA",
	CapTripleFaultEvent:       "KVM_CAP_X86_TRIPLE_FAULT_EVENT",
}

// String returns the name that linux/kvm.h gives the capability, or its number in KVM_CAP(n).
func (c Cap) String() string {
	if name, ok := capNames[c]; ok {
		return name
	}
	return fmt.Sprintf("KVM_CAP(%d)", int(c))
}
