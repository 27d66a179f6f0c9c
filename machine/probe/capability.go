package probe

import "vmm/kvm"

// Capabilities returns those that the monitor uses, with the values that they have on this host.
func Capabilities(sys *kvm.System) ([]Capability, error) { return capabilities(hostKVM{sys}) }

func capabilities(sys system) ([]Capability, error) {
	const required, optional = true, false
	all := []struct {
		id       kvm.Cap
		required bool
		purpose  string
	}{
		{kvm.CapUserMemory, required, "guest memory"},
		{kvm.CapExtCPUID, required, "the processor that the guest sees"},
		{kvm.CapSetTSSAddr, required, "real mode on Intel processors"},
		{kvm.CapSetIdentityMapAddr, required, "real mode on Intel processors"},
		{kvm.CapIRQChip, required, "PIC, IOAPIC and local APICs in the kernel"},
		{kvm.CapIRQRouting, required, "the table of interrupt routes"},
		{kvm.CapIRQFD, required, "interrupts of virtio devices without a system call in the monitor"},
		{kvm.CapPIT2, required, "the PIT in the kernel"},
		{kvm.CapImmediateExit, required, "stopping a vCPU without losing the stop"},
		{kvm.CapIOEventFD, optional, "kicks of virtio devices without an exit"},
		{kvm.CapTSCDeadlineTimer, optional, "the guest's most precise timer"},
		{kvm.CapClocksource, optional, "kvmclock, the paravirtual clock"},
		{kvm.CapCoalescedPIO, optional, "fewer exits in serial output"},
		{kvm.CapInternalErrorData, optional, "the diagnosis of KVM's internal errors"},
	}
	list := make([]Capability, 0, len(all))
	for _, c := range all {
		value, err := sys.Extension(c.id)
		if err != nil {
			return list, err
		}
		list = append(list, Capability{Name: c.id.String(), Value: value, Required: c.required, Purpose: c.purpose})
	}
	return list, nil
}

func limits(sys system) (Limits, error) {
	var l Limits
	for _, f := range []struct {
		id    kvm.Cap
		value *int
	}{
		{kvm.CapNRVCPUs, &l.RecommendedVCPUs},
		{kvm.CapMaxVCPUs, &l.MaxVCPUs},
		{kvm.CapMaxVCPUID, &l.MaxVCPUID},
		{kvm.CapNRMemslots, &l.Memslots},
	} {
		var err error
		if *f.value, err = sys.Extension(f.id); err != nil {
			return l, err
		}
	}
	return l, nil
}
