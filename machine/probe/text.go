package probe

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "device\t%s\n", r.Device)
	fmt.Fprintf(t, "processor\t%s\n", r.CPU)
	fmt.Fprintf(t, "modules\t%s\n", moduleList(r.Modules))
	if r.Device.Opens {
		fmt.Fprintf(t, "API version\t%d\n", r.APIVersion)
		fmt.Fprintf(t, "kernel mode\t%s\n", r.KernelMode)
		fmt.Fprintf(t, "vCPUs\t%d recommended, %d at most, ids below %d\n",
			r.Limits.RecommendedVCPUs, r.Limits.MaxVCPUs, r.Limits.MaxVCPUID)
		fmt.Fprintf(t, "memslots\t%d\n", r.Limits.Memslots)
	}
	_ = t.Flush() // into memory: it cannot fail

	if len(r.Capabilities) > 0 {
		fmt.Fprintf(&b, "\n")
		fmt.Fprintf(t, "capability\tvalue\tneed\tpurpose\n")
		for _, c := range r.Capabilities {
			value, need := "absent", "optional"
			if c.Value != 0 {
				value = strconv.Itoa(c.Value)
			}
			if c.Required {
				need = "required"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, value, need, c.Purpose)
		}
		_ = t.Flush()
	}

	fmt.Fprintf(&b, "\n")
	if r.OK() {
		fmt.Fprintf(&b, "Virtual machines with stock kernels run here.\n")
	} else {
		fmt.Fprintf(&b, "Virtual machines with stock kernels do not run here:\n")
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "- %s\n  remedy: %s\n", p.What, p.Remedy)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (d Device) String() string {
	switch {
	case !d.Exists:
		return d.Path + ", absent"
	case !d.Opens:
		return d.Path + ", " + d.Mode + ", does not open"
	}
	return d.Path + ", " + d.Mode + ", opens"
}

func (c CPU) String() string {
	parts := []string{"no virtualization flag"}
	if c.Virtualization != "" {
		parts[0] = c.Virtualization
	}
	if c.Model != "" {
		parts = append([]string{c.Model}, parts...)
	}
	if c.Hypervisor {
		parts = append(parts, "in a virtual machine")
	}
	return strings.Join(parts, ", ")
}

func moduleList(modules []Module) string {
	if len(modules) == 0 {
		return "none"
	}
	var parts []string
	for _, m := range modules {
		s := m.Name
		if m.Nested != "" {
			s += " (nested=" + m.Nested + ")"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}
