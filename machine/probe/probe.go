// Package probe tells what a host's KVM offers to this monitor and what it lacks, with a remedy for each lack.
package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/kvm"
)

// Report is what [Host] found. Its JSON form is an interface: names stay, and new ones may come.
type Report struct {
	Device       Device       `json:"device"`
	APIVersion   int          `json:"api_version"` // 0 where it could not be asked
	KernelMode   Mode         `json:"kernel_mode"`
	Limits       Limits       `json:"limits"`
	CPU          CPU          `json:"cpu"`
	Modules      []Module     `json:"modules"`
	Capabilities []Capability `json:"capabilities"` // none where KVM could not be asked
	Problems     []Problem    `json:"problems"`
}

// OK reports whether virtual machines with stock kernels run here.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Device is the file through which KVM is reached.
type Device struct {
	Path   string `json:"path"`
	Exists bool   `json:"exists"`
	Mode   string `json:"mode"`  // type and permission bits, as ls has them
	Opens  bool   `json:"opens"` // for reading and writing, and it is KVM
}

// Limits are those of one VM.
type Limits struct {
	RecommendedVCPUs int `json:"recommended_vcpus"`
	MaxVCPUs         int `json:"max_vcpus"`
	MaxVCPUID        int `json:"max_vcpu_id"` // exclusive
	Memslots         int `json:"memslots"`
}

// CPU is what /proc/cpuinfo says of the host's processor.
type CPU struct {
	Vendor string `json:"vendor"`
	Model  string `json:"model"`
	// Virtualization is the flag of the hardware's support: "vmx" (Intel), "svm" (AMD) or none.
	Virtualization string `json:"virtualization"`
	// Hypervisor tells that the host is itself a virtual machine.
	Hypervisor bool `json:"hypervisor"`
}

// Module is a part of KVM in the host's kernel, loaded or built in.
type Module struct {
	Name   string `json:"name"`
	Nested string `json:"nested"` // the parameter of that name, "Y", "N", "1" or "0"; empty where there is none
}

// Capability is one that the monitor uses, as this host has it.
type Capability struct {
	Name     string `json:"name"`  // as in linux/kvm.h
	Value    int    `json:"value"` // 0 is its absence
	Required bool   `json:"required"`
	Purpose  string `json:"purpose"` // what the monitor uses it for
}

// Problem is a reason why virtual machines don't run here, and what helps.
type Problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// Host examines this host, and KVM at path.
func Host(path string) Report {
	p := prober{root: os.DirFS("/"), open: func(path string) (system, error) {
		s, err := kvm.Open(path)
		if err != nil {
			return nil, err // not s: a nil pointer would make an interface that is not nil
		}
		return hostKVM{s}, nil
	}}
	return p.report(path)
}

// system is an open KVM.
type system interface {
	Extension(kvm.Cap) (int, error)
	KernelMode() (Mode, error)
	Close() error
}

type hostKVM struct{ *kvm.System }

func (k hostKVM) KernelMode() (Mode, error) { return KernelMode(k.System) }

// A prober knows where to look: on a host, or in a test's imitation of one.
type prober struct {
	root fs.FS // with /proc, /sys and /dev
	open func(path string) (system, error)
}

func (p *prober) report(path string) Report {
	r := Report{
		Device:     Device{Path: path},
		KernelMode: Unknown,
		CPU:        readCPU(p.root),
		Modules:    readModules(p.root),
		// Empty lists, not null, in JSON.
		Capabilities: []Capability{},
		Problems:     []Problem{},
	}
	if abs, err := filepath.Abs(path); err == nil {
		if info, err := fs.Stat(p.root, strings.TrimPrefix(abs, "/")); err == nil {
			r.Device.Exists = true
			// Go marks each device with a D before its kind.
			r.Device.Mode = strings.TrimPrefix(info.Mode().String(), "D")
		}
	}
	if err := p.ask(&r); err != nil {
		r.Problems = append(r.Problems, Problem{What: err.Error(), Remedy: r.remedy(err)})
	}
	return r
}

// ask fills in what KVM itself says.
func (p *prober) ask(r *Report) (err error) {
	sys, err := p.open(r.Device.Path)
	if version := (*kvm.VersionError)(nil); errors.As(err, &version) {
		r.APIVersion = version.Version
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	r.Device.Opens, r.APIVersion = true, kvm.APIVersion

	if r.Capabilities, err = capabilities(sys); err != nil {
		return err
	}
	for _, c := range r.Capabilities {
		if c.Required && c.Value == 0 {
			r.Problems = append(r.Problems, Problem{
				What:   fmt.Sprintf("KVM lacks %s: %s", c.Name, c.Purpose),
				Remedy: "update the host's kernel: Linux 4.12 and later have all that is required",
			})
		}
	}
	if r.Limits, err = limits(sys); err != nil {
		return err
	}
	if r.KernelMode, err = sys.KernelMode(); err != nil {
		return err
	}
	if r.KernelMode == Emulated {
		r.Problems = append(r.Problems, Problem{
			What:   "KVM here emulates the guest's kernel code, and lacks instructions that stock kernels use",
			Remedy: r.remedyEmulated(),
		})
	}
	return nil
}

// remedy says what helps against an error of opening or trying KVM.
func (r *Report) remedy(err error) string {
	version := (*kvm.VersionError)(nil)
	switch {
	case errors.As(err, &version):
		return "use a kernel with the stable KVM API, version 12: Linux 2.6.22 and later have it"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return r.remedyAbsent()
	case errors.Is(err, fs.ErrPermission):
		return "join the group that owns the device with: sudo usermod -aG kvm $USER, and log in again" +
			" (in a container: give it the device, for example with --device " + r.Device.Path + ")"
	case errors.Is(err, unix.EBUSY):
		return "stop the other hypervisor that has taken the processor's virtualization, for example VirtualBox or VMware"
	case errors.Is(err, unix.ENOTTY):
		return "name the KVM device, as a rule " + kvm.DefaultPath
	}
	return "see what the kernel says with: sudo dmesg | grep -i kvm"
}

// remedyNested is for a host that is a virtual machine and sees no virtualization of its processor.
const remedyNested = "this host is itself a virtual machine: switch nested virtualization on in the host below it" +
	" (for KVM: modprobe kvm_intel nested=1, or kvm_amd nested=1, and a guest CPU like the host's)"

// remedyEmulated says what helps where KVM does not use the processor's virtualization.
func (r *Report) remedyEmulated() string {
	if r.CPU.Virtualization == "" && r.CPU.Hypervisor {
		return remedyNested + ", or use another host"
	}
	return "use a host whose KVM works by the processor's virtualization (Intel VT-x, AMD-V)"
}

// remedyAbsent says what helps where there is no KVM device.
func (r *Report) remedyAbsent() string {
	vendorModule := map[string]string{"vmx": "kvm_intel", "svm": "kvm_amd"}[r.CPU.Virtualization]
	loaded := slices.ContainsFunc(r.Modules, func(m Module) bool { return m.Name == vendorModule })
	switch {
	case vendorModule == "" && r.CPU.Hypervisor:
		return remedyNested
	case vendorModule == "":
		return "switch virtualization on in the firmware's set-up (Intel VT-x, or AMD SVM); if it has no such setting," +
			" this processor cannot run virtual machines"
	case loaded:
		return "the module " + vendorModule + " is loaded: in a container, give it the device, for example with --device " +
			kvm.DefaultPath
	}
	return "load the module with: sudo modprobe " + vendorModule +
		" (if it refuses, switch virtualization on in the firmware's set-up)"
}
