package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDrivers takes devices away from their drivers and gives them back, in each way that there is: by driver, by reset of
// the function, by a kernel started from the one before, and by a reset of the machine.
func TestDrivers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		series  string
		cpus    int
		restart string
	}{{"6.1", 1, "machine reset"}, {"6.12", 2, "kexec"}} {
		t.Run(c.series, func(t *testing.T) {
			h := ownHost(t)
			n := h.network(t)
			h.need(t, "mke2fs")
			n.tap("tap0", 1500, 1)
			n.background(t, "serving", "traffic serve tcp:"+hostIP+":9000")
			data, next := h.scratch(t, "/tmp", "64M"), h.scratch(t, "/tmp", "64M")
			// The next kernel is on a disk as well.
			boot := h.dir(t)
			h.output(t, "cp "+h.kernel("vmlinuz-"+c.series)+" "+boot+"/kernel; cp "+h.path("/boot/guest-"+c.series+".cpio")+" "+boot+
				"/initrd; mke2fs -q -t ext4 -d "+boot+" "+next)
			g := guest{series: c.series, cpus: c.cpus, mem: "768M", under: n.under(), args: []string{
				"-disk", data, "-disk", next + ",readonly", "-net", "tap,ifname=tap0", "-rng", "-reboot",
			}}.start(t, h)
			// work has each of the devices do something. The disk keeps a count of how often that was.
			works := 0
			work := func(g *process) {
				t.Helper()
				setNetwork(g)
				works++
				require.Equal(t, strings.Repeat("x", works)+"\n", g.run(`old=$(head -c 4096 /dev/vdb | tr -d '\0')
{ printf "${old}x"; head -c 4096 /dev/zero; } | head -c 4096 | dd of=/dev/vdb bs=4096 oflag=direct conv=notrunc iflag=fullblock status=none
dd if=/dev/vdb bs=4096 count=1 iflag=direct status=none | tr -d '\0'; echo
traffic connect -up 100000 -down 100000 tcp:`+hostIP+`:9000 >/dev/null; head -c 100 /dev/hwrng >/dev/null`))
			}
			work(g)
			t.Run("rebound", func(t *testing.T) {
				g.during(t)
				for range times(2, 100) {
					rebind(g, "block/vdb")
					rebind(g, "net/eth0")
					work(g)
				}
			})
			t.Run("function reset", func(t *testing.T) {
				g.during(t)
				g.run(`cd /sys/bus/pci/drivers/virtio-pci
for class in block/vdb net/eth0; do
	device=$(readlink -f /sys/class/$class/device/..)
	name=${device##*/}
	echo $name >unbind
	if [ -e $device/reset ]; then echo 1 >$device/reset; else echo "no reset: $class"; fi
	echo $name >bind
	[ -e /sys/class/$class ]
done`)
				work(g)
			})
			t.Run("function reset under its driver", func(t *testing.T) {
				g.during(t)
				g.run(`cd /sys/bus/pci/drivers/virtio-pci
for class in block/vdb net/eth0; do
	device=$(readlink -f /sys/class/$class/device/..)
	name=${device##*/}
	if [ -e $device/reset ]; then echo 1 >$device/reset; fi
	echo $name >unbind
	echo $name >bind
	[ -e /sys/class/$class ]
done`)
				work(g)
			})
			checkLog(t, g)
			t.Run(c.restart, func(t *testing.T) {
				g.during(t)
				g.run("echo before >/tmp/mark")
				if c.restart == "kexec" {
					g.run("mount -o ro /dev/vdc /mnt; kexec -l /mnt/kernel --initrd=/mnt/initrd --reuse-cmdline; umount /mnt")
					g.send("kexec -e\n")
				} else {
					g.send("reboot\n")
				}
				g.login()
				g.run("[ ! -e /tmp/mark ]")
				work(g)
				checkLog(t, g, "Spurious LAPIC timer interrupt on cpu 0") // armed by the kernel before
			})
			require.Zero(t, g.end("poweroff"))
		})
	}
}
