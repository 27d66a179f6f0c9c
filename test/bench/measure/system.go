package measure

import (
	"context"
	"strconv"
)

// SystemPlan is a disk image with a whole system on it, and what its boot loader would start: QEMU has to be told.
type SystemPlan struct {
	Image  string // qcow2; it is not written to
	Kernel string
	Initrd string
	Append string
	Runs   int // of each monitor
}

// measureSystem times boots from exec to the login prompt, each from the image as it came: with a user network, without a word
// for cloud-init.
func (p *Plan) measureSystem(ctx context.Context, r *Report, progress func(string, ...any)) error {
	s, mem := p.Devices.System, strconv.FormatUint(p.Memory>>20, 10)+"M"
	commands := map[string][]string{
		VMM: {p.VMM, "-disk", s.Image + ",snapshot", "-mem", mem},
		Q35: {
			p.QEMU, "-M", "q35", "-accel", "kvm", "-cpu", p.QEMUCPU, "-m", mem, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
			"-drive", "if=none,id=disk,format=qcow2,snapshot=on,file=" + s.Image, "-device", "virtio-blk-pci,drive=disk",
			"-netdev", "user,id=net", "-device", "virtio-net-pci,romfile=,netdev=net",
			"-kernel", s.Kernel, "-initrd", s.Initrd, "-append", s.Append,
		},
	}
	times, err := interleave("Debian 12, cloud image", []string{VMM, Q35}, s.Runs, progress, func(monitor string) (float64, error) {
		return timeUntil(ctx, commands[monitor], " login: ")
	})
	r.Systems = times
	return err
}
