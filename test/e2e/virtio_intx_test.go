package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestINTx has a guest without message-signalled interrupts: its devices share the lines of the PCI bus, the first and the
// fifth of them one line.
func TestINTx(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	h.needDisk(t)
	g := guest{series: "6.1", cmdline: "pci=nomsi", args: []string{
		"-disk", h.scratch(t, "/tmp", "16M"), "-disk", h.scratch(t, "/tmp", "16M"), "-rng", "-balloon",
	}}.start(t, h)
	g.run("dd if=/dev/urandom of=/dev/vdb bs=64k count=64 oflag=direct status=none && dd if=/dev/vdb of=/dev/vdc bs=4k count=1024 oflag=direct status=none")
	g.run("cmp -n 4194304 /dev/vdb /dev/vdc && head -c 32 /dev/hwrng >/dev/null && dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct status=none")
	lines := g.run("grep virtio /proc/interrupts")
	require.Regexp(t, `(?m)^ *17: +[1-9]\d* +IO-APIC +17-fasteoi +virtio0, virtio4$`, lines)
	require.Regexp(t, `(?m)^ *18: +[1-9]\d* +IO-APIC +18-fasteoi +virtio1$`, lines)
	require.NotContains(t, lines, "MSI")
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}
