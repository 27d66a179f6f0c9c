package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"vmm/test/bench/measure"
)

// results are those of one run of the command.
type results struct {
	Machine       string
	Time          time.Time
	Starts, Boots int
	Own           *measure.Report `json:",omitempty"` // on this machine's KVM
	Lab           *measure.Report `json:",omitempty"`
	Devices       *measure.Report `json:",omitempty"` // in a lab of its own
	Containers    *measure.Report `json:",omitempty"` // the same
}

// describeMachine returns in a line what the figures come from.
func describeMachine(ctx context.Context, qemu string) (string, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	_, model, _ := strings.Cut(string(cpuinfo), "model name")
	model, _, _ = strings.Cut(model, "\n")
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	vmmVersion, err := exec.CommandContext(ctx, "bin/vmm", "-version").Output()
	if err != nil {
		return "", fmt.Errorf("bin/vmm -version: %w", err)
	}
	qemuVersion, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", qemu, err)
	}
	firstLine := func(b []byte) string {
		line, _, _ := bytes.Cut(b, []byte("\n"))
		return string(bytes.TrimSpace(line))
	}
	return fmt.Sprintf("%s, %d CPUs, Linux %s; %s; %s", strings.Trim(model, "\t: "), runtime.NumCPU(),
		bytes.TrimSpace(release), firstLine(vmmVersion), firstLine(qemuVersion)), nil
}

// markdown returns the results as text for people, in a terminal too.
func (r *results) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s, `make bench` (%d starts, %d boots of each), on: %s.\n",
		r.Time.Format("2006-01-02 15:04 MST"), r.Starts, r.Boots, r.Machine)
	for _, place := range []struct {
		name   string
		report *measure.Report
	}{{"On this machine's KVM", r.Own}, {"In the nested lab", r.Lab}, {"Devices", r.Devices}, {"Containers", r.Containers}} {
		if place.report != nil {
			fmt.Fprintf(&out, "\n### %s (Linux %s)\n", place.name, place.report.Host)
			writeReport(&out, place.report)
		}
	}
	return out.String()
}

// The goals, as the part of the peer's figure that vmm's may be.
const (
	startGoal = 1.0 // of microvm's; a quarter is what we aim at
	bootGoal  = 0.5 // of q35's
	exitGoal  = 0.5 // of either's
	sizeGoal  = 16 << 20
)

func writeReport(out *strings.Builder, r *measure.Report) {
	if len(r.Starts) > 0 {
		out.WriteString("\nFrom exec to the first KVM_RUN, in milliseconds; the goal is at most microvm's:\n\n")
		writeTimes(out, r.Starts, 1e3, map[string]float64{measure.MicroVM: startGoal})
	}
	if len(r.Boots) > 0 {
		out.WriteString("\nFrom exec to the first words of the guest's init, in seconds; the goal is at most half of q35's:\n\n")
		writeTimes(out, r.Boots, 1, map[string]float64{measure.Q35: bootGoal})
	}
	if len(r.Exits) > 0 {
		out.WriteString("\nExits to user space until then; the goal is at most half of QEMU's:\n\n")
		writeExits(out, r.Exits)
		writePlaces(out, r.Exits)
	}
	if len(r.Disks) > 0 {
		out.WriteString("\nvirtio-blk, a file (raw, or qcow2 where it is said) in the host's page cache, fio with libaio in the guest; more is better. " +
			"The goals are QEMU's at queue depth 1, and more than QEMU's at 32:\n\n")
		writeRates(out, r.Disks)
	}
	if len(r.Nets) > 0 {
		out.WriteString("\nvirtio-net on a TAP or a user network, MTU 1500, iperf3 and traffic in the guest; more is better:\n\n")
		writeRates(out, r.Nets)
	}
	if len(r.Systems) > 0 {
		out.WriteString("\nFrom exec to the login prompt of a whole system, from the same image with a user network, in seconds:\n\n")
		writeTimes(out, r.Systems, 1, map[string]float64{measure.Q35: 1})
	}
	if len(r.Containers) > 0 {
		out.WriteString("\nA container that runs true, from the start of the program to its end, with everything in caches, in seconds; the goal is half of microvm's, which boots the same " +
			"kernel and root file system. runc makes no machine:\n\n")
		writeTimes(out, r.Containers, 1, map[string]float64{measure.MicroVM: 0.5})
		out.WriteString("\nWhere vmm's time goes, in seconds (medians; what is missing to the whole is the program's own start and end):\n\n" +
			"| kernel | machine made | kernel | init: modules, disk, network | process started | command | power off |\n|---|--:|--:|--:|--:|--:|--:|\n")
		for _, t := range r.Timelines {
			fmt.Fprintf(out, "| %s | %.3g | %.3g | %.3g | %.3g | %.3g | %.3g |\n", t.Kernel, t.Build, t.Boot, t.Setup, t.Start, t.Command, t.Finish)
		}
	}
	if len(r.Sizes) > 0 {
		fmt.Fprintf(out, "\nResident beyond the guest's memory while the guest idles, in MiB; the goal is less than %d:\n\n", sizeGoal>>20)
		writeSizes(out, r.Sizes)
	}
}

