package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestClocks compares the guest's clocks with the host's.
func TestClocks(t *testing.T) {
	h := kvmHost(t)
	g := h.boot(t, "vmlinuz-6.12", "-append", "quiet", "-mem", "256M")
	hostTime := func(t *testing.T) time.Time {
		return time.Unix(int64(parse(t, strings.TrimSpace(h.output(t, "date +%s")))), 0)
	}
	for name, guestTime := range map[string]func(t *testing.T) time.Time{
		"time of day": func(t *testing.T) time.Time {
			now, err := time.Parse(time.UnixDate, strings.TrimSpace(g.sh("date -u")))
			require.NoError(t, err)
			return now
		},
		"RTC": func(t *testing.T) time.Time {
			return time.Unix(int64(parse(t, strings.TrimSpace(g.sh("cat /sys/class/rtc/rtc0/since_epoch")))), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g.during(t)
			const tolerance = 2 * time.Second
			earliest := hostTime(t).Add(-tolerance)
			guest := guestTime(t)
			latest := hostTime(t).Add(tolerance)
			require.False(t, guest.Before(earliest), "%v, and the host has %v", guest, earliest)
			require.False(t, guest.After(latest), "%v, and the host has %v", guest, latest)
		})
	}
	t.Run("pace", func(t *testing.T) {
		g.during(t)
		uptime := func(text string) float64 { return parse(t, strings.Fields(text)[0]) }
		// The host's clock is read after the guest's at both ends, each time a little later.
		guest := -uptime(g.sh("cat /proc/uptime"))
		host := -uptime(h.output(t, "cat /proc/uptime"))
		g.sh("sleep 5")
		guest += uptime(g.sh("cat /proc/uptime"))
		host += uptime(h.output(t, "cat /proc/uptime"))
		require.GreaterOrEqual(t, guest, 5.0)
		require.InDelta(t, host, guest, 1)
	})
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// TestMoreCPUs gives a guest more vCPUs than its host has processors, and keeps all of them busy.
func TestMoreCPUs(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	have, err := strconv.Atoi(strings.TrimSpace(h.output(t, "nproc")))
	require.NoError(t, err)
	cpus := max(4, have+1)
	g := h.boot(t, "vmlinuz-6.1", "-append", "quiet", "-cpus", strconv.Itoa(cpus))
	require.Equal(t, fmt.Sprintf("0-%d", cpus-1), strings.TrimSpace(g.sh("cat /sys/devices/system/cpu/online")))
	// Each loop is a process of its own; the kernel spreads them.
	g.sh(fmt.Sprintf(`{ for ((i = 0; i < %d; i++)); do sh -c 'for ((n = 0; n < 20000; n++)); do :; done; echo >>/finished' & done; wait; }`, cpus))
	require.Equal(t, strconv.Itoa(cpus), strings.TrimSpace(g.sh("wc -l </finished")))
	busy := g.sh(`grep '^cpu[0-9]' /proc/stat`)
	for line := range strings.Lines(busy) {
		require.Positive(t, parse(t, strings.Fields(line)[1]), "user time: %s", busy)
	}
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// TestHugeMemory starts a guest with more memory than the host has. How much of it the kernel touches is the kernel's
// affair; before that, it prints the map.
func TestHugeMemory(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	g := h.start(t, h.vmm(), "-kernel", h.kernel("vmlinuz-6.12"), "-initrd", h.initramfs(), "-mem", "64G", "-append", "earlyprintk=ttyS0")
	g.expect("BIOS-e820: [mem 0x0000000100000000-0x000000103fffffff] usable")
	g.expect("last_pfn = 0x1040000 ")
	g.signal("TERM")
	g.signal("TERM")
	require.Equal(t, 128+15, g.wait())
}

// TestSideBySide runs two machines in one process.
func TestSideBySide(t *testing.T) {
	h := kvmHost(t)
	p := h.start(t, h.carry(t, build(t, "./test/e2e/sidebyside")), h.kernel("vmlinuz-6.1"), h.initramfs())
	require.Zero(t, p.wait())
	first, second, ok := strings.Cut(p.out.from(0), "guest 2: power off by ACPI S5\n")
	require.True(t, ok)
	require.True(t, strings.HasPrefix(first, "guest 1: power off by ACPI S5\n"))
	for i, text := range []string{first, second} {
		require.Contains(t, text, fmt.Sprintf("\nconsole=ttyS0 panic=-1 quiet guest=%d\n", i+1))
		require.Equal(t, i+1, strings.Count(text, "\nprocessor\t"))
		require.Contains(t, text, fmt.Sprintf("\nguest-%d answers\n", i+1))
		require.NotContains(t, text, fmt.Sprintf("guest=%d", 2-i), "the other one's output")
	}
}

// TestPipe boots with the defaults, and has its commands from a pipe, sent before there is anybody to read them.
func TestPipe(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	g := h.start(t, h.vmm(), "-kernel", h.kernel("vmlinuz-6.12"), "-initrd", h.initramfs(), "-mem", "1G")
	g.send("uname -r\npoweroff\n")
	require.NoError(t, g.stdin.Close())
	require.Zero(t, g.wait())
	require.Contains(t, g.out.from(0), "Linux version 6.12.")
	require.Regexp(t, `\r\n6\.12\.[^ ]*-cloud-amd64\r\n`, g.out.from(0))
	require.Regexp(t, `^\d+\n$`, g.errors.from(0), "nothing but its process id on standard error")
}
