package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVsock has the host and a guest connect to each other without a network.
func TestVsock(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		series      string
		cpus        int
		connections int
		bytes       int // each way, on one of them
	}{
		{"6.1", 1, 1000, 50 << 20},
		{"6.12", 2, times(100, 1000), times(5<<20, 100<<20)},
	} {
		t.Run(fmt.Sprintf("%s,cpus=%d", c.series, c.cpus), func(t *testing.T) {
			h := ownHost(t)
			h.needDisk(t)
			path := h.dir(t) + "/vsock"
			g := guest{series: c.series, cpus: c.cpus, args: []string{"-vsock", "cid=3,path=" + path}}.start(t, h)
			// The host's socket for a port is the path with the port's number, the guest's ports are behind the path.
			toGuest, onHost := "hybrid:"+path+":", "unix:"+path+"_"
			if withQEMU() {
				toGuest, onHost = "vsock:3:", "vsock:"
			}
			const guestPort, hostPort = "5000", "5001"
			h.background(t, "serving", "exec traffic serve "+onHost+hostPort)
			g.run("traffic serve vsock:" + guestPort + " >/tmp/serving 2>&1 & until [ -s /tmp/serving ]; do sleep 0.1; done")

			for _, w := range []struct {
				name string
				run  func(args string) string
			}{
				{"host to guest", func(args string) string { return h.output(t, "traffic connect "+args+" "+toGuest+guestPort) }},
				{"guest to host", func(args string) string { return g.run("traffic connect " + args + " vsock:2:" + hostPort) }},
			} {
				t.Run(w.name, func(t *testing.T) {
					g.during(t)
					t.Log(strings.TrimSpace(w.run(fmt.Sprintf("-n %d -parallel 16", c.connections))))
					t.Log(strings.TrimSpace(w.run(fmt.Sprintf("-up %[1]d -down %[1]d", c.bytes))))
					t.Log(strings.TrimSpace(w.run("-n 4 -parallel 4 -up 3000000 -down 3000000")))
				})
			}
			t.Run("nobody there", func(t *testing.T) {
				g.during(t)
				output, status := g.try("traffic connect vsock:2:5999")
				require.NotZero(t, status)
				require.Contains(t, output, "connection reset by peer")
				h.output(t, "! traffic connect "+toGuest+"5999 2>/dev/null")
			})
			t.Run("driver anew", func(t *testing.T) {
				g.during(t)
				g.run(`cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport 2>/dev/null || cd /sys/bus/virtio/drivers/virtio_vsock
device=$(basename virtio[0-9]*)
echo $device >unbind; echo $device >bind`)
				g.run("traffic connect -n 10 vsock:2:" + hostPort)
				h.output(t, "traffic connect -n 10 "+toGuest+guestPort)
			})
			checkLog(t, g)
			require.Zero(t, g.end("poweroff"))
			if !withQEMU() {
				require.Equal(t, "gone\n", h.output(t, "[ -e "+path+" ] || echo gone"))
			}
		})
	}
}
