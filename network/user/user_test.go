package user

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vmm/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const guestMAC = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// guest is a machine on the network: a second stack, which sees what a guest's kernel would see.
type guest struct {
	t     *testing.T
	n     *Network
	stack *stack.Stack
}

// newGuest opens a network, and puts a guest with the address that it would get on it.
func newGuest(t *testing.T, cfg Config, guestOffloads uint) *guest {
	t.Helper()
	return newGuestMTU(t, cfg, guestOffloads, plainMTU)
}

// newGuestMTU is newGuest with a card's MTU of the caller's.
func newGuestMTU(t *testing.T, cfg Config, guestOffloads uint, mtu uint32) *guest {
	t.Helper()
	n, err := Open(cfg)
	require.NoError(t, err)
	require.NoError(t, n.SetOffloads(guestOffloads))
	g := &guest{t: t, n: n, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})}
	card := channel.New(4096, mtu+header.EthernetMinimumSize, guestMAC)
	card.LinkEPCapabilities = stack.CapabilityRXChecksumOffload // what has been put off is not looked at
	require.Nil(t, g.stack.CreateNIC(1, ethernet.New(card)))
	require.Nil(t, g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(n.addrs.guest), PrefixLen: n.addrs.subnet.Bits()},
	}, stack.AddressProperties{}))
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, Gateway: toAddress(n.addrs.router), NIC: 1},
	})
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for p := card.ReadContext(ctx); p != nil; p = card.ReadContext(ctx) {
			g.send(p.ToView().AsSlice())
			p.DecRef()
		}
	})
	work.Go(func() {
		for ctx.Err() == nil {
			frame := g.receive(50)
			if frame != nil {
				p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
				card.InjectInbound(0, p)
				p.DecRef()
			}
		}
	})
	t.Cleanup(func() {
		stop()
		work.Wait()
		require.NoError(t, n.Close())
		g.stack.Destroy()
	})
	return g
}

// send gives the network a frame, in pieces as a guest's driver has them.
func (g *guest) send(frame []byte) {
	pieces := [][]byte{make([]byte, headerSize), frame[:header.EthernetMinimumSize], frame[header.EthernetMinimumSize:]}
	var iov []unix.Iovec
	for _, p := range pieces {
		if len(p) > 0 {
			iov = append(iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
		}
	}
	_ = g.n.Send(iov)
}

// receive waits so many milliseconds for a frame.
func (g *guest) receive(wait int) []byte {
	var head [headerSize]byte
	body := make([]byte, maxFrame)
	iov := []unix.Iovec{{Base: &head[0], Len: headerSize}, {Base: &body[0], Len: 100}, {Base: &body[100], Len: maxFrame - 100}}
	for {
		n, err := g.n.Receive(iov)
		if err == nil {
			if head[0]&needsChecksum != 0 && g.n.guestOffloads.Load() == 0 {
				g.t.Error("an offload that the guest does not take")
			}
			if n-headerSize > int((*endpoint)(g.n.link).MTU())+header.EthernetMinimumSize && head[1] == 0 {
				g.t.Errorf("a frame of %d bytes, and not for segments", n)
			}
			return body[:n-headerSize]
		}
		fds := []unix.PollFd{{Fd: int32(g.n.FD()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, wait); n == 0 {
			return nil
		}
	}
}

func (g *guest) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: toAddress(to.Addr()), Port: to.Port()}, ipv4.ProtocolNumber)
}

// client is an HTTP client in the guest.
func (g *guest) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		return g.dial(netip.MustParseAddrPort(address))
	}}}
}

// router is the address of the host's loopback, as the guest sees it.
func (g *guest) router(a net.Addr) netip.AddrPort {
	return netip.AddrPortFrom(g.n.addrs.router, netip.MustParseAddrPort(a.String()).Port())
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// serve has an HTTP server on the host's loopback that gives data, and takes what is posted.
func serve(t *testing.T, data []byte) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			h := sha256.New()
			_, _ = io.Copy(h, r.Body)
			_, _ = w.Write(h.Sum(nil))
			return
		}
		_, _ = w.Write(data)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr()
}

