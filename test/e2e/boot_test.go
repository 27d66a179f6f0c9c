package e2e

import (
	"bufio"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/kernel"
)

// TestBoot boots each kernel in each form, in sizes that cover what there are, and compares what the guest sees with what
// it was given.
func TestBoot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		series, image string
		cpus          int
		mem           string
	}{
		{"6.1", "vmlinuz", 1, "128M"},
		{"6.1", "vmlinux", 2, "512M"},
		{"6.1", "vmlinuz", 4, "6G"},
		{"6.1", "vmlinux", 1, "1G"},
		{"6.12", "vmlinux", 4, "128M"},
		{"6.12", "vmlinuz", 1, "512M"},
		{"6.12", "vmlinuz", 2, "1G"},
		{"6.12", "vmlinux", 1, "6G"},
	} {
		t.Run(fmt.Sprintf("%s-%s,cpus=%d,mem=%s", c.image, c.series, c.cpus, c.mem), func(t *testing.T) {
			h := ownHost(t)
			kernel, err := kernel.Cloud(t.Context(), c.series)
			require.NoError(t, err)
			g := h.boot(t, c.image+"-"+c.series, "-cpus", strconv.Itoa(c.cpus), "-mem", c.mem, "-append", "quiet")
			a := interrogate(t, g)
			require.Equal(t, kernel.Release+"\n", a["release"])
			require.Equal(t, "console=ttyS0 panic=-1 quiet\n", a["cmdline"])
			checkCPUs(t, h, a, c.cpus)
			checkMemory(t, a, bytesOf(t, c.mem))
			checkPorts(t, a)
			checkACPI(t, a)
			checkPCI(t, a)
			checkInterrupts(t, a, c.cpus)
			checkClocks(t, a)
			checkLog(t, g)
			require.Zero(t, g.end("poweroff"))
		})
	}
}

// questions are what a guest is asked, by shell commands. The answers are kept short, for the lab's serial lines are slow.
var questions = map[string]string{
	"release":      "uname -r",
	"cmdline":      "cat /proc/cmdline",
	"cpus":         `grep '^(processor|physical id|siblings|core id|cpu cores|apicid)\s' /proc/cpuinfo`,
	"flags":        `flags=" $(grep ^flags /proc/cpuinfo | head -n 1) "; for f in ` + flags + `; do if [[ $flags == *" $f "* ]]; then echo $f; fi; done`,
	"iomem":        "cat /proc/iomem",
	"MemTotal":     "grep MemTotal /proc/meminfo",
	"ports":        "grep ' : (rtc|serial|ACPI|PCI)' /proc/ioports",
	"tables":       "ls /sys/firmware/acpi/tables",
	"DSDT":         "head -c 4 /sys/firmware/acpi/tables/DSDT; echo",
	"ACPI devices": "ls /sys/bus/acpi/devices",
	"PCI devices":  "ls /sys/bus/pci/devices",
	"class":        "cat /sys/bus/pci/devices/0000:00:00.0/class",
	"config":       "wc -c </sys/bus/pci/devices/0000:00:00.0/config",
	"interrupts":   `grep "CPU0|^ *(4|8|9|ERR|MIS):" /proc/interrupts`,
	"clocksource":  "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
	"clocksources": "cat /sys/devices/system/clocksource/clocksource0/available_clocksource",
}

// flags are those of CPUID that a guest is asked about: first those that it must have, then those that it has if the host
// does.
const (
	flags          = requiredFlags + " " + inheritedFlags
	requiredFlags  = "hypervisor x2apic tsc_deadline_timer lm nx apic"
	inheritedFlags = "constant_tsc nonstop_tsc aes sse4_2 rdrand smep smap fsgsbase"
)

// interrogate returns the guest's answers, by the names of the questions.
func interrogate(t *testing.T, g *process) map[string]string {
	t.Helper()
	const mark = "@ "
	var script strings.Builder
	for name, command := range questions {
		fmt.Fprintf(&script, "echo '%s%s'\n%s\n", mark, name, command)
	}
	answers := map[string]string{}
	for part := range strings.SplitSeq("\n"+g.script(script.String()), "\n"+mark) {
		name, answer, _ := strings.Cut(part, "\n")
		answers[name] = strings.TrimSuffix(answer, "\n") + "\n"
	}
	for name := range questions {
		require.Contains(t, answers, name, "no answer")
	}
	return answers
}

