package probe

import (
	"io/fs"
	"path"
	"slices"
	"strings"
)

// readCPU reads the first processor of /proc/cpuinfo (Linux arch/x86/kernel/cpu/proc.c). What it does not find stays
// empty.
func readCPU(root fs.FS) CPU {
	table, err := fs.ReadFile(root, "proc/cpuinfo")
	if err != nil {
		return CPU{}
	}
	var c CPU
	first, _, _ := strings.Cut(string(table), "\n\n")
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "vendor_id":
			c.Vendor = value
		case "model name":
			c.Model = value
		case "flags":
			flags := strings.Fields(value)
			for _, f := range []string{"vmx", "svm"} {
				if slices.Contains(flags, f) {
					c.Virtualization = f
				}
			}
			c.Hypervisor = slices.Contains(flags, "hypervisor")
		}
	}
	return c
}

// readModules lists the parts of KVM under /sys/module, sorted by name.
func readModules(root fs.FS) []Module {
	names, err := fs.Glob(root, "sys/module/kvm*")
	if err != nil {
		panic(err) // only a malformed pattern is an error
	}
	modules := []Module{}
	for _, name := range names {
		nested, err := fs.ReadFile(root, path.Join(name, "parameters/nested"))
		if err != nil {
			nested = nil // a module without the parameter
		}
		modules = append(modules, Module{Name: path.Base(name), Nested: strings.TrimSpace(string(nested))})
	}
	return modules
}
