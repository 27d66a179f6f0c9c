package machine

import (
	"errors"
	"fmt"

	"vmm/kvm"
	"vmm/machine/probe"
)

// checkHost makes sure that KVM has what a machine needs before anything is built on it.
func checkHost(sys *kvm.System, cpus int) error {
	caps, err := probe.Capabilities(sys)
	if err != nil {
		return err
	}
	for _, c := range caps {
		if c.Required && c.Value == 0 {
			return fmt.Errorf("this host's KVM lacks %s, for %s: %w", c.Name, c.Purpose, errors.ErrUnsupported)
		}
	}
	most, err := sys.Extension(kvm.CapMaxVCPUs)
	if err != nil {
		return err
	}
	if most > 0 && cpus > most {
		return &ConfigError{"CPUs", fmt.Errorf("%d is more than this host's KVM can run, %d", cpus, most)}
	}
	return nil
}