// TestTCP moves data both ways, with and without the offloads of the guest's card.
func TestTCP(t *testing.T) {
	for _, card := range []struct {
		offloads uint
		mtu      uint32
	}{{0, plainMTU}, {unix.TUN_F_CSUM, plainMTU}, {offloads, plainMTU}, {offloads, MTU}} {
		t.Run(fmt.Sprintf("offloads %#x, MTU %d", card.offloads, card.mtu), func(t *testing.T) {
			g := newGuestMTU(t, Config{HostLoopback: true}, card.offloads, card.mtu)
			data := randomBytes(8 << 20)
			at := g.router(serve(t, data))
			r, err := g.client().Get("http://" + at.String())
			require.NoError(t, err)
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.NoError(t, r.Body.Close())
			require.True(t, bytes.Equal(data, got))

			r, err = g.client().Post("http://"+at.String(), "", bytes.NewReader(data))
			require.NoError(t, err)
			got, err = io.ReadAll(r.Body)
			require.NoError(t, err)
			require.NoError(t, r.Body.Close())
			sum := sha256.Sum256(data)
			require.Equal(t, sum[:], got)
		})
	}
}

// TestHalfClose: the end of what one side says is no end of what the other does.
func TestHalfClose(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true}, 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		asked, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte("you said "), asked...))
	}()
	c, err := g.dial(g.router(l.Addr()))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "you said hello", string(answer))
}

// TestReset: a connection that breaks on one side breaks on the other.
func TestReset(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true}, 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	there := make(chan *net.TCPConn, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			there <- c.(*net.TCPConn)
		}
	}()
	c, err := g.dial(g.router(l.Addr()))
	require.NoError(t, err)
	s := <-there
	require.NoError(t, s.SetLinger(0))
	require.NoError(t, s.Close())
	_, err = c.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	_ = c.Close()

	c, err = g.dial(g.router(l.Addr()))
	require.NoError(t, err)
	s = <-there
	require.NoError(t, c.SetDeadline(time.Now()))
	_ = c.Close() // the guest's stack says so by an orderly end
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	_ = s.Close()
}

// TestClosedToGuest has all the addresses that lead to the host itself, or to what only it should talk to.
func TestClosedToGuest(t *testing.T) {
	l, err := net.Listen("tcp", ":0") // on every address of the host
	require.NoError(t, err)
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for _, loopback := range []bool{false, true} {
		g := newGuest(t, Config{HostLoopback: loopback}, 0)
		for _, a := range []string{"10.0.2.2", "10.0.2.3", "10.0.2.77", "10.0.2.255", "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"} {
			_, ok := g.n.target(netip.AddrPortFrom(netip.MustParseAddr(a), port))
			require.Equal(t, loopback && a == "10.0.2.2", ok, a)
		}
		for _, a := range []string{"::", "::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "fd00:766d:6d00::2", "fd00:766d:6d00::9"} {
			_, ok := g.n.target(netip.AddrPortFrom(netip.MustParseAddr(a), port))
			require.Equal(t, loopback && a == "fd00:766d:6d00::2", ok, a)
		}
		for _, a := range []string{"8.8.8.8", "192.168.1.1", "10.0.3.1", "2001:db8::1", "fd12::1"} {
			_, ok := g.n.target(netip.AddrPortFrom(netip.MustParseAddr(a), port))
			require.True(t, ok, a)
		}
		c, err := g.dial(netip.AddrPortFrom(g.n.addrs.router, port))
		if loopback {
			require.NoError(t, err)
			_ = c.Close()
			continue
		}
		require.ErrorContains(t, err, "refused")
		_, err = g.dial(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
		require.Error(t, err)
	}
}

// TestRefused: where nobody listens the guest hears so at once.
func TestRefused(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true}, 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := g.router(l.Addr())
	require.NoError(t, l.Close())
	_, err = g.dial(at)
	require.ErrorContains(t, err, "refused")
}

