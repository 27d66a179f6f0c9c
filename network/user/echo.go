package user

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Limits of echo requests under way.
const (
	maxEchoes = 256
	echoIdle  = 30 * time.Second
)

// echoes are the guest's pings of the outside. Each pinging program has a socket of the host's, of the kind that needs no
// privileges (icmp(7)): the kernel gives it an identifier of its own, and it hears of its own answers only.
type echoes struct {
	n     *Network
	slots chan struct{}

	mu    sync.Mutex // guards flows
	flows map[echoKey]*echoFlow
}

type echoKey struct {
	guest, to netip.Addr
	id        uint16
}

type echoFlow struct {
	socket net.Conn
	watch  *time.Timer
}

func (e *echoes) init(n *Network) {
	e.n, e.slots, e.flows = n, make(chan struct{}, maxEchoes), map[echoKey]*echoFlow{}
}

// send sends an echo request of the guest's, whose card has the address mac.
func (e *echoes) send(key echoKey, mac tcpip.LinkAddress, message []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.flows[key]
	if f == nil {
		socket, err := echoSocket(key.to)
		if err != nil {
			return // not allowed, or no way there: as silent as the net is
		}
		release, ok := e.n.begin(e.slots)
		if !ok {
			_ = socket.Close()
			return
		}
		f = &echoFlow{socket: socket, watch: time.AfterFunc(echoIdle, func() { _ = socket.Close() })}
		e.flows[key] = f
		go func() {
			defer release()
			e.receive(key, f, mac)
		}()
	}
	f.watch.Reset(echoIdle)
	_, _ = f.socket.Write(message) // the kernel sets the identifier and the checksum
}

// echoSocket is a socket for echo requests to one address.
func echoSocket(to netip.Addr) (net.Conn, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var address unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if to.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		address = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "echo")
	defer file.Close()
	if err := unix.Connect(fd, address); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// receive gives the guest what answers come, until there have been no requests for a while.
func (e *echoes) receive(key echoKey, f *echoFlow, mac tcpip.LinkAddress) {
	stop := context.AfterFunc(e.n.ctx, func() { _ = f.socket.Close() })
	defer stop()
	buf := copyBuffers.Get().(*[64 << 10]byte) // for more than a request can be that came in one piece
	defer copyBuffers.Put(buf)
	for {
		got, err := f.socket.Read(buf[:])
		if err != nil && passing(err) {
			continue
		}
		if err != nil {
			break
		}
		if got >= header.ICMPv4MinimumSize {
			e.n.inject(e.n.echoReply(key, mac, buf[:got]))
		}
	}
	f.watch.Stop()
	_ = f.socket.Close()
	e.mu.Lock()
	delete(e.flows, key)
	e.mu.Unlock()
}

// echoReply is a reply as the guest knows its request.
func (n *Network) echoReply(key echoKey, mac tcpip.LinkAddress, message []byte) []byte {
	if key.to.Is6() {
		frame, p := n.ipv6Frame(mac, key.to, key.guest, len(message))
		copy(p, message)
		header.ICMPv6(p).SetIdent(key.id)
		sumICMPv6(p, key.to, key.guest)
		return frame
	}
	frame, p := n.ipv4Frame(mac, key.to, key.guest, header.ICMPv4ProtocolNumber, len(message))
	copy(p, message)
	icmp := header.ICMPv4(p)
	icmp.SetIdent(key.id)
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv4Checksum(icmp, 0))
	return frame
}
