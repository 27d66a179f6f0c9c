package user

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// connect takes the guest's attempt to connect to somewhere. The guest hears that it is connected when the host is.
func (n *Network) connect(r *tcp.ForwarderRequest) {
	release, ok := n.begin(n.tcpSlots)
	if !ok {
		r.Complete(true)
		return
	}
	defer release()
	id := r.ID()
	there, err := n.dialOut(netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort))
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		r.Complete(true)
		_ = there.Close()
		return
	}
	r.Complete(false)
	n.join(&guestConn{gonet.NewTCPConn(&wq, ep), ep}, there)
}

// begin takes a slot, and counts the caller among the network's goroutines. ok is false where there is none.
func (n *Network) begin(slots chan struct{}) (release func(), ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, false
	}
	select {
	case slots <- struct{}{}:
		n.work.Add(1)
		return func() { <-slots; n.work.Done() }, true
	default:
		return nil, false
	}
}

var errNoWay = errors.New("not an address of the outside")

// dialOut connects to where the guest wants to.
func (n *Network) dialOut(to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	if n.isDNS(to) {
		var err error
		for _, server := range n.dns.servers() {
			var c net.Conn
			if c, err = d.DialContext(ctx, "tcp", server.String()); err == nil {
				return c.(*net.TCPConn), nil
			}
		}
		return nil, err
	}
	to, ok := n.target(to)
	if !ok {
		return nil, errNoWay
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (n *Network) isDNS(to netip.AddrPort) bool {
	return to.Port() == 53 && (to.Addr() == n.addrs.dns || to.Addr() == n.addrs.dns6)
}

// guestConn is a connection with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// abort ends the connection with a reset.
func (c *guestConn) abort() { c.ep.Abort() }

// reset ends a connection of the host's with a reset.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// copyBuffers are for one direction of a connection each, or for the answers to one pinging program.
var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// join moves bytes between two connections until both are at their end, or one breaks, or the network is closed.
func (n *Network) join(guest *guestConn, there *net.TCPConn) {
	guest.ep.SocketOptions().SetKeepAlive(true)
	abort := func() {
		guest.abort()
		reset(there)
	}
	stop := context.AfterFunc(n.ctx, abort)
	defer stop()
	var out sync.WaitGroup
	out.Go(func() {
		if move(there, guest) != nil || there.CloseWrite() != nil {
			abort()
		}
	})
	if move(guest, there) != nil || guest.CloseWrite() != nil {
		abort()
	}
	out.Wait()
	_ = guest.Close()
	_ = there.Close()
}

// move copies from src to dst until src's end.
func move(dst io.Writer, src io.Reader) error {
	buf := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		got, err := src.Read(buf[:])
		if got > 0 {
			if _, err := dst.Write(buf[:got]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dialGuest connects to a port of the guest's, from the router.
func (n *Network) dialGuest(port uint16) (*guestConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return nil, asError(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: toAddress(n.addrs.router)}); err != nil {
		ep.Close()
		return nil, asError(err)
	}
	terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toAddress(n.addrs.guest), Port: port})
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		case <-ready:
			terr = ep.LastError()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, asError(terr)
	}
	return &guestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
}