func bytesOf(t *testing.T, size string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(size[:len(size)-1], 10, 64)
	require.NoError(t, err)
	return n << map[byte]int{'M': 20, 'G': 30}[size[len(size)-1]]
}

// checkCPUs looks at the number, the topology and the features of the processors.
func checkCPUs(t *testing.T, h *host, a map[string]string, cpus int) {
	t.Helper()
	var want strings.Builder
	for i := range cpus {
		for _, field := range []struct {
			name  string
			value int
		}{{"processor", i}, {"physical id", 0}, {"siblings", cpus}, {"core id", i}, {"cpu cores", cpus}, {"apicid", i}} {
			fmt.Fprintf(&want, "%s:%d\n", field.name, field.value)
		}
	}
	require.Equal(t, want.String(), regexp.MustCompile(`\t*: `).ReplaceAllString(a["cpus"], ":"))

	guest := strings.Fields(a["flags"])
	require.Subset(t, guest, strings.Fields(requiredFlags))
	host := strings.Fields(h.output(t, "grep -m 1 ^flags /proc/cpuinfo"))
	for flag := range strings.FieldsSeq(inheritedFlags) {
		if slices.Contains(host, flag) {
			require.Contains(t, guest, flag, "the host has it")
		}
	}
}

// checkMemory compares the guest's map of its address space with the one that machine/layout.go draws.
func checkMemory(t *testing.T, a map[string]string, size uint64) {
	t.Helper()
	const hole, beyond = 3 << 30, 4 << 30
	want := []string{"00001000-0009fbff", fmt.Sprintf("00100000-%08x", min(size, hole)-1)}
	if size > hole {
		want = append(want, fmt.Sprintf("%08x-%08x", uint64(beyond), beyond+size-hole-1))
	}
	iomem := a["iomem"]
	var ram, windows, config []string
	for line := range strings.Lines(iomem) {
		at, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " : ")
		switch {
		case strings.HasPrefix(at, " "): // inside another
		case name == "System RAM":
			ram = append(ram, at)
		case name == "PCI Bus 0000:00":
			windows = append(windows, at)
		case regexp.MustCompile(`^PCI (MMCONFIG|ECAM) 0000 \[bus 00-00\]$`).MatchString(name):
			config = append(config, at)
		}
	}
	require.Equal(t, want, ram, "%s", iomem)
	require.Equal(t, []string{"e0000000-e00fffff"}, config, "%s", iomem)
	require.Len(t, windows, 2, "%s", iomem)
	require.Equal(t, "c0000000-dfffffff", windows[0], "%s", iomem)
	require.Regexp(t, `^[1-9a-f][0-9a-f]{8,}-`, windows[1], "the second is above 4 GiB: %s", iomem)

	// The kernel's own part is some dozen MiB, 16 for each GiB among them.
	var total uint64
	_, err := fmt.Sscanf(a["MemTotal"], "MemTotal: %d kB", &total)
	require.NoError(t, err)
	require.InDelta(t, size>>10, total, float64(size>>10)/32+(96<<10), "MemTotal in KiB")
}

func checkPorts(t *testing.T, a map[string]string) {
	t.Helper()
	ports := a["ports"]
	for _, want := range []string{
		"0070-0071 : rtc", "03f8-03ff : serial", "0600-0603 : ACPI PM1a_EVT_BLK", "0604-0605 : ACPI PM1a_CNT_BLK",
		"0608-060b : ACPI PM_TMR", "0cf8-0cff : PCI conf1", "1000-ffff : PCI Bus 0000:00",
	} {
		require.Contains(t, ports, want)
	}
}

func checkACPI(t *testing.T, a map[string]string) {
	t.Helper()
	require.Equal(t, []string{"APIC", "DSDT", "FACP", "FACS", "MCFG", "data", "dynamic"}, strings.Fields(a["tables"]))
	require.Equal(t, "DSDT\n", a["DSDT"], "its signature")
	devices := strings.Fields(a["ACPI devices"])
	require.Subset(t, devices, []string{"LNXPWRBN:00", "PNP0501:00", "PNP0A08:00", "PNP0B00:00"}, "power button, COM1, PCIe, RTC")
}