// TestForward reaches a server in the guest from the host.
func TestForward(t *testing.T) {
	g := newGuest(t, Config{Forwards: []Forward{
		{HostIP: netip.MustParseAddr("127.0.0.1"), GuestPort: 80}, {GuestPort: 81},
		{HostIP: netip.MustParseAddr("127.0.0.1"), GuestPort: 53, UDP: true},
	}}, offloads)
	data := randomBytes(3 << 20)
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{Port: 80}, ipv4.ProtocolNumber)
	require.NoError(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, r.RemoteAddr[:8])
		_, _ = w.Write(data)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { _ = s.Close(); <-done }()

	at := g.n.Listening()
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			r, err := c.Get("http://" + at[0].String())
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(append([]byte("10.0.2.2\n"), data...), got) {
				t.Error(err, len(got))
			}
			_ = r.Body.Close()
		})
	}
	clients.Wait()

	// Nobody listens there in the guest.
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", at[1].Port()))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
	_ = c.Close()

	// An echo server of datagrams.
	u, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: 1, Addr: toAddress(g.n.addrs.guest), Port: 53}, nil, ipv4.ProtocolNumber)
	require.NoError(t, err)
	defer u.Close()
	go answerAll(u, "")
	for i := range 5 {
		c, err := net.Dial("udp", at[2].String())
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		for _, size := range []int{1, 100, 9000} {
			message := randomBytes(size + i)
			_, err = c.Write(message)
			require.NoError(t, err)
			buf := make([]byte, 65536)
			n, err := c.Read(buf)
			require.NoError(t, err)
			require.Equal(t, message, buf[:n])
		}
		_ = c.Close()
	}
}

// answer has a server of datagrams on the host's loopback, which sends them back behind the prefix.
func answer(t *testing.T, prefix string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	go answerAll(c, prefix)
	return c
}

func answerAll(c net.PacketConn, prefix string) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(append([]byte(prefix), buf[:n]...), from)
	}
}

// TestUDP has the guest ask a server of datagrams on the host's loopback.
func TestUDP(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true}, 0)
	server := answer(t, "")
	at := g.router(server.LocalAddr())
	c, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: toAddress(at.Addr()), Port: at.Port()}, ipv4.ProtocolNumber)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	for _, size := range []int{1, 1400, 20000} {
		message := randomBytes(size)
		_, err = c.Write(message)
		require.NoError(t, err)
		buf := make([]byte, 65536)
		n, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, message, buf[:n])
	}
}

// TestDNS asks through two name servers, the first of which is deaf.
func TestDNS(t *testing.T) {
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer deaf.Close()
	server := answer(t, "answer to ")
	g := newGuest(t, Config{}, 0)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	g.n.dns = newResolvers(path)
	g.n.dns.servers()
	g.n.dns.list = []netip.AddrPort{netip.MustParseAddrPort(deaf.LocalAddr().String()), netip.MustParseAddrPort(server.LocalAddr().String())}
	c, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: toAddress(g.n.addrs.dns), Port: 53}, ipv4.ProtocolNumber)
	require.NoError(t, err)
	defer c.Close()
	buf := make([]byte, 512)
	require.Eventually(t, func() bool {
		_, err = c.Write([]byte("question"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		n, err := c.Read(buf)
		return err == nil && string(buf[:n]) == "answer to question"
	}, 10*time.Second, time.Millisecond)
}

func TestResolvConf(t *testing.T) {
	for _, tt := range []struct {
		text    string
		servers string
		domains string
	}{
		{"", "[127.0.0.1:53]", "[]"},
		{"# comment\nnameserver 192.0.2.1\nnameserver bad\nnameserver fe80::1%eth0\noptions edns0\nsearch a.example b.example\n", "[192.0.2.1:53 [fe80::1%eth0]:53]", "[a.example b.example]"},
		{"domain x\nnameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4", "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]", "[x]"},
		{"search .", "[127.0.0.1:53]", "[]"},
	} {
		servers, domains := parseResolvConf(tt.text)
		require.Equal(t, tt.servers, fmt.Sprint(servers))
		require.Equal(t, tt.domains, fmt.Sprint(domains))
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := newResolvers(path)
	require.Equal(t, "[127.0.0.1:53]", fmt.Sprint(r.servers()))
	require.NoError(t, os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600))
	require.Equal(t, "[192.0.2.1:53]", fmt.Sprint(r.servers()), "the host has moved to another network")
}

// lease asks for one as a DHCP client does.
func lease(t *testing.T, n *Network, modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr(guestMAC))}, modifiers...)...)
	require.NoError(t, err)
	reply := n.dhcp(m.ToBytes())
	if reply == nil {
		return nil
	}
	r, err := dhcpv4.FromBytes(reply)
	require.NoError(t, err)
	require.Equal(t, m.TransactionID, r.TransactionID)
	return r
}

