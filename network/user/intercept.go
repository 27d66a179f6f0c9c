package user

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// intercept looks at a frame of the guest's before the stack does, which takes all addresses for its own, and so would answer
// for all of them. It reports whether the frame is dealt with.
func (n *Network) intercept(frame []byte) bool {
	eth := header.Ethernet(frame)
	p := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		// The guest asks for addresses to see that nobody has them; only the router's and the name server's are taken.
		arp := header.ARP(p)
		if len(p) < header.ARPSize || !arp.IsValid() || arp.Op() != header.ARPRequest {
			return false
		}
		a := netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget()))
		return a != n.addrs.router && a != n.addrs.dns
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || ip.FragmentOffset() != 0 || ip.More() {
			return false
		}
		return n.intercept4(eth.SourceAddress(), ip)
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) || ip.TransportProtocol() != header.ICMPv6ProtocolNumber {
			return false
		}
		return n.intercept6(eth.SourceAddress(), ip)
	}
	return true // of other protocols nothing is known
}

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
)

func (n *Network) intercept4(from tcpip.LinkAddress, ip header.IPv4) bool {
	payload := ip.Payload()
	switch ip.TransportProtocol() {
	case header.UDPProtocolNumber:
		u := header.UDP(payload)
		if len(payload) < header.UDPMinimumSize || u.DestinationPort() != dhcpServerPort || u.SourcePort() != dhcpClientPort {
			return false
		}
		if reply := n.dhcp(payload[header.UDPMinimumSize:]); reply != nil {
			n.inject(n.udpFrame(from, n.addrs.router, netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpServerPort, dhcpClientPort, reply))
		}
		return true
	case header.ICMPv4ProtocolNumber:
		to := fromAddress(ip.DestinationAddress())
		icmp := header.ICMPv4(payload)
		if len(payload) < header.ICMPv4MinimumSize || icmp.Type() != header.ICMPv4Echo || to == n.addrs.router || to == n.addrs.dns {
			return false
		}
		if n.outside(to) {
			n.echoes.send(echoKey{fromAddress(ip.SourceAddress()), to, icmp.Ident()}, from, payload)
		}
		return true
	}
	return false
}

func (n *Network) intercept6(from tcpip.LinkAddress, ip header.IPv6) bool {
	payload := ip.Payload()
	if len(payload) < header.ICMPv6MinimumSize {
		return true
	}
	to := fromAddress(ip.DestinationAddress())
	icmp := header.ICMPv6(payload)
	switch icmp.Type() {
	case header.ICMPv6NeighborSolicit:
		if !n.cfg.IPv6 || len(payload) < header.ICMPv6NeighborSolicitMinimumSize {
			return true
		}
		a := netip.AddrFrom16([16]byte(payload[8:]))
		return a != n.addrs.router6 && a != n.addrs.dns6 && a != n.addrs.linkLocal
	case header.ICMPv6RouterSolicit:
		if n.cfg.IPv6 {
			n.inject(n.advertisement())
		}
		return true
	case header.ICMPv6EchoRequest:
		if to == n.addrs.router6 || to == n.addrs.dns6 || to == n.addrs.linkLocal {
			return !n.cfg.IPv6
		}
		if n.cfg.IPv6 && n.outside(to) {
			n.echoes.send(echoKey{fromAddress(ip.SourceAddress()), to, icmp.Ident()}, from, payload)
		}
		return true
	}
	return !n.cfg.IPv6
}

// leaseTime is for as long as any guest runs: there is nobody else to have its address.
const leaseTime = 24 * time.Hour

// dhcp answers a DHCP client's message (RFC 2131), or returns nil where there is nothing to say.
func (n *Network) dhcp(message []byte) []byte {
	m, err := dhcpv4.FromBytes(message)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	guest, router := net.IP(n.addrs.guest.AsSlice()), net.IP(n.addrs.router.AsSlice())
	kind := dhcpv4.MessageTypeAck
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if server := m.ServerIdentifier(); server != nil && !server.Equal(router) {
			return nil // the offer of somebody else
		}
		wanted := m.RequestedIPAddress()
		if wanted == nil {
			wanted = m.ClientIPAddr
		}
		if !wanted.Equal(guest) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
	default:
		return nil
	}
	modifiers := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(router), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(router))}
	if kind != dhcpv4.MessageTypeNak {
		modifiers = append(modifiers,
			dhcpv4.WithNetmask(net.CIDRMask(n.addrs.subnet.Bits(), 32)), dhcpv4.WithRouter(router), dhcpv4.WithDNS(net.IP(n.addrs.dns.AsSlice())),
			dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(MTU)}))
		if m.MessageType() != dhcpv4.MessageTypeInform {
			modifiers = append(modifiers, dhcpv4.WithYourIP(guest), dhcpv4.WithLeaseTime(uint32(leaseTime.Seconds())))
		}
		if n.cfg.Hostname != "" {
			modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptHostName(n.cfg.Hostname)))
		}
		if domains := n.dns.search(); len(domains) > 0 {
			modifiers = append(modifiers, dhcpv4.WithDomainSearchList(domains...))
		}
	}
	reply, err := dhcpv4.NewReplyFromRequest(m, modifiers...)
	if err != nil {
		return nil
	}
	return reply.ToBytes()
}

