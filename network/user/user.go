// Package user is a network for a guest that needs no privileges on the host: a TCP/IP stack in this process ends the guest's
// connections and goes on with sockets of the host's, as any program has them.
//
// The guest sees an Ethernet with a router, a name server and a DHCP server on it (of [DefaultSubnet], by their last number):
//
//	.2    the router; with [Config.HostLoopback] it is the host's 127.0.0.1
//	.3    the name server, which asks those of the host's /etc/resolv.conf
//	.15   the guest, by DHCP
//
// Where the host has a route to the IPv6 Internet, the router also advertises the prefix fd00:766d:6d00::/64, with the same last
// numbers for itself and the name server.
//
// TCP and UDP go anywhere that the host can reach, echo requests too where the host lets this user send them
// (net.ipv4.ping_group_range). The host's loopback addresses are no place to go, nor are link-local ones, where clouds keep
// secrets for their machines. From outside nothing reaches the guest but what [Config.Forwards] lets through.
//
// The stack is gVisor's netstack. Frames cross over with the header of virtio in front (see package network), so that segments
// of up to 64 KiB are neither cut nor summed on the way.
//
// # Limits
//
// A guest may have 2,048 TCP connections and 1,024 flows of UDP at a time; more are refused or lost. A connection has at most
// 1 MiB waiting in each direction, and frames of at most 16 MiB wait for the guest. UDP flows are forgotten after 90 seconds of
// silence.
package user

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	stacklog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// DefaultSubnet is the guest's network, as QEMU's users know it.
var DefaultSubnet = netip.MustParsePrefix("10.0.2.0/24")

// prefix6 is the guest's IPv6 network: of the addresses that everybody may have (RFC 4193). A guest prefers IPv4 to it
// (RFC 6724 §2.1), and so loses no time where the host's IPv6 does not work.
var prefix6 = netip.MustParsePrefix("fd00:766d:6d00::/64")

// The last numbers of addresses in the guest's networks.
const (
	routerHost = 2
	dnsHost    = 3
	guestHost  = 15
)

// MTU of the network in bytes. TCP ends in this process, so no path behind it asks for less, and a guest that sends long
// segments costs less than one that sends many: it has no need to believe in a fast path first (Linux's tcp_tso_autosize).
// Long datagrams are the host's to cut.
const MTU = 65520

// plainMTU is for guests that take no offload, and so may have no buffers for more than Ethernet's frames.
const plainMTU = 1500

// Config says what a network is like.
type Config struct {
	Subnet   netip.Prefix // of IPv4, with at least 5 bits for hosts; zero for DefaultSubnet
	IPv6     bool         // advertise IPv6
	Forwards []Forward
	// HostLoopback lets the guest reach the host's loopback interface, at the router's address.
	HostLoopback bool
	Hostname     string // told by DHCP; empty for none
}

// Network is a network with one guest on it. It is the back end and the one port of a virtio network device.
type Network struct {
	*link
	cfg   Config
	addrs addresses
	stack *stack.Stack
	dns   *resolvers

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // all goroutines

	mu     sync.Mutex // guards closed; held while goroutines are added
	closed bool

	tcpSlots, udpSlots chan struct{} // what a guest may have at a time
	echoes             echoes
	listeners          []*listener
}

// addresses are those in the guest's networks.
type addresses struct {
	subnet             netip.Prefix
	router, dns, guest netip.Addr
	router6, dns6      netip.Addr
	linkLocal          netip.Addr // of the router
}

const nicID = 1

// Limits of what a guest can have at a time.
const (
	maxTCP     = 2048
	maxPending = 512 // TCP connections that are not established yet
	maxUDP     = 1024
	tcpBuffer  = 1 << 20
)

// host is the address with that last number.
func host(p netip.Prefix, n byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] |= n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Layout returns the addresses that a network of that subnet has.
func Layout(subnet netip.Prefix) (router, dns, guest netip.Addr) {
	return host(subnet, routerHost), host(subnet, dnsHost), host(subnet, guestHost)
}