func TestDHCP(t *testing.T) {
	n, err := Open(Config{Hostname: "box", Subnet: netip.MustParsePrefix("192.168.9.128/25")})
	require.NoError(t, err)
	defer n.Close()
	n.dns.servers()
	n.dns.domains = []string{"a.example", "b.example"}
	offer := lease(t, n, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	require.Equal(t, dhcpv4.MessageTypeOffer, offer.MessageType())
	require.Equal(t, "192.168.9.143", offer.YourIPAddr.String())
	ack := lease(t, n, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())))
	require.Equal(t, dhcpv4.MessageTypeAck, ack.MessageType())
	require.Equal(t, "[192.168.9.130]", fmt.Sprint(ack.Router()))
	require.Equal(t, "[192.168.9.131]", fmt.Sprint(ack.DNS()))
	require.Equal(t, "ffffff80", ack.SubnetMask().String())
	require.Equal(t, "box", ack.HostName())
	require.Equal(t, []string{"a.example", "b.example"}, ack.DomainSearch().Labels)
	require.Equal(t, leaseTime, ack.IPAddressLeaseTime(0))
	require.Equal(t, []byte{MTU >> 8, MTU & 0xff}, ack.Options.Get(dhcpv4.OptionInterfaceMTU))

	wrong := lease(t, n, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(1, 2, 3, 4))))
	require.Equal(t, dhcpv4.MessageTypeNak, wrong.MessageType())
	require.Nil(t, lease(t, n, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(1, 2, 3, 4)))))
	require.Nil(t, lease(t, n, dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)))
	require.Nil(t, n.dhcp([]byte("nonsense")))
}

// exchange sends a frame, and returns the first answer for which want holds.
func (n *Network) ask(t *testing.T, frame []byte, want func([]byte) bool) []byte {
	t.Helper()
	g := &guest{t: t, n: n}
	g.send(frame)
	for {
		answer := g.receive(5000)
		if answer == nil || want(answer) {
			return answer
		}
	}
}

