package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const guestMAC = "52:54:00:12:34:56"

// TestNet has guests talk to their host over a TAP.
func TestNet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		series       string
		cpus, queues int
		vhost        string
	}{{"6.1", 1, 1, "off"}, {"6.12", 2, 2, "on"}} {
		t.Run(fmt.Sprintf("%s,queues=%d,vhost=%s", c.series, c.queues, c.vhost), func(t *testing.T) {
			h := ownHost(t)
			n := h.network(t)
			h.need(t, "iperf3", "ethtool")
			const mtu = 9000
			n.tap("tap0", mtu, c.queues)
			net := fmt.Sprintf("tap,ifname=tap0,mac=%s,queues=%d,vhost=%s", guestMAC, c.queues, c.vhost)
			g := guest{series: c.series, cpus: c.cpus, args: []string{"-net", net}, under: n.under()}.start(t, h)
			if withQEMU() { // which doesn't look at the TAP's MTU
				g.run("ip link set eth0 mtu 9000")
			}
			setNetwork(g)
			n.background(t, "serving", "traffic serve tcp:"+hostIP+":9000")

			t.Run("identity", func(t *testing.T) {
				g.during(t)
				require.Equal(t, guestMAC+"\n9000\n", g.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu"))
				require.Equal(t, strconv.Itoa(c.queues)+"\n", g.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"))
				require.Equal(t, "1\n", g.run("cat /sys/class/net/eth0/carrier"))
				features := g.run("ethtool -k eth0")
				for _, want := range []string{
					"rx-checksumming: on", "tx-checksumming: on", "tcp-segmentation-offload: on", "scatter-gather: on",
				} {
					require.Contains(t, features, want)
				}
				files := h.output(t, "ls -l /proc/"+g.pid+"/fd")
				require.Equal(t, c.vhost == "on", strings.Contains(files, "/dev/vhost-net"), "the host's kernel moves the frames")
			})
			t.Run("ping", func(t *testing.T) {
				g.during(t)
				g.run("ping -q -c 3 -i 0.2 " + hostIP + " >/dev/null")
				g.run(fmt.Sprintf("ping -q -c 3 -i 0.2 -M do -s %d %s >/dev/null", mtu-28, hostIP))
				_, status := g.try(fmt.Sprintf("ping -q -c 1 -W 1 -M do -s %d %s", mtu-27, hostIP))
				require.NotZero(t, status, "a packet that doesn't fit")
				n.output(t, "ping -q -c 3 -i 0.2 "+guestIP)
			})
			t.Run("bytes with and without offloads", func(t *testing.T) {
				g.during(t)
				bytes := "traffic connect -up 3000000 -down 3000000 tcp:" + hostIP + ":9000"
				g.run(bytes)
				for _, offload := range []string{"tso", "gso", "gro", "tx", "rx", "sg"} {
					if _, status := g.try("ethtool -K eth0 " + offload + " off"); status != 0 {
						t.Logf("the driver can't switch %s", offload)
						continue
					}
					g.run(bytes)
				}
				for _, offload := range []string{"sg", "rx", "tx", "gro", "gso", "tso"} {
					g.try("ethtool -K eth0 " + offload + " on")
				}
				g.run(bytes)
			})
			if c.queues > 1 {
				t.Run("queues", func(t *testing.T) {
					g.during(t)
					bytes := "traffic connect -n 8 -parallel 8 -up 300000 -down 300000 tcp:" + hostIP + ":9000"
					for _, queues := range []int{1, c.queues} {
						g.run(fmt.Sprintf("ethtool -L eth0 combined %d; %s", queues, bytes))
					}
					busy := 0
					for line := range strings.Lines(g.run("grep -E 'virtio[0-9]+-(in|out)put' /proc/interrupts")) {
						sum := 0
						for _, field := range strings.Fields(line)[1 : 1+c.cpus] {
							count, err := strconv.Atoi(field)
							require.NoError(t, err)
							sum += count
						}
						if sum > 0 {
							busy++
						}
					}
					require.Greater(t, busy, 2, "queues that have interrupted")
				})
			}
			t.Run("connections", func(t *testing.T) {
				g.during(t)
				t.Log(strings.TrimSpace(g.run(fmt.Sprintf("traffic connect -n %d -parallel 16 tcp:%s:9000", times(500, 10_000), hostIP))))
			})
			t.Run("throughput", func(t *testing.T) {
				g.during(t)
				n.throughput(t, g, hostIP)
			})
			t.Run("driver anew", func(t *testing.T) {
				g.during(t)
				rebind(g, "net/eth0")
				if withQEMU() {
					g.run("ip link set eth0 mtu 9000")
				}
				setNetwork(g)
				g.run("traffic connect -up 100000 -down 100000 tcp:" + hostIP + ":9000")
			})
			checkLog(t, g)
			require.Zero(t, g.end("poweroff"))
			require.Contains(t, n.output(t, "ip link show tap0"), "NO-CARRIER", "nobody has the TAP any more")
		})
	}
}

// throughput moves bytes between the guest and a server at an address of the network's, for three seconds each way.
func (n *network) throughput(t *testing.T, g *process, server string) {
	t.Helper()
	n.background(t, "Server listening", "iperf3 -s --forceflush")
	for _, way := range []string{"", " -R"} {
		// The report is too long for the console.
		mbits := iperf(t, g.run("iperf3 -J -t 3 -c "+server+way+" >/tmp/iperf; grep -A 7 '\"sum_received\"' /tmp/iperf"))
		t.Logf("iperf3%s: %.0f Mbit/s", way, mbits)
		require.Greater(t, mbits, 1.0)
	}
}

// iperf returns the Mbit/s in a part of iperf3's report.
func iperf(t *testing.T, report string) float64 {
	t.Helper()
	var sum struct {
		Bits float64 `json:"bits_per_second"`
	}
	from, to := strings.Index(report, "{"), strings.Index(report, "}")
	require.Less(t, from, to, report)
	require.NoError(t, json.Unmarshal([]byte(report[from:to+1]), &sum))
	return sum.Bits / 1e6
}

// TestNetVanishes ends a monitor in the middle of traffic, and looks at what it leaves behind: nothing that keeps others from
// the TAP, which it may have found or made.
func TestNetVanishes(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	n := h.network(t)
	n.tap("tap0", 1500, 1)
	n.background(t, "serving", "traffic serve tcp:"+hostIP+":9000")
	g := guest{args: []string{"-net", "tap,ifname=tap0", "-net", "tap,ifname=tap1"}, under: n.under()}.start(t, h)
	setNetwork(g)
	n.output(t, "ip link show tap1")
	g.send("traffic connect -up 10000000000 -down 10000000000 tcp:" + hostIP + ":9000 & sleep 1; echo under''-way\n")
	g.expect("under-way\r\n")
	g.kill()
	require.Contains(t, n.output(t, "ip link show tap0"), "NO-CARRIER")
	n.output(t, "! ip link show tap1 2>/dev/null")
}

// TestNetStream has a guest talk over passt, which is a user's way to the host's network without a TAP.
func TestNetStream(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	n := h.network(t)
	h.need(t, "passt")
	// passt shows the guest the host's addresses and routes, and has the traffic to the gateway end on the host itself.
	n.output(t, `ip link add outside type veth peer name beyond
ip addr add 10.8.0.2/24 dev outside
ip link set outside up
ip link set beyond up
ip route add default via 10.8.0.1`)
	n.background(t, "serving", "traffic serve tcp:127.0.0.1:9000")
	socket := h.dir(t) + "/passt"
	h.output(t, "chmod 711 "+strings.TrimSuffix(socket, "/passt"))
	n.background(t, "You can now start", "passt --foreground --stderr --no-dhcp-dns --runas 0 --socket "+socket+" -t 7000 2>&1")
	g := guest{args: []string{"-net", "stream=unix:" + socket}, under: n.under()}.start(t, h)
	g.run("ip link set eth0 up; ip addr add 10.8.0.2/24 dev eth0; ip route add default via 10.8.0.1")
	t.Log(strings.TrimSpace(g.run("traffic connect -n 100 -parallel 8 tcp:10.8.0.1:9000")))
	// Not one connection with all that: Debian 12's passt ends one that moves megabytes both ways too early if the guest is slow.
	// Its FIN is in order, and what the server had still to say missing.
	t.Log(strings.TrimSpace(g.run("traffic connect -n 20 -up 100000 -down 100000 tcp:10.8.0.1:9000")))
	g.run("traffic serve tcp::7000 >/tmp/serving & until [ -s /tmp/serving ]; do sleep 0.1; done")
	n.output(t, "traffic connect -n 20 -up 10000 -down 10000 tcp:127.0.0.1:7000")
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}