// Open makes the network, and listens on the ports that are forwarded. Its error names the one that is taken.
func Open(cfg Config) (_ *Network, err error) {
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = DefaultSubnet
	}
	if !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > 27 || cfg.Subnet.Bits() < 8 {
		return nil, fmt.Errorf("network %v: not an IPv4 network of /8 to /27", cfg.Subnet)
	}
	router, dns, guest := Layout(cfg.Subnet)
	n := &Network{
		cfg: cfg, dns: newResolvers(resolvConf), tcpSlots: make(chan struct{}, maxTCP), udpSlots: make(chan struct{}, maxUDP),
		addrs: addresses{
			subnet: cfg.Subnet.Masked(), router: router, dns: dns, guest: guest,
			router6: host(prefix6, routerHost), dns6: host(prefix6, dnsHost), linkLocal: netip.MustParseAddr("fe80::2"),
		},
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	if n.link, err = newLink(n); err != nil {
		return nil, err
	}
	if err := n.newStack(); err != nil {
		return nil, errors.Join(err, n.close())
	}
	n.echoes.init(n)
	for _, f := range cfg.Forwards {
		if err := n.forward(f); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	if cfg.IPv6 {
		n.work.Go(n.advertise)
	}
	return n, nil
}

// silence keeps the stack from printing: its warnings would be the guest's to trigger.
var silence = sync.OnceFunc(func() { stacklog.SetTarget(&stacklog.Writer{Next: io.Discard}) })

// newStack makes the stack, which takes packets to whatever address for its own.
func (n *Network) newStack() error {
	silence()
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer / 2, Max: tcpBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer / 2, Max: tcpBuffer},
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("TCP: %s", err)
		}
	}
	if err := n.stack.CreateNIC(nicID, (*endpoint)(n.link)); err != nil {
		return fmt.Errorf("network interface: %s", err)
	}
	own := []netip.Addr{n.addrs.router, n.addrs.dns}
	if n.cfg.IPv6 {
		own = append(own, n.addrs.router6, n.addrs.dns6, n.addrs.linkLocal)
	}
	for _, a := range own {
		bits, protocol := n.addrs.subnet.Bits(), ipv4.ProtocolNumber
		if a.Is6() {
			bits, protocol = 64, ipv6.ProtocolNumber
		}
		err := n.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol: protocol, AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(a), PrefixLen: bits},
		}, stack.AddressProperties{})
		if err != nil {
			return fmt.Errorf("address %v: %s", a, err)
		}
	}
	// The guest's connections are to addresses of the whole world, and so come the answers.
	if err := errors.Join(asError(n.stack.SetPromiscuousMode(nicID, true)), asError(n.stack.SetSpoofing(nicID, true))); err != nil {
		return err
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID}})
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, maxPending, n.connect).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.datagram).HandlePacket)
	return nil
}

// Close ends all connections, and closes what was opened. Nothing may use the network as a port any more.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	n.stack.Close()
	n.work.Wait()
	n.stack.Wait()
	return errors.Join(append(errs, n.close())...)
}

// asError is an error of the stack as one of Go's.
func asError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.String())
}

func toAddress(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fromAddress(a tcpip.Address) netip.Addr {
	out, _ := netip.AddrFromSlice(a.AsSlice())
	return out.Unmap()
}

// target says where on the host's side the guest's packets to an address and port go. ok is false for where it may not go.
func (n *Network) target(to netip.AddrPort) (_ netip.AddrPort, ok bool) {
	a := to.Addr()
	switch {
	case a == n.addrs.router && n.cfg.HostLoopback:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port()), true
	case a == n.addrs.router6 && n.cfg.HostLoopback:
		return netip.AddrPortFrom(netip.IPv6Loopback(), to.Port()), true
	}
	return to, n.outside(a)
}

// outside tells whether an address is one of the world behind the router. 0.0.0.0/8 is not: for Linux 0.0.0.0 is itself.
func (n *Network) outside(a netip.Addr) bool {
	switch {
	case n.addrs.subnet.Contains(a), prefix6.Contains(a), a.Is4In6(), a.Is4() && a.As4()[0] == 0, a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	}
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

// dialTimeout is how long the host may take to establish a connection.
const dialTimeout = 30 * time.Second

// HostHasIPv6 tells whether the host has a route to the IPv6 Internet. No packet is sent for that.
func HostHasIPv6() bool {
	s, err := connectedSocket(netip.MustParseAddrPort("[2000::1]:53"))
	if err != nil {
		return false
	}
	_ = s.Close()
	return true
}

// routerMAC is a random address for the router, locally administered.
func routerMAC() tcpip.LinkAddress {
	mac := make([]byte, 6)
	_, _ = rand.Read(mac) // does not fail
	mac[0] = mac[0]&^1 | 2
	return tcpip.LinkAddress(mac)
}