// writeTimes writes a table of times in a unit that is a part of a second. The goals are for vmm's part of the peers'.
func writeTimes(out *strings.Builder, all []measure.Times, unit float64, goals map[string]float64) {
	out.WriteString("| kernel | monitor | median | quartiles | range | vmm's part of it | goal |\n|---|---|--:|--:|--:|--:|---|\n")
	vmm := map[string]float64{} // by kernel
	for _, t := range all {
		q := quartiles(t.Seconds)
		if t.Monitor == measure.VMM {
			vmm[t.Kernel] = q[2]
		}
		part, met := "", ""
		if t.Monitor != measure.VMM {
			part = fmt.Sprintf("%.2f", vmm[t.Kernel]/q[2])
			if goal, ok := goals[t.Monitor]; ok {
				met = verdict(vmm[t.Kernel] <= goal*q[2])
			}
		}
		at := func(i int) string { return fmt.Sprintf("%.4g", q[i]*unit) }
		fmt.Fprintf(out, "| %s | %s | %s | %s – %s | %s – %s | %s | %s |\n",
			t.Kernel, t.Monitor, at(2), at(1), at(3), at(0), at(4), part, met)
	}
}

// writeRates writes a table of rates, with those of one test together. A row of QEMU's has how many times as much vmm does
// with the same setting.
func writeRates(out *strings.Builder, all []measure.Rates) {
	out.WriteString("| test | monitor | median | range | unit | vmm's is … times it |\n|---|---|--:|--:|---|--:|\n")
	var tests []string
	for _, r := range all {
		if !slices.Contains(tests, r.Test) {
			tests = append(tests, r.Test)
		}
	}
	for _, test := range tests {
		vmm := map[string]float64{} // by setting: what follows the comma in the monitor's name
		for _, r := range all {
			if r.Test != test {
				continue
			}
			q := quartiles(r.PerSecond)
			name, setting, _ := strings.Cut(r.Monitor, ",")
			times := ""
			if name == measure.VMM {
				vmm[setting] = q[2]
			} else {
				times = fmt.Sprintf("%.2f", vmm[setting]/q[2])
			}
			fmt.Fprintf(out, "| %s | %s | %.0f | %.0f – %.0f | %s | %s |\n", test, r.Monitor, q[2], q[0], q[4], r.Unit, times)
		}
	}
}

