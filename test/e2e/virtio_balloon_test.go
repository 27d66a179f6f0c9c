package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBalloon has a guest use much memory and free it, which gives it back to the host.
func TestBalloon(t *testing.T) {
	g := guest{mem: "768M", args: []string{"-balloon"}}.start(t, kvmHost(t))
	g.run("[ -e /sys/bus/virtio/drivers/virtio_balloon/virtio* ]")
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
