package kvm

import "fmt"

// CPUIDSignificantIndex is a flag of a [CPUIDEntry]: the leaf has subleaves, and the entry is the one of Index.
const CPUIDSignificantIndex = 1 << 0

// CPUIDEntry is a CPUID leaf (kvm_cpuid_entry2).
type CPUIDEntry struct {
	Function uint32 // the guest's EAX
	Index    uint32 // the guest's ECX
	Flags    uint32
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
	_        [3]uint32
}

// SetCPUID2 says what the guest's CPUID instruction answers (KVM_SET_CPUID2). Before the vCPU first runs.
func (c *VCPU) SetCPUID2(entries []CPUIDEntry) error {
	return c.do(fmt.Sprintf("set %d cpuid entries", len(entries)), kvmSetCPUID2, listOf(entries).pointer())
}