// quartiles returns the lowest value, the quartiles, of which the middle one is the median, and the highest.
func quartiles(values []float64) [5]float64 {
	sorted := slices.Sorted(slices.Values(values))
	var q [5]float64
	for i := range q {
		// Between the two values nearest to the quantile, in proportion.
		at := float64(i) / 4 * float64(len(sorted)-1)
		low := int(at)
		high := min(low+1, len(sorted)-1)
		q[i] = sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
	}
	return q
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func writeExits(out *strings.Builder, all []measure.Exits) {
	out.WriteString("| kernel | command line | monitor | exits | of them IO | MMIO | vmm's part of it | goal |\n|---|---|---|--:|--:|--:|--:|---|\n")
	var vmm int // of the rows up to the next one
	for _, e := range all {
		part, met := "", ""
		if e.Monitor == measure.VMM {
			vmm = e.Total
		} else {
			part = fmt.Sprintf("%.2f", float64(vmm)/float64(e.Total))
			met = verdict(float64(vmm) <= exitGoal*float64(e.Total))
		}
		fmt.Fprintf(out, "| %s | %s | %s | %d | %d | %d | %s | %s |\n",
			e.Kernel, commandLine(e), e.Monitor, e.Total, e.Reasons["IO"], e.Reasons["MMIO"], part, met)
	}
}

func commandLine(e measure.Exits) string {
	if e.Quiet {
		return "quiet"
	}
	return "not quiet"
}

// maxPlaces is how many places a table of them has.
const maxPlaces = 12

// writePlaces writes where the exits came from: a table for each command line, with a column for each monitor.
func writePlaces(out *strings.Builder, all []measure.Exits) {
	for _, quiet := range []bool{true, false} {
		same := slices.DeleteFunc(slices.Clone(all), func(e measure.Exits) bool {
			return e.Quiet != quiet
		})
		sum := map[string]int{}
		for _, e := range same {
			for place, n := range e.Places {
				sum[place] += n
			}
		}
		places := slices.SortedFunc(maps.Keys(sum), func(a, b string) int {
			return cmp.Or(cmp.Compare(sum[b], sum[a]), cmp.Compare(a, b))
		})
		if len(same) == 0 {
			continue
		}
		fmt.Fprintf(out, "\nBy port, and by page of memory (%s, %s):\n\n| place |", same[0].Kernel, commandLine(same[0]))
		for _, e := range same {
			fmt.Fprintf(out, " %s |", e.Monitor)
		}
		out.WriteString("\n|---|" + strings.Repeat("--:|", len(same)) + "\n")
		row := func(name string, places []string) {
			fmt.Fprintf(out, "| %s |", name)
			for _, e := range same {
				n := 0
				for _, p := range places {
					n += e.Places[p]
				}
				fmt.Fprintf(out, " %d |", n)
			}
			out.WriteString("\n")
		}
		shown := min(maxPlaces, len(places))
		for _, place := range places[:shown] {
			row(place, []string{place})
		}
		if rest := places[shown:]; len(rest) > 0 {
			row(fmt.Sprintf("%d others", len(rest)), rest)
		}
	}
}

func writeSizes(out *strings.Builder, all []measure.Size) {
	out.WriteString("| kernel | monitor | processes | RSS | PSS | guest's memory, resident | goal |\n|---|---|--:|--:|--:|--:|---|\n")
	mib := func(n uint64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
	for _, s := range all {
		met := ""
		if s.Monitor == measure.VMM {
			met = verdict(s.RSS < sizeGoal)
		}
		fmt.Fprintf(out, "| %s | %s | %d | %s | %s | %s | %s |\n",
			s.Kernel, s.Monitor, s.Processes, mib(s.RSS), mib(s.PSS), mib(s.Guest), met)
	}
}

// What is between these lines of the page is the command's.
const (
	pageBegin = "<!-- make bench: begin -->\n"
	pageEnd   = "<!-- make bench: end -->\n"
)

// rewrite replaces what is between the page's markers.
func rewrite(page, text string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(old), pageBegin)
	_, after, ok2 := strings.Cut(rest, pageEnd)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s: the lines around the results are missing: %q and %q", page, pageBegin, pageEnd)
	}
	return os.WriteFile(page, []byte(before+pageBegin+"\n"+text+"\n"+pageEnd+after), 0o644)
}
