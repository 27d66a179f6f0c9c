package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// listener is a port of the host's that leads to the guest.
type listener struct {
	io.Closer
	addr netip.AddrPort
}

// forward listens on a port of the host's.
func (n *Network) forward(f Forward) error {
	at := net.JoinHostPort("", strconv.Itoa(int(f.HostPort)))
	if f.HostIP.IsValid() {
		at = netip.AddrPortFrom(f.HostIP, f.HostPort).String()
	}
	if f.UDP {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			return f.explain(err)
		}
		n.listeners = append(n.listeners, &listener{c, c.LocalAddr().(*net.UDPAddr).AddrPort()})
		n.work.Go(func() { n.serveUDP(c.(*net.UDPConn), f.GuestPort) })
		return nil
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return f.explain(err)
	}
	n.listeners = append(n.listeners, &listener{l, l.Addr().(*net.TCPAddr).AddrPort()})
	n.work.Go(func() { n.serveTCP(l, f.GuestPort) })
	return nil
}

// PortError is the error of [Open] for a port of the host's that it cannot listen on.
type PortError struct {
	Forward Forward
	Err     error // what the matter is, and what helps
}

func (e *PortError) Error() string { return fmt.Sprintf("port %v: %v", e.Forward, e.Err) }

// Unwrap returns Err.
func (e *PortError) Unwrap() error { return e.Err }

// explain says what is the matter with a port.
func (f Forward) explain(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return &PortError{f, err}
	}
	hint := ""
	switch errno {
	case unix.EACCES:
		hint = fmt.Sprintf(" (a port below %s needs root)", firstUserPort())
	case unix.EADDRINUSE:
		hint = " (another program listens there: choose another port)"
	case unix.EADDRNOTAVAIL:
		hint = fmt.Sprintf(" (the host has no address %v)", f.HostIP)
	}
	return &PortError{f, fmt.Errorf("%w%s", errno, hint)}
}

func firstUserPort() string {
	p, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return "1024"
	}
	return string(bytes.TrimSpace(p))
}

// Listening are the host's addresses that lead to the guest, in the order of [Config.Forwards].
func (n *Network) Listening() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range n.listeners {
		out = append(out, l.addr)
	}
	return out
}

// serveTCP takes connections from outside to the guest, until the listener is closed.
func (n *Network) serveTCP(l net.Listener, port uint16) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// There is no file descriptor left, which may change.
			select {
			case <-n.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		there := c.(*net.TCPConn)
		release, ok := n.begin(n.tcpSlots)
		if !ok {
			reset(there)
			continue
		}
		go func() {
			defer release()
			guest, err := n.dialGuest(port)
			if err != nil {
				reset(there)
				return
			}
			n.join(guest, there)
		}()
	}
}

// serveUDP takes datagrams from outside to the guest: each sender's go the way of a flow of their own.
func (n *Network) serveUDP(c *net.UDPConn, port uint16) {
	flows := map[netip.AddrPort]*inwardFlow{}
	var mu sync.Mutex // guards flows
	buf := make([]byte, 65536)
	for {
		got, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // about a datagram that was sent
		}
		mu.Lock()
		f := flows[from]
		mu.Unlock()
		if f == nil {
			release, ok := n.begin(n.udpSlots)
			if !ok {
				continue
			}
			if f, err = n.newInwardFlow(port); err != nil {
				release()
				continue
			}
			mu.Lock()
			flows[from] = f
			mu.Unlock()
			go func() {
				defer release()
				f.serve(c, from)
				mu.Lock()
				delete(flows, from)
				mu.Unlock()
				f.ep.Close()
			}()
		}
		f.watch.Reset(udpIdle)
		_, _ = f.ep.Write(bytes.NewReader(buf[:got]), tcpip.WriteOptions{})
	}
}

// inwardFlow is the datagrams between the guest and one sender outside.
type inwardFlow struct {
	ep    tcpip.Endpoint
	wq    waiter.Queue
	ctx   context.Context
	end   context.CancelFunc
	watch *time.Timer
}

func (n *Network) newInwardFlow(port uint16) (*inwardFlow, error) {
	f := &inwardFlow{}
	var err tcpip.Error
	if f.ep, err = n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &f.wq); err != nil {
		return nil, asError(err)
	}
	if err = f.ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: toAddress(n.addrs.router)}); err == nil {
		err = f.ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toAddress(n.addrs.guest), Port: port})
	}
	if err != nil {
		f.ep.Close()
		return nil, asError(err)
	}
	f.ctx, f.end = context.WithCancel(n.ctx)
	f.watch = time.AfterFunc(udpIdle, f.end)
	return f, nil
}

// serve sends the guest's answers to the one outside.
func (f *inwardFlow) serve(c *net.UDPConn, to netip.AddrPort) {
	defer f.end()
	defer f.watch.Stop()
	for readGuest(f.ctx, f.ep, &f.wq, func(p []byte) { _, _ = c.WriteToUDPAddrPort(p, to) }) {
		f.watch.Reset(udpIdle)
	}
}
