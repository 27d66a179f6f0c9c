package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBalloon has a guest give up memory from the start, and use much more for a while: that goes back to the host as well
// when it is free again.
func TestBalloon(t *testing.T) {
	balloon := "-balloon=256M"
	if withQEMU() { // which takes the size later
		balloon = "-balloon"
	}
	g := guest{mem: "1G", args: []string{balloon}}.start(t, kvmHost(t))
	if !withQEMU() {
		g.run(`until [ $(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) -lt $((700 * 1024)) ]; do sleep 0.5; done`)
	}
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
