package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// guest says what a test guest is: one with Debian's tools on its root disk, to prove devices with. The zero value is one
// with no other device.
type guest struct {
	series  string   // of its kernel; 6.12 if empty
	cpus    int      // 1 if 0
	mem     string   // 512M if empty
	cmdline string   // words for its kernel
	args    []string // vmm's flags, for its devices; the first disk among them is /dev/vdb
	under   []string // a command that runs the monitor, such as ip netns exec NAME
}

// start starts the guest and waits for its shell. The root disk, /dev/vda, is not written to: what the guest writes to its
// root is lost with it.
func (g guest) start(t *testing.T, h *host) *process {
	t.Helper()
	p := h.start(t, g.command(t, h)...)
	p.quiet = true
	p.login()
	return p
}

// command returns the monitor's command line.
func (g guest) command(t *testing.T, h *host) []string {
	t.Helper()
	h.needDisk(t)
	if g.series == "" {
		g.series = "6.12"
	}
	if g.mem == "" {
		g.mem = "512M"
	}
	command := append([]string{
		h.vmm(), "-kernel", h.kernel("vmlinuz-" + g.series), "-initrd", h.path("/boot/guest-" + g.series + ".cpio"),
		"-append", strings.TrimSpace("quiet test.root=vda " + g.cmdline), "-mem", g.mem, "-cpus", strconv.Itoa(max(1, g.cpus)),
		"-disk", h.disk + ",readonly",
	}, g.args...)
	if withQEMU() {
		command = qemuCommand(t, command)
	} else if !slices.Contains(command, "-net") {
		command = append(command, "-net", "none") // not the one that a disk brings
	}
	return append(g.under, command...)
}

// longVariable, when set, has the proofs of the devices go on for as long as it takes to meet what is rare.
const longVariable = "E2E_LONG"

// times returns how often a proof does a thing: n in the long form, else less.
func times(short, n int) int {
	if long() {
		return n
	}
	return short
}

// long tells whether the proofs take the time that they need.
func long() bool { return os.Getenv(longVariable) != "" }

// needDisk skips the test without the guests' disk, except where nothing may be missing.
func (h *host) needDisk(t *testing.T) {
	t.Helper()
	if h.noDisk == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(h.noDisk)
	}
	t.Skip(h.noDisk)
}

// need skips the test unless it runs as root and the host has the programs. The lab has all that its disk has.
func (h *host) need(t *testing.T, programs ...string) {
	t.Helper()
	h.needDisk(t)
	if h.emulated() {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("sets up networks of the host: run as root")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: apt-get install --no-install-recommends iproute2 iperf3 ethtool e2fsprogs socat passt", err)
		}
	}
}

// background runs the script on the host, beside the test, and returns when it has printed ready. It is ended with the
// test.
func (h *host) background(t *testing.T, ready, script string) *process {
	t.Helper()
	p := h.start(t, "/bin/sh", "-c", script)
	p.expect(ready)
	return p
}

// scratch makes a sparse file of the size below dir for the test, and returns its path. The lab has /tmp in memory, and
// /var/tmp on its disk.
func (h *host) scratch(t *testing.T, dir, size string) string {
	t.Helper()
	path := strings.TrimSpace(h.output(t, "mktemp -d -p "+dir)) + "/disk"
	h.output(t, "truncate -s "+size+" "+path)
	t.Cleanup(func() { h.cleanUp("rm -r " + filepath.Dir(path)) })
	return path
}

// blocks returns how many bytes of the host's disk the file takes.
func (h *host) blocks(t *testing.T, path string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(h.output(t, "stat -c %b "+path)), 10, 64)
	require.NoError(t, err)
	return n * 512
}

