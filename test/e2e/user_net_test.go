package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// outside6 is for IPv6 what outside is for IPv4.
const outside6 = "2001:db8::1"

// TestNetUser has a guest talk to the world by the network that needs no privileges: to an address of the host's that is none
// of its loopback's own.
func TestNetUser(t *testing.T) {
	t.Parallel()
	if withQEMU() {
		t.Skip("is about a network of vmm's own: run without " + monitorVariable + "=qemu")
	}
	h := ownHost(t)
	n := h.network(t)
	h.need(t, "iperf3")
	n.output(t, "ip address add "+outside+"/32 dev lo; ip address add "+outside6+"/128 dev lo; sysctl -qw net.ipv4.ping_group_range='0 0'")
	g := guest{args: []string{"-net", "user,ipv6=on", "-p", "127.0.0.1:9001:9000"}, under: n.under()}.start(t, h)
	g.run("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2")
	n.background(t, "serving", "traffic serve tcp:"+outside+":9000")

	t.Run("ping", func(t *testing.T) {
		g.during(t)
		g.run("ping -q -c 3 -i 0.2 10.0.2.2 >/dev/null")
		g.run("ping -q -c 3 -i 0.2 " + outside + " >/dev/null")
		require.Equal(t, "3\n", g.run("ping -c 3 -i 0.2 -s 20000 "+outside+" | grep -c '^20008 bytes.*ms$'"))
	})
	t.Run("bytes", func(t *testing.T) {
		g.during(t)
		bytes := "traffic connect -up 3000000 -down 3000000 tcp:" + outside + ":9000"
		g.run(bytes)
		g.run("ip link set eth0 mtu 1500; " + bytes) // segments for the guest to cut
		g.run("ip link set eth0 mtu 65520")
		g.run(fmt.Sprintf("traffic connect -down %d tcp:%s:9000", times(10<<20, 1<<30), outside))
	})
	t.Run("IPv6", func(t *testing.T) {
		g.during(t)
		// The router advertises a prefix; the guest makes itself an address of it.
		g.run("until ip -6 addr show dev eth0 scope global | grep -q fd00:766d:6d00; do sleep 0.2; done; until ! ip -6 addr show dev eth0 tentative | grep -q inet6; do sleep 0.2; done")
		g.run("ping -6 -q -c 3 -i 0.2 fd00:766d:6d00::2 >/dev/null")
		n.background(t, "serving", "traffic serve tcp:["+outside6+"]:9000")
		g.run("ping -6 -q -c 3 -i 0.2 " + outside6 + " >/dev/null")
		g.run("traffic connect -up 1000000 -down 1000000 tcp:[" + outside6 + "]:9000")
	})
	t.Run("connections", func(t *testing.T) {
		g.during(t)
		t.Log(strings.TrimSpace(g.run(fmt.Sprintf("traffic connect -n %d -parallel 16 tcp:%s:9000", times(200, 10_000), outside))))
	})
	t.Run("published port", func(t *testing.T) {
		g.during(t)
		g.run("traffic serve tcp:10.0.2.15:9000 >/tmp/serving & until grep -q serving /tmp/serving; do sleep 0.1; done")
		t.Log(strings.TrimSpace(n.output(t, "traffic connect -n 20 -parallel 4 -up 100000 -down 100000 tcp:127.0.0.1:9001")))
	})
	t.Run("throughput", func(t *testing.T) {
		g.during(t)
		n.throughput(t, g, outside)
	})
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}
