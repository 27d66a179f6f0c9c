// Package measure times virtual machine monitors, counts the exits to user space of their guests and weighs their
// processes, each beside its peers in one run: a figure alone says more about the machine than about the monitor.
package measure

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
)

// Plan is what a run measures; as JSON it is the runner's input.
type Plan struct {
	VMM     string // program
	QEMU    string // program
	QEMUCPU string // for QEMU's -cpu
	Memory  uint64 // of the guests, in bytes

	Initrd string // u-root, for the starts
	Init   string // the initramfs with the init of test/bench/init, for the boots

	Starts    []Kernel
	StartRuns int // of each monitor with each kernel
	Boots     []Kernel
	BootRuns  int // the same, of those that are timed

	Devices    *DevicePlan    `json:",omitempty"` // nil: not measured
	Containers *ContainerPlan `json:",omitempty"` // the same
}

// Kernel is a guest's.
type Kernel struct {
	Name string // in reports
	Path string
}

// Report is what came out; as JSON it is the runner's output.
type Report struct {
	Host    string // the release of the kernel that the monitors ran on
	Starts  []Times
	Boots   []Times
	Exits   []Exits
	Sizes   []Size
	Disks   []Rates
	Nets    []Rates
	Systems []Times

	Containers []Times
	Timelines  []Timeline
}

// Times are those of one monitor with one kernel.
type Times struct {
	Monitor, Kernel string
	Seconds         []float64
}

// Monitor names, as reports have them.
const (
	VMM     = "vmm"
	Q35     = "QEMU q35"
	MicroVM = "QEMU microvm"
)

const (
	loud  = "console=ttyS0 panic=-1"
	quiet = loud + " quiet"
)

// command returns the arguments that make the monitor boot the kernel, its standard streams being the console. QEMU gets
// the options of a user who wants it quick.
func (p *Plan) command(monitor, kernel, initrd, cmdline string) []string {
	mem := strconv.FormatUint(p.Memory>>20, 10) + "M"
	if monitor == VMM {
		return []string{p.VMM, "-kernel", kernel, "-initrd", initrd, "-mem", mem, "-cmdline", cmdline}
	}
	machine := "q35"
	if monitor == MicroVM {
		machine = "microvm"
	}
	return []string{
		p.QEMU, "-M", machine, "-accel", "kvm", "-cpu", p.QEMUCPU, "-m", mem, "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd, "-append", cmdline,
	}
}

// Run measures all that the plan says; progress gets a line for each measurement.
func Run(ctx context.Context, p *Plan, progress func(format string, args ...any)) (*Report, error) {
	// What launch starts ends with the thread that started it, and this one lasts.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	host, err := release()
	if err != nil {
		return nil, err
	}
	r := &Report{Host: host}
	for _, kernel := range p.Starts {
		pair := []string{VMM, MicroVM}
		start := func(monitor string) (float64, error) {
			return startTime(ctx, p.command(monitor, kernel.Path, p.Initrd, quiet))
		}
		// Once without counting, to read the files into the page cache.
		if _, err := interleave(kernel.Name, pair, 1, progress, start); err != nil {
			return nil, fmt.Errorf("time from exec to the first KVM_RUN: %w", err)
		}
		times, err := interleave(kernel.Name, pair, p.StartRuns, progress, start)
		if err != nil {
			return nil, fmt.Errorf("time from exec to the first KVM_RUN: %w", err)
		}
		r.Starts = append(r.Starts, times...)
	}
	monitors := []string{VMM, Q35, MicroVM}
	for _, kernel := range p.Boots {
		times, err := interleave(kernel.Name, monitors, p.BootRuns, progress, func(monitor string) (float64, error) {
			return bootTime(ctx, p.command(monitor, kernel.Path, p.Init, quiet))
		})
		if err != nil {
			return nil, fmt.Errorf("time from exec to init: %w", err)
		}
		r.Boots = append(r.Boots, times...)
	}
	if p.Devices != nil {
		if err := p.measureDevices(ctx, r, progress); err != nil {
			return nil, err
		}
	}
	if p.Containers != nil {
		if err := p.measureContainers(ctx, r, progress); err != nil {
			return nil, fmt.Errorf("containers: %w", err)
		}
	}
	if len(p.Boots) == 0 {
		return r, nil
	}
	kernel := p.Boots[0] // neither memory nor exits depend much on it
	for _, monitor := range monitors {
		s, err := weigh(ctx, p.command(monitor, kernel.Path, p.Init, quiet), p.Memory)
		if err != nil {
			return nil, fmt.Errorf("memory of %s with %s: %w", monitor, kernel.Name, err)
		}
		s.Monitor, s.Kernel = monitor, kernel.Name
		progress("%s, %s: %d KiB resident beyond the guest's memory", kernel.Name, monitor, s.RSS>>10)
		r.Sizes = append(r.Sizes, *s)
	}
	for _, cmdline := range []string{quiet, loud} {
		for _, monitor := range monitors {
			e, err := countExits(ctx, p.command(monitor, kernel.Path, p.Init, cmdline))
			if err != nil {
				return nil, fmt.Errorf("exits of %s with %s: %w", monitor, kernel.Name, err)
			}
			e.Monitor, e.Kernel, e.Quiet = monitor, kernel.Name, cmdline == quiet
			progress("%s, %s, quiet %t: %d exits to user space", kernel.Name, monitor, e.Quiet, e.Total)
			r.Exits = append(r.Exits, *e)
		}
	}
	return r, nil
}

// interleave measures one monitor after the other, again and again, so that a slow minute of the machine is one for all.
func interleave(kernel string, monitors []string, runs int, progress func(string, ...any),
	measure func(monitor string) (float64, error),
) ([]Times, error) {
	all := make([]Times, len(monitors))
	for i, monitor := range monitors {
		all[i] = Times{Monitor: monitor, Kernel: kernel}
	}
	for range runs {
		for i, monitor := range monitors {
			seconds, err := measure(monitor)
			if err != nil {
				return nil, fmt.Errorf("%s with %s: %w", monitor, kernel, err)
			}
			progress("%s, %s: %.4f s", all[i].Kernel, monitor, seconds)
			all[i].Seconds = append(all[i].Seconds, seconds)
		}
	}
	return all, nil
}