// ethernetFrame begins a frame of the router's with room for size bytes.
func (n *Network) ethernetFrame(to tcpip.LinkAddress, kind tcpip.NetworkProtocolNumber, size int) (frame, payload []byte) {
	frame = make([]byte, header.EthernetMinimumSize+size)
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: n.mac, DstAddr: to, Type: kind})
	return frame, frame[header.EthernetMinimumSize:]
}

// ipv4Frame is a frame with an IPv4 packet, whose payload the caller fills.
func (n *Network) ipv4Frame(mac tcpip.LinkAddress, from, to netip.Addr, protocol tcpip.TransportProtocolNumber, size int) (frame, payload []byte) {
	frame, p := n.ethernetFrame(mac, header.IPv4ProtocolNumber, header.IPv4MinimumSize+size)
	ip := header.IPv4(p)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(p)), TTL: 64, Protocol: uint8(protocol), SrcAddr: toAddress(from), DstAddr: toAddress(to),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return frame, ip.Payload()
}

// ipv6Frame is a frame with an IPv6 packet, whose payload the caller fills.
func (n *Network) ipv6Frame(mac tcpip.LinkAddress, from, to netip.Addr, size int) (frame, payload []byte) {
	frame, p := n.ethernetFrame(mac, header.IPv6ProtocolNumber, header.IPv6MinimumSize+size)
	ip := header.IPv6(p)
	ip.Encode(&header.IPv6Fields{
		PayloadLength: uint16(size), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 255, SrcAddr: toAddress(from), DstAddr: toAddress(to),
	})
	return frame, p[header.IPv6MinimumSize:]
}

// sumICMPv6 sets the checksum of an ICMPv6 message.
func sumICMPv6(p []byte, from, to netip.Addr) {
	icmp := header.ICMPv6(p)
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: toAddress(from), Dst: toAddress(to)}))
}

func (n *Network) udpFrame(mac tcpip.LinkAddress, from, to netip.Addr, fromPort, toPort uint16, data []byte) []byte {
	frame, p := n.ipv4Frame(mac, from, to, header.UDPProtocolNumber, header.UDPMinimumSize+len(data))
	u := header.UDP(p)
	u.Encode(&header.UDPFields{SrcPort: fromPort, DstPort: toPort, Length: uint16(len(p))})
	copy(u.Payload(), data)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, toAddress(from), toAddress(to), uint16(len(p)))
	u.SetChecksum(^checksum.Checksum(p, sum))
	return frame
}

// How often the router advertises itself, and how long what it says holds.
const (
	advertiseEvery = 10 * time.Minute
	routerLifetime = 30 * time.Minute
)

// advertise tells the guest of its IPv6 network now and then. A guest that has just started asks.
func (n *Network) advertise() {
	tick := time.NewTicker(advertiseEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
			n.inject(n.advertisement())
		}
	}
}

// advertisement is a router advertisement to all nodes (RFC 4861 §4.2), with the prefix and the name server (RFC 8106 §5.1).
func (n *Network) advertisement() []byte {
	be := binary.BigEndian
	seconds := uint32(routerLifetime.Seconds())
	body := make([]byte, 16, 80)
	body[0] = byte(header.ICMPv6RouterAdvert)
	body[4] = 64 // hop limit
	be.PutUint16(body[6:], uint16(seconds))
	body = append(body, 1, 1) // source link-layer address
	body = append(body, n.mac...)
	body = be.AppendUint32(append(body, 5, 1, 0, 0), MTU)
	body = append(body, 3, 4, 64, 0xc0) // prefix: on the link, and for addresses of one's own
	body = be.AppendUint32(body, seconds)
	body = be.AppendUint32(body, seconds)
	body = append(body, 0, 0, 0, 0)
	body = append(body, prefix6.Addr().AsSlice()...)
	body = be.AppendUint32(append(body, 25, 3, 0, 0), seconds) // name server
	body = append(body, n.addrs.dns6.AsSlice()...)

	all := netip.MustParseAddr("ff02::1")
	frame, p := n.ipv6Frame(tcpip.LinkAddress("\x33\x33\x00\x00\x00\x01"), n.addrs.linkLocal, all, len(body))
	copy(p, body)
	sumICMPv6(p, n.addrs.linkLocal, all)
	return frame
}