// TestAddresses: the network answers for the router and the name server, and for no other, so that a guest that looks whether
// its address is free finds it free.
func TestAddresses(t *testing.T) {
	n, err := Open(Config{IPv6: true})
	require.NoError(t, err)
	defer n.Close()
	arpFor := func(target string) []byte {
		frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
		header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
		a := header.ARP(frame[header.EthernetMinimumSize:])
		a.SetIPv4OverEthernet()
		a.SetOp(header.ARPRequest)
		copy(a.HardwareAddressSender(), guestMAC)
		copy(a.ProtocolAddressSender(), []byte{10, 0, 2, 15})
		copy(a.ProtocolAddressTarget(), netip.MustParseAddr(target).AsSlice())
		return frame
	}
	solicit := func(target string) []byte {
		from, to := netip.MustParseAddr("fe80::5054:ff:fe12:3456"), netip.MustParseAddr("ff02::1:ff00:2")
		frame, p := n.ipv6Frame("\x33\x33\xff\x00\x00\x02", from, to, 32)
		header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: "\x33\x33\xff\x00\x00\x02", Type: header.IPv6ProtocolNumber})
		p[0] = byte(header.ICMPv6NeighborSolicit)
		copy(p[8:], netip.MustParseAddr(target).AsSlice())
		copy(p[24:], "\x01\x01"+string(guestMAC))
		sumICMPv6(p, from, to)
		return frame
	}
	for target, want := range map[string]bool{"10.0.2.2": true, "10.0.2.3": true, "10.0.2.15": false, "10.0.2.99": false, "8.8.8.8": false} {
		require.Equal(t, !want, n.intercept(arpFor(target)), target)
	}
	answer := n.ask(t, arpFor("10.0.2.2"), func(p []byte) bool { return header.Ethernet(p).Type() == header.ARPProtocolNumber })
	require.NotNil(t, answer)
	require.Equal(t, string(n.mac), string(header.ARP(answer[header.EthernetMinimumSize:]).HardwareAddressSender()))
	for target, want := range map[string]bool{"fe80::2": true, "fd00:766d:6d00::2": true, "fd00:766d:6d00::3": true, "fe80::5054:ff:fe12:3456": false, "fd00:766d:6d00::f": false} {
		require.Equal(t, !want, n.intercept(solicit(target)), target)
	}
	answer = n.ask(t, solicit("fe80::2"), func(p []byte) bool {
		return header.Ethernet(p).Type() == header.IPv6ProtocolNumber && p[54] == byte(header.ICMPv6NeighborAdvert)
	})
	require.NotNil(t, answer)
	require.Equal(t, netip.MustParseAddr("fe80::2").AsSlice(), answer[62:78])
}

// TestRouterAdvertisement reads one with the stack's own parser.
func TestRouterAdvertisement(t *testing.T) {
	n, err := Open(Config{IPv6: true})
	require.NoError(t, err)
	defer n.Close()
	frame, p := n.ipv6Frame("\x33\x33\x00\x00\x00\x02", netip.MustParseAddr("fe80::1234"), netip.MustParseAddr("ff02::2"), 8)
	p[0] = byte(header.ICMPv6RouterSolicit)
	answer := n.ask(t, frame, func(p []byte) bool { return p[54] == byte(header.ICMPv6RouterAdvert) })
	require.NotNil(t, answer)
	ip := header.IPv6(answer[header.EthernetMinimumSize:])
	require.True(t, ip.IsValid(len(ip)))
	require.EqualValues(t, 255, ip.HopLimit())
	message := header.ICMPv6(ip.Payload())
	sum := message.Checksum()
	message.SetChecksum(0)
	require.Equal(t, sum, header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: message, Src: ip.SourceAddress(), Dst: ip.DestinationAddress()}))
	ra := header.NDPRouterAdvert(message.MessageBody())
	require.Equal(t, routerLifetime, ra.RouterLifetime())
	require.False(t, ra.ManagedAddrConfFlag())
	options, err := ra.Options().Iter(true)
	require.NoError(t, err)
	var seen []string
	for {
		o, done, err := options.Next()
		require.NoError(t, err)
		if done {
			break
		}
		switch o := o.(type) {
		case header.NDPPrefixInformation:
			require.True(t, o.OnLinkFlag() && o.AutonomousAddressConfigurationFlag())
			seen = append(seen, o.Subnet().String())
		case header.NDPRecursiveDNSServer:
			servers, err := o.Addresses()
			require.NoError(t, err)
			seen = append(seen, fromAddress(servers[0]).String())
		}
	}
	require.Equal(t, []string{"fd00:766d:6d00::/64", "fd00:766d:6d00::3"}, seen)
}