func checkPCI(t *testing.T, a map[string]string) {
	t.Helper()
	require.Equal(t, "0000:00:00.0\n", a["PCI devices"])
	require.Equal(t, "0x060000\n", a["class"], "a host bridge")
	require.Equal(t, "4096", strings.TrimSpace(a["config"]), "by ECAM")
}

func checkInterrupts(t *testing.T, a map[string]string, cpus int) {
	t.Helper()
	table := a["interrupts"]
	require.Equal(t, cpus, strings.Count(strings.SplitN(table, "\n", 2)[0], "CPU"))
	for _, line := range []string{
		`(?m)^ *4: .*IO-APIC +4-edge +ttyS0$`, `(?m)^ *8: .*IO-APIC +8-edge +rtc0$`, `(?m)^ *9: .*IO-APIC +9-fasteoi +acpi$`,
		`(?m)^ERR: +0$`, `(?m)^MIS: +0$`,
	} {
		require.Regexp(t, line, table)
	}
	require.Regexp(t, `(?m)^ *4:[ 0-9]*[1-9]`, table, "COM1 interrupts")
}

func checkClocks(t *testing.T, a map[string]string) {
	t.Helper()
	require.Equal(t, "kvm-clock\n", a["clocksource"])
	available := strings.Fields(a["clocksources"])
	require.Subset(t, available, []string{"kvm-clock", "acpi_pm"})
	if slices.Contains(strings.Fields(a["flags"]), "constant_tsc") {
		require.Contains(t, available, "tsc")
	}
}

// complaints are what kernels print of hardware that is not as it should be, at whatever level.
const complaints = `ACPI BIOS Error|ACPI Error|ACPI Warning|ACPI Exception|Firmware Bug|firmware bug|FW Bug|nstable|` +
	`Fast TSC calibration failed|TSC calibration|WARNING:|BUG:|Oops|Call Trace|can't claim|No irq handler|nobody cared|` +
	`not properly configured|stall|lockup|conflict|[Tt]imed out|broken|invalid\b|failed`

// allowed are the lines of warning level, or with such words, that don't speak of our hardware. Those about emulation are
// allowed only in the lab, where QEMU's guests have them too.
var allowed = []struct {
	line, reason string
	emulation    bool
}{
	{line: "DMI not present or invalid", reason: "there is no BIOS and no SMBIOS"},
	{line: "amd_pstate: the _CPC object is not present in SBIOS", reason: "frequency scaling is the host's business"},
	{line: "cgroup: Unknown subsys name", reason: "u-root's init mounts cgroup v1 controllers, which Debian's kernels have not"},
	{line: "u-root init", reason: "it speaks of file systems that the kernel has not"},
	{line: "clocksource: Long readout interval", reason: "reading two clocks takes long", emulation: true},
	{line: "sched: DL replenish lagged too much", reason: "a virtual processor waited long for the one of the lab", emulation: true},
	{line: "hrtimer: interrupt took", reason: "handling an interrupt takes long", emulation: true},
	{
		line:      "Marking TSC unstable due to TSCs unsynchronized",
		reason:    "Linux 6.1 wants a constant TSC for this, which the emulated processor doesn't claim to have",
		emulation: true,
	},
}

// checkLog looks through the whole kernel log. Lines with the texts of expected are left out.
func checkLog(t *testing.T, g *process, expected ...string) {
	t.Helper()
	dmesg, grep := "dmesg", "grep"
	if g.quiet { // Debian's tools, not u-root's
		dmesg, grep = "dmesg -r", "grep -E"
	}
	answer := g.script(dmesg + " >/dmesg; grep -c 'Linux version' /dmesg\n" + grep + ` "^<[0-4]>|` + complaints + `" /dmesg`)
	count, log, _ := strings.Cut(answer, "\n")
	require.Equal(t, "1", count, "the log is whole: %s", answer)
	var bad []string
	lines := bufio.NewScanner(strings.NewReader(log))
	for lines.Scan() {
		is := func(text string) bool { return strings.Contains(lines.Text(), text) }
		if !slices.ContainsFunc(expected, is) && !excused(lines.Text(), g.host.emulated()) {
			bad = append(bad, lines.Text())
		}
	}
	require.Empty(t, bad, "the kernel complains")
}

func excused(line string, emulated bool) bool {
	for _, a := range allowed {
		if strings.Contains(line, a.line) && (emulated || !a.emulation) {
			return true
		}
	}
	return false
}