// resident returns how many bytes of memory the process has, its guest's included.
func (p *process) resident() int64 {
	p.t.Helper()
	status := p.host.output(p.t, "cat /proc/"+p.pid+"/status")
	m := regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`).FindStringSubmatch(status)
	require.NotNil(p.t, m, status)
	kib, err := strconv.ParseInt(m[1], 10, 64)
	require.NoError(p.t, err)
	return kib << 10
}

// kill ends the process as a crash of the monitor would.
func (p *process) kill() {
	p.t.Helper()
	p.signal("KILL")
	require.Equal(p.t, 128+9, p.wait())
}

// network is a network namespace of the host, in which the guest's monitor can be, its host's end of a TAP, and programs
// that the guest talks to.
type network struct {
	t    *testing.T
	host *host
	name string
}

// The addresses of a network's two ends.
const (
	hostIP  = "10.9.0.1"
	guestIP = "10.9.0.2"
)

// network makes one for the test.
func (h *host) network(t *testing.T) *network {
	t.Helper()
	h.need(t, "ip")
	n := &network{t: t, host: h, name: filepath.Base(h.dir(t))}
	h.output(t, "ip netns add "+n.name+" && ip -n "+n.name+" link set lo up")
	t.Cleanup(func() { h.cleanUp("ip netns del " + n.name) })
	return n
}

// under returns the command that runs others in the network.
func (n *network) under() []string { return []string{"ip", "netns", "exec", n.name} }

// output returns what the script prints in the network.
func (n *network) output(t *testing.T, script string) string {
	t.Helper()
	return n.host.output(t, n.enter(script))
}

// enter returns the script as one that runs in the network.
func (n *network) enter(script string) string {
	return strings.Join(n.under(), " ") + " sh -ec '" + strings.ReplaceAll(script, "'", `'\''`) + "'"
}

// background is host.background in the network.
func (n *network) background(t *testing.T, ready, script string) *process {
	t.Helper()
	return n.host.background(t, ready, "exec "+n.enter(script))
}

// tap makes a TAP with the host's address that stays, for monitors to use.
func (n *network) tap(name string, mtu, queues int) {
	n.t.Helper()
	multi := ""
	if queues > 1 {
		multi = " multi_queue"
	}
	n.output(n.t, fmt.Sprintf(`ip tuntap add %[1]s mode tap vnet_hdr%[2]s
ip link set %[1]s mtu %[3]d up
ip addr add %[4]s/24 dev %[1]s`, name, multi, mtu, hostIP))
}

// setNetwork gives the guest its address on eth0.
func setNetwork(g *process) {
	g.t.Helper()
	g.run("ip link set eth0 up; ip addr add " + guestIP + "/24 dev eth0")
}

// cleanUp runs a script after the test, which may have ended by its context's end. There is nobody to tell of a failure.
func (h *host) cleanUp(script string) {
	_, _ = h.Run(context.Background(), h.shell(script))
}

// TestGuest looks at the guests that the devices are proved with, and at the host beside them.
func TestGuest(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	t.Run("tools", func(t *testing.T) {
		g := guest{}.start(t, h)
		g.run("for tool in fio iperf3 ethtool ip mkfs.ext4 e2fsck fstrim blkdiscard lsblk kmod ps socat rngtest kexec ping traffic; do\n" +
			"command -v $tool; done >/dev/null")
		require.Equal(t, "1\n", g.sh("cat /sys/block/vda/ro"))
		g.run("echo written >/usr/written")
		require.Equal(t, "overlayfs\n", g.sh("stat -f -c %T /"))
		_, status := g.try("false")
		require.Equal(t, 1, status)
		require.Positive(t, g.resident())
		require.Zero(t, g.end("exit"))
	})
	t.Run("network", func(t *testing.T) {
		n := h.network(t)
		n.tap("tap0", 1500, 1)
		require.Contains(t, n.output(t, "ip addr show tap0"), hostIP)
		n.background(t, "serving", "traffic serve tcp:"+hostIP+":9000")
		require.Contains(t, n.output(t, "traffic connect -n 3 tcp:"+hostIP+":9000"), "3 connections")
	})
}

// rebind takes the device that the guest has in /sys/class away from its driver, and gives it back.
func rebind(g *process, class string) {
	g.t.Helper()
	g.run(`device=$(readlink -f /sys/class/` + class + `/device)
driver=$(readlink -f $device/driver)
echo ${device##*/} >$driver/unbind
[ ! -e /sys/class/` + class + ` ]
echo ${device##*/} >$driver/bind
[ -e /sys/class/` + class + ` ]`)
}