// echoRequest is a frame with a ping of the guest's.
func echoRequest(n *Network, to string, id, sequence uint16, data string) []byte {
	frame, p := n.ipv4Frame(n.mac, n.addrs.guest, netip.MustParseAddr(to), header.ICMPv4ProtocolNumber, header.ICMPv4MinimumSize+len(data))
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: n.mac, Type: header.IPv4ProtocolNumber})
	m := header.ICMPv4(p)
	m.SetType(header.ICMPv4Echo)
	m.SetIdent(id)
	m.SetSequence(sequence)
	copy(p[header.ICMPv4MinimumSize:], data)
	m.SetChecksum(header.ICMPv4Checksum(m, 0))
	return frame
}

func isEchoReply(p []byte) bool {
	return header.Ethernet(p).Type() == header.IPv4ProtocolNumber && p[23] == byte(header.ICMPv4ProtocolNumber) && p[34] == byte(header.ICMPv4EchoReply)
}

// TestPing pings the router, which answers itself, and an address of the host that stands for the outside.
func TestPing(t *testing.T) {
	n, err := Open(Config{})
	require.NoError(t, err)
	defer n.Close()
	require.NoError(t, n.SetOffloads(offloads))
	// The router has to know the guest's address before it answers.
	g := &guest{t: t, n: n}
	reply := n.ask(t, echoRequest(n, "10.0.2.2", 7, 1, "to the router"), func(p []byte) bool {
		if header.Ethernet(p).Type() == header.ARPProtocolNumber {
			a := header.ARP(p[header.EthernetMinimumSize:])
			frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
			header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: n.mac, Type: header.ARPProtocolNumber})
			b := header.ARP(frame[header.EthernetMinimumSize:])
			b.SetIPv4OverEthernet()
			b.SetOp(header.ARPReply)
			copy(b.HardwareAddressSender(), guestMAC)
			copy(b.ProtocolAddressSender(), a.ProtocolAddressTarget())
			copy(b.HardwareAddressTarget(), n.mac)
			copy(b.ProtocolAddressTarget(), a.ProtocolAddressSender())
			g.send(frame)
		}
		return isEchoReply(p)
	})
	require.NotNil(t, reply)
	require.Equal(t, "to the router", string(reply[42:]))

	if s, err := echoSocket(netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Skipf("this user may send no echo requests: %v (sysctl net.ipv4.ping_group_range)", err)
	} else {
		_ = s.Close()
	}
	for _, data := range []string{"to the outside", strings.Repeat("longer than an Ethernet frame", 2000)} {
		frame := echoRequest(n, "192.0.2.1", 4711, 3, data)
		n.echoes.send(echoKey{n.addrs.guest, netip.MustParseAddr("127.0.0.1"), 4711}, guestMAC, frame[34:])
		reply = g.receive(5000)
		require.NotNil(t, reply)
		require.True(t, isEchoReply(reply))
		ip := header.IPv4(reply[header.EthernetMinimumSize:])
		require.True(t, ip.IsValid(len(ip)) && ip.IsChecksumValid())
		require.Equal(t, "127.0.0.1", fromAddress(ip.SourceAddress()).String())
		require.Equal(t, n.addrs.guest, fromAddress(ip.DestinationAddress()))
		m := header.ICMPv4(ip.Payload())
		require.EqualValues(t, 4711, m.Ident())
		require.EqualValues(t, 3, m.Sequence())
		sum := m.Checksum()
		m.SetChecksum(0)
		require.Equal(t, sum, header.ICMPv4Checksum(m, 0))
		require.Equal(t, data, string(m.Payload()))
	}
}

