package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"vmm/machine"
)

// printStats prints what -debug promises.
func printStats(w io.Writer, s machine.Stats, devices []deviceCounts) {
	out := bufio.NewWriter(w)
	defer func() { _ = out.Flush() }() // as with any message: where it goes to is not ours to mend
	fmt.Fprintln(out, "vmm: exits to user space by reason:")
	for _, reason := range slices.SortedFunc(maps.Keys(s.Exits), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Exits[b], s.Exits[a]), cmp.Compare(a, b))
	}) {
		fmt.Fprintf(out, "  %12d  %s\n", s.Exits[reason], reason)
	}
	printAccesses(out, "accesses by port:", s.Ports)
	printAccesses(out, "accesses by address:", s.MMIO)
	printAccesses(out, fmt.Sprintf("accesses to missing hardware, %d in all:", s.Unclaimed), s.Holes)
	for _, d := range devices {
		fmt.Fprintf(out, "vmm: %s: %s\n", d.name, strings.Trim(fmt.Sprintf("%+v", d.count()), "{}"))
	}
}

func printAccesses(out io.Writer, title string, accesses []machine.AccessCount) {
	fmt.Fprintln(out, "vmm:", title)
	for _, a := range accesses {
		space := "address"
		if a.Port {
			space = "port"
		}
		fmt.Fprintf(out, "  %12d  %s %#x\n", a.Count, space, a.Addr)
	}
}
