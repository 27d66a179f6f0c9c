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

	"vmm/test/lab/debian"
)

// TestBoot boots each kernel in each form, in sizes that cover what there are, and compares what the guest sees with what
// it was given.
func TestBoot(t *testing.T) {
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
			h := kvmHost(t)
			kernel, err := debian.Cloud(t.Context(), c.series)
			require.NoError(t, err)
			g := h.boot(t, c.image+"-"+c.series, "-cpus", strconv.Itoa(c.cpus), "-mem", c.mem, "-append", "quiet")
			require.Equal(t, kernel.Release, strings.TrimSpace(g.sh("uname -r")))
			require.Equal(t, "console=ttyS0 panic=-1 quiet", strings.TrimSpace(g.sh("cat /proc/cmdline")))
			checkCPUs(t, g, c.cpus)
			checkMemory(t, g, bytesOf(t, c.mem))
			checkPorts(t, g)
			checkACPI(t, g)
			checkPCI(t, g)
			checkInterrupts(t, g, c.cpus)
			checkClocks(t, g)
			checkLog(t, g)
			require.Zero(t, g.end("poweroff"))
		})
	}
}

func bytesOf(t *testing.T, size string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(size[:len(size)-1], 10, 64)
	require.NoError(t, err)
	return n << map[byte]int{'M': 20, 'G': 30}[size[len(size)-1]]
}

// checkCPUs looks at the number, the topology and the features of the processors.
func checkCPUs(t *testing.T, g *process, cpus int) {
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
	fields := g.sh(`grep '^(processor|physical id|siblings|core id|cpu cores|apicid)\s' /proc/cpuinfo`)
	require.Equal(t, want.String(), regexp.MustCompile(`\t*: `).ReplaceAllString(fields, ":"))

	// Asked for one by one: the lab's serial lines are slow.
	must := []string{"hypervisor", "x2apic", "tsc_deadline_timer", "lm", "nx", "apic"}
	like := []string{"constant_tsc", "nonstop_tsc", "tsc_known_freq", "aes", "sse4_2", "rdrand", "smep", "smap", "fsgsbase"}
	guest := strings.Fields(g.sh(`flags=" $(grep ^flags /proc/cpuinfo | head -n 1) "; for f in ` + strings.Join(must, " ") + " " +
		strings.Join(like, " ") + `; do if [[ $flags == *" $f "* ]]; then echo $f; fi; done`))
	require.Subset(t, guest, must)
	host := strings.Fields(g.host.output(t, "grep -m 1 ^flags /proc/cpuinfo"))
	for _, flag := range like {
		if slices.Contains(host, flag) {
			require.Contains(t, guest, flag, "the host has it")
		}
	}
}

// checkMemory compares the guest's map of its address space with the one that machine/layout.go draws.
func checkMemory(t *testing.T, g *process, size uint64) {
	t.Helper()
	const hole, beyond = 3 << 30, 4 << 30
	want := []string{"00001000-0009fbff", fmt.Sprintf("00100000-%08x", min(size, hole)-1)}
	if size > hole {
		want = append(want, fmt.Sprintf("%08x-%08x", uint64(beyond), beyond+size-hole-1))
	}
	iomem := g.sh("cat /proc/iomem")
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
	_, err := fmt.Sscanf(g.sh("grep MemTotal /proc/meminfo"), "MemTotal: %d kB", &total)
	require.NoError(t, err)
	require.InDelta(t, size>>10, total, float64(size>>10)/32+(96<<10), "MemTotal in KiB")
}

func checkPorts(t *testing.T, g *process) {
	t.Helper()
	ports := g.sh("grep ' : (rtc|serial|ACPI|PCI)' /proc/ioports")
	for _, want := range []string{
		"0070-0071 : rtc", "03f8-03ff : serial", "0600-0603 : ACPI PM1a_EVT_BLK", "0604-0605 : ACPI PM1a_CNT_BLK",
		"0608-060b : ACPI PM_TMR", "0cf8-0cff : PCI conf1", "1000-ffff : PCI Bus 0000:00",
	} {
		require.Contains(t, ports, want)
	}
}

func checkACPI(t *testing.T, g *process) {
	t.Helper()
	require.Equal(t, []string{"APIC", "DSDT", "FACP", "FACS", "MCFG", "data", "dynamic"},
		strings.Fields(g.sh("ls /sys/firmware/acpi/tables")))
	// The first 4 KiB of each table start with its signature.
	require.Equal(t, "DSDT", g.sh("head -c 4 /sys/firmware/acpi/tables/DSDT"))
	devices := strings.Fields(g.sh("ls /sys/bus/acpi/devices"))
	require.Subset(t, devices, []string{"LNXPWRBN:00", "PNP0501:00", "PNP0A08:00", "PNP0B00:00"}, "power button, COM1, PCIe, RTC")
}

func checkPCI(t *testing.T, g *process) {
	t.Helper()
	require.Equal(t, "0000:00:00.0", strings.TrimSpace(g.sh("ls /sys/bus/pci/devices")))
	require.Equal(t, "0x060000", strings.TrimSpace(g.sh("cat /sys/bus/pci/devices/0000:00:00.0/class")), "a host bridge")
	require.Equal(t, "4096", strings.TrimSpace(g.sh("wc -c < /sys/bus/pci/devices/0000:00:00.0/config")), "by ECAM")
}

func checkInterrupts(t *testing.T, g *process, cpus int) {
	t.Helper()
	table := g.sh(`grep "CPU0|^ *(4|8|9|ERR|MIS):" /proc/interrupts`)
	require.Equal(t, cpus, strings.Count(strings.SplitN(table, "\n", 2)[0], "CPU"))
	for _, line := range []string{
		`(?m)^ *4: .*IO-APIC +4-edge +ttyS0$`, `(?m)^ *8: .*IO-APIC +8-edge +rtc0$`, `(?m)^ *9: .*IO-APIC +9-fasteoi +acpi$`,
		`(?m)^ERR: +0$`, `(?m)^MIS: +0$`,
	} {
		require.Regexp(t, line, table)
	}
	require.Regexp(t, `(?m)^ *4:[ 0-9]*[1-9]`, table, "COM1 interrupts")
}

func checkClocks(t *testing.T, g *process) {
	t.Helper()
	const dir = "/sys/devices/system/clocksource/clocksource0/"
	require.Equal(t, "kvm-clock", strings.TrimSpace(g.sh("cat "+dir+"current_clocksource")))
	available := strings.Fields(g.sh("cat " + dir + "available_clocksource"))
	require.Subset(t, available, []string{"kvm-clock", "acpi_pm"})
	if _, status := g.try("grep -q '^flags.* constant_tsc' /proc/cpuinfo"); status == 0 {
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
	{line: "hrtimer: interrupt took", reason: "handling an interrupt takes long", emulation: true},
	{
		line:      "Marking TSC unstable due to TSCs unsynchronized",
		reason:    "Linux 6.1 wants a constant TSC for this, which the emulated processor doesn't claim to have",
		emulation: true,
	},
}

// checkLog looks through the whole kernel log.
func checkLog(t *testing.T, g *process) {
	t.Helper()
	log := g.sh(`dmesg | grep "^<[0-4]>|` + complaints + `" || true`)
	var bad []string
	lines := bufio.NewScanner(strings.NewReader(log))
	for lines.Scan() {
		if !excused(lines.Text(), g.host.emulated()) {
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
