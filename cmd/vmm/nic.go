package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"vmm/network"
	virtionet "vmm/virtio/net"
)

// nic is a value of -net.
type nic struct {
	text   string // as it was given
	stream string // the address of a stream; empty for a TAP
	ifname string
	mac    net.HardwareAddr // nil for a random one
	mtu    int              // zero for the back end's
	queues int
	vhost  int // in vhostModes
}

// vhostModes are the names of virtio/net's modes, in the order of their values.
var vhostModes = []string{virtionet.VhostAuto: "auto", virtionet.VhostOn: "on", virtionet.VhostOff: "off"}

// nicList is all values of -net.
type nicList []nic

// Set reads one more value.
func (l *nicList) Set(s string) error {
	set, err := parseSettings(s, "ifname", "mac", "mtu", "queues", "vhost")
	if err != nil {
		return err
	}
	n := nic{text: s, ifname: set.values["ifname"], queues: 1}
	kind, address, _ := strings.Cut(set.first, "=")
	switch {
	case set.first == "tap":
	case kind == "stream" && address != "":
		n.stream = address
		for _, key := range []string{"ifname", "queues", "vhost"} {
			if _, given := set.values[key]; given {
				return fmt.Errorf("%s: is for tap only", key)
			}
		}
	default:
		return errors.New("not a network (use tap or stream=unix:PATH)")
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
func (n *nic) open() (*virtionet.Device, io.Closer, error) {
	cfg := virtionet.Config{MAC: n.mac, MTU: n.mtu, Vhost: virtionet.VhostMode(n.vhost)}
	if cfg.MAC == nil {
		cfg.MAC = randomMAC()
	}
	var backend io.Closer
	if n.stream != "" {
		s, err := network.DialStream(n.stream)
		if err != nil {
			return nil, nil, mistakef("-net %s: %w", n.text, err)
		}
		backend, cfg.Backend, cfg.Ports = s, s, []virtionet.Port{s}
	} else {
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

// randomMAC is a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // does not fail
	mac[0] = mac[0]&^1 | 2
	return mac
}
