package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"vmm/network"
	usernet "vmm/network/user"
	virtionet "vmm/virtio/net"
)

// nic is a value of -net.
type nic struct {
	text   string // as it was given
	kind   nicKind
	stream string       // the address of a stream
	subnet netip.Prefix // of a user network; the zero value is the default one
	ipv6   int          // in ipv6Modes
	ifname string
	mac    net.HardwareAddr // nil for a random one
	mtu    int              // zero for the back end's
	queues int
	vhost  int // in vhostModes
}

type nicKind int

const (
	nicTAP nicKind = iota
	nicStream
	nicUser
	nicNone // stands for no card, where there would be one
)

// nicSettings are what may follow each kind.
var nicSettings = map[nicKind][]string{
	nicTAP:    {"ifname", "mac", "mtu", "queues", "vhost"},
	nicStream: {"mac", "mtu"},
	nicUser:   {"mac", "subnet", "ipv6"},
	nicNone:   {},
}

// ipv6Modes say whether a user network has IPv6; auto is where the host has a way to the Internet by it.
var ipv6Modes = []string{"auto", "on", "off"}

// vhostModes are the names of virtio/net's modes, in the order of their values.
var vhostModes = []string{virtionet.VhostAuto: "auto", virtionet.VhostOn: "on", virtionet.VhostOff: "off"}

// nicList is all values of -net.
type nicList []nic

// Set reads one more value.
func (l *nicList) Set(s string) error {
	set, err := parseSettings(s, "ifname", "mac", "mtu", "queues", "vhost", "subnet", "ipv6")
	if err != nil {
		return err
	}
	n := nic{text: s, ifname: set.values["ifname"], queues: 1}
	word, address, _ := strings.Cut(set.first, "=")
	switch {
	case set.first == "tap":
	case word == "stream" && address != "":
		n.kind, n.stream = nicStream, address
	case set.first == "user":
		n.kind = nicUser
	case set.first == "none":
		n.kind = nicNone
	default:
		return errors.New("not a network (use user, tap, stream=unix:PATH or none)")
	}
	for key := range set.values {
		if !slices.Contains(nicSettings[n.kind], key) {
			return fmt.Errorf("%s: is not for %s", key, word)
		}
	}
	if len(*l) > 0 && (n.kind == nicNone || (*l)[0].kind == nicNone) {
		return errors.New("none goes with no other network")
	}
	if n.kind == nicUser && slices.ContainsFunc(*l, func(other nic) bool { return other.kind == nicUser }) {
		return errors.New("only one network can be a user network")
	}
	if subnet, given := set.values["subnet"]; given {
		if n.subnet, err = netip.ParsePrefix(subnet); err != nil || !n.subnet.Addr().Is4() {
			return fmt.Errorf("subnet=%s: not an IPv4 network (use for example 10.0.2.0/24)", subnet)
		}
	}
	if mac, given := set.values["mac"]; given {
		if n.mac, err = net.ParseMAC(mac); err != nil || len(n.mac) != 6 || n.mac[0]&1 != 0 {
			return fmt.Errorf("mac=%s: not a unicast address (use for example 52:54:00:12:34:56)", mac)
		}
	}
	err = cmp.Or(
		set.number("mtu", 68, 65535, &n.mtu),
		set.number("queues", 1, virtionet.MaxPairs, &n.queues),
		set.choice("vhost", vhostModes, &n.vhost),
		set.choice("ipv6", ipv6Modes, &n.ipv6),
	)
	if err == nil {
		*l = append(*l, n)
	}
	return err
}

func (l *nicList) String() string {
	var texts []string
	for _, n := range *l {
		texts = append(texts, n.text)
	}
	return strings.Join(texts, " ")
}

// Type is the value's name in pflag's terms.
func (l *nicList) Type() string { return "network" }

// open opens the back end and makes the device for it. The caller closes the back end.
func (n *nic) open(o *bootOptions, set *deviceSet) (*virtionet.Device, io.Closer, error) {
	cfg := virtionet.Config{MAC: n.mac, MTU: n.mtu, Vhost: virtionet.VhostMode(n.vhost)}
	switch {
	case cfg.MAC != nil:
	case n.kind == nicUser:
		cfg.MAC = userMAC
	default:
		cfg.MAC = randomMAC()
	}
	var backend io.Closer
	switch n.kind {
	case nicStream:
		s, err := network.DialStream(n.stream)
		if err != nil {
			return nil, nil, mistakef("-net %s: %w", n.text, err)
		}
		backend, cfg.Backend, cfg.Ports = s, s, []virtionet.Port{s}
	case nicUser:
		u, err := n.openUser(o, set)
		if err != nil {
			return nil, nil, err
		}
		backend, cfg.Backend, cfg.Ports = u, u, []virtionet.Port{u}
		cfg.MTU, cfg.Vhost = usernet.MTU, virtionet.VhostOff
	default:
		t, err := network.OpenTAP(network.TAPConfig{Name: n.ifname, Queues: n.queues})
		if err != nil {
			return nil, nil, mistakef("-net %s: %w", n.text, err)
		}
		backend, cfg.Backend = t, t
		for _, p := range t.Ports() {
			cfg.Ports = append(cfg.Ports, p)
		}
		cfg.MTU = cmp.Or(n.mtu, t.MTU())
	}
	dev, err := virtionet.New(cfg)
	if err != nil {
		return nil, nil, errors.Join(mistakef("-net %s: %w", n.text, err), backend.Close())
	}
	return dev, backend, nil
}

// openUser opens a network without privileges, with the ports of -p.
func (n *nic) openUser(o *bootOptions, set *deviceSet) (*usernet.Network, error) {
	cfg := usernet.Config{
		Subnet: n.subnet, Forwards: o.publish.forwards, HostLoopback: o.hostLoopback, Hostname: o.seed.guestName(o.name),
		IPv6: ipv6Modes[n.ipv6] == "on" || ipv6Modes[n.ipv6] == "auto" && usernet.HostHasIPv6(),
	}
	u, err := usernet.Open(cfg)
	var taken *usernet.PortError
	switch {
	case errors.As(err, &taken):
		return nil, mistakef("-p %s: %w", taken.Forward, taken.Err)
	case err != nil:
		return nil, mistakef("-net %s: %w", n.text, err)
	}
	for i, at := range u.Listening() {
		if f := o.publish.forwards[i]; f.HostPort == 0 { // the user has yet to hear of it
			set.notices = append(set.notices, fmt.Sprintf("port %d of the guest is %s", f.GuestPort, at))
		}
	}
	return u, nil
}

// publishList is all values of -p.
type publishList struct{ forwards []usernet.Forward }

// Set reads one more value.
func (l *publishList) Set(s string) error {
	f, err := usernet.ParseForward(s)
	if err == nil {
		l.forwards = append(l.forwards, f)
	}
	return err
}

func (l *publishList) String() string {
	var texts []string
	for _, f := range l.forwards {
		texts = append(texts, f.String())
	}
	return strings.Join(texts, " ")
}

// Type is the value's name in pflag's terms.
func (l *publishList) Type() string { return "port" }

// userMAC is the address of the card on the user network, where no other can have it too. It is the same at each start, as
// guests know their cards by it: what cloud-init configures at the first boot is for that card alone.
var userMAC = net.HardwareAddr{0x52, 0x54, 0, 'v', 'm', 0} // locally administered

// randomMAC is a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // does not fail
	mac[0] = mac[0]&^1 | 2
	return mac
}