func TestParseForward(t *testing.T) {
	for text, want := range map[string]Forward{
		"8080:80":               {HostPort: 8080, GuestPort: 80},
		"80":                    {GuestPort: 80},
		"53:53/udp":             {HostPort: 53, GuestPort: 53, UDP: true},
		"127.0.0.1:2222:22/tcp": {HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 2222, GuestPort: 22},
		"127.0.0.1::22":         {HostIP: netip.MustParseAddr("127.0.0.1"), GuestPort: 22},
		"[::1]:2222:22":         {HostIP: netip.IPv6Loopback(), HostPort: 2222, GuestPort: 22},
		"::1:2222:22":           {HostIP: netip.IPv6Loopback(), HostPort: 2222, GuestPort: 22},
	} {
		got, err := ParseForward(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseForward(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, want, again)
	}
	for text, want := range map[string]string{
		"":              `port "": not a number from 1 to 65535`,
		"http":          `port "http": not a number from 1 to 65535`,
		"80:0":          `port "0": not a number from 1 to 65535`,
		"65536:80":      `port "65536": not a number from 1 to 65535`,
		":80":           "needs a port (use for example 8080:80, or 127.0.0.1:2222:22/tcp)",
		"80:80/sctp":    `protocol "sctp": not tcp or udp`,
		"host:80:80":    `"host": not an address of the host's (use for example 127.0.0.1)`,
		":8080:80":      "needs a port (use for example 8080:80, or 127.0.0.1:2222:22/tcp)",
		"1.2.3:8080:80": `"1.2.3": not an address of the host's (use for example 127.0.0.1)`,
	} {
		_, err := ParseForward(text)
		require.EqualError(t, err, want, text)
	}
}

// TestTaken: a port that is taken is named, and what was opened before is closed again.
func TestTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	local := netip.MustParseAddr("127.0.0.1")
	port := func(l net.Listener) uint16 { return netip.MustParseAddrPort(l.Addr().String()).Port() }
	_, err = Open(Config{Forwards: []Forward{{HostIP: local, HostPort: port(free), GuestPort: 1}, {HostIP: local, HostPort: port(l), GuestPort: 2}}})
	require.EqualError(t, err, fmt.Sprintf("port 127.0.0.1:%d:2: address already in use (another program listens there: choose another port)", port(l)))
	again, err := net.Listen("tcp", free.Addr().String())
	require.NoError(t, err)
	_ = again.Close()
	_, err = Open(Config{Forwards: []Forward{{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 1234, GuestPort: 1}}})
	require.EqualError(t, err, "port 192.0.2.1:1234:1: cannot assign requested address (the host has no address 192.0.2.1)")
	_, err = Open(Config{Subnet: netip.MustParsePrefix("10.0.0.0/30")})
	require.EqualError(t, err, "network 10.0.0.0/30: not an IPv4 network of /8 to /27")
}

// TestSlow has a guest that takes nothing: what waits for it is bounded.
func TestSlow(t *testing.T) {
	n, err := Open(Config{})
	require.NoError(t, err)
	defer n.Close()
	for range 100_000 {
		n.inject(make([]byte, 1000))
	}
	require.LessOrEqual(t, n.size, maxWaiting)
	g := &guest{t: t, n: n}
	count := 0
	for g.receive(0) != nil {
		count++
	}
	require.InDelta(t, maxWaiting/1000, count, 1)
	require.Zero(t, n.size)
	n.inject(make([]byte, 60))
	require.Len(t, g.receive(0), 60, "and goes on")
}

// FuzzSend gives the network what a guest may send.
func FuzzSend(f *testing.F) {
	n, err := Open(Config{IPv6: true})
	require.NoError(f, err)
	f.Cleanup(func() { _ = n.Close() })
	f.Add(echoRequest(n, "10.0.2.2", 1, 1, "x"))
	f.Add(n.advertisement())
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr(guestMAC))
	require.NoError(f, err)
	f.Add(n.udpFrame(guestMAC, netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpClientPort, dhcpServerPort, m.ToBytes()))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < header.EthernetMinimumSize {
			return
		}
		// A packet of another protocol goes where a real host may not be asked: TCP and UDP stay inside.
		frame = bytes.Clone(frame)
		if binary.BigEndian.Uint16(frame[12:]) == uint16(header.IPv4ProtocolNumber) && len(frame) > 33 {
			copy(frame[30:], []byte{10, 0, 2, 2})
		}
		g := &guest{t: t, n: n}
		g.send(frame)
		for g.receive(0) != nil {
		}
	})
}
