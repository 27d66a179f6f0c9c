package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBalloon has a guest use much memory and free it, which gives it back to the host.
func TestBalloon(t *testing.T) {
	t.Parallel()
	g := guest{mem: "768M", args: []string{"-balloon"}}.start(t, ownHost(t))
	const used, kernel = 300 << 20, 64 << 20
	for range 2 {
		before := g.resident()
		g.run("head -c 300M /dev/zero >/tmp/used")
		full := g.resident()
		require.Greater(t, full, before+used-kernel)
		g.run("rm /tmp/used")
		// The kernel reports free memory some seconds after it was freed, a part at a time.
		require.Eventually(t, func() bool { return g.resident() < full-used+kernel }, time.Minute, time.Second)
	}
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// TestBalloonSize has a guest give up memory from the start, as much as it is asked for. It is a test of its own: a balloon
// that is filled page by page leaves free memory in pieces that are too small for the reports of the other.
func TestBalloonSize(t *testing.T) {
	t.Parallel()
	if withQEMU() {
		t.Skip("QEMU takes the size later, by its monitor")
	}
	g := guest{series: "6.1", args: []string{"-balloon=128M"}}.start(t, ownHost(t))
	g.run(`until [ $(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) -lt $((340 * 1024)) ]; do sleep 0.5; done`)
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}
