package user

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// How long a flow of datagrams is remembered after the last one.
const (
	udpIdle = 90 * time.Second
	dnsIdle = 15 * time.Second
)

// datagram takes the first datagram of a flow from the guest.
func (n *Network) datagram(r *udp.ForwarderRequest) bool {
	id := r.ID()
	to := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	dns := n.isDNS(to)
	if !dns {
		var ok bool
		if to, ok = n.target(to); !ok {
			return true // lost
		}
	}
	release, ok := n.begin(n.udpSlots)
	if !ok {
		return true
	}
	wq := &waiter.Queue{}
	ep, err := r.CreateEndpoint(wq)
	if err != nil {
		release()
		return true
	}
	go func() {
		defer release()
		if dns {
			n.resolve(ep, wq)
		} else if there, err := connectedSocket(to); err == nil {
			n.exchange(ep, wq, there)
		}
		ep.Close()
	}()
	return true
}

// connectedSocket is a UDP socket that sends to one address, and hears from nobody else.
func connectedSocket(to netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}

// exchange moves datagrams between the guest and a socket until neither has sent any for udpIdle. It closes the socket.
func (n *Network) exchange(ep tcpip.Endpoint, wq *waiter.Queue, there *net.UDPConn) {
	ctx, end := context.WithCancel(n.ctx)
	defer end()
	watch := time.AfterFunc(udpIdle, end)
	defer watch.Stop()
	stop := context.AfterFunc(ctx, func() { _ = there.Close() })
	defer func() { stop(); _ = there.Close() }()
	var back sync.WaitGroup
	back.Go(func() {
		defer end()
		for {
			if err := readDatagram(there, func(p []byte) { _, _ = ep.Write(bytes.NewReader(p), tcpip.WriteOptions{}) }); err != nil && !passing(err) {
				return
			}
			watch.Reset(udpIdle)
		}
	})
	for readGuest(ctx, ep, wq, func(p []byte) { _, _ = there.Write(p) }) {
		watch.Reset(udpIdle)
	}
	end()
	back.Wait()
}

// passing tells whether an error of a UDP socket is about one datagram that was sent.
func passing(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EMSGSIZE)
}

// datagramBuffers are taken for the time of one datagram: a flow that waits has none.
var datagramBuffers = sync.Pool{New: func() any { return new([65536]byte) }}

// readDatagram waits for a datagram, and gives it to take.
func readDatagram(c *net.UDPConn, take func([]byte)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var got error
	err = raw.Read(func(fd uintptr) bool {
		buf := datagramBuffers.Get().(*[65536]byte)
		defer datagramBuffers.Put(buf)
		var n int
		if n, got = unix.Read(int(fd), buf[:]); got == nil {
			take(buf[:n])
		}
		return !errors.Is(got, unix.EAGAIN) && !errors.Is(got, unix.EINTR)
	})
	return errors.Join(err, got)
}

// readGuest waits for a datagram of the guest's, and gives it to take. It is false at the flow's end.
func readGuest(ctx context.Context, ep tcpip.Endpoint, wq *waiter.Queue, take func([]byte)) bool {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	for {
		buf := datagramBuffers.Get().(*[65536]byte)
		w := tcpip.SliceWriter(buf[:])
		res, err := ep.Read(&w, tcpip.ReadOptions{})
		if err == nil {
			take(buf[:res.Count])
		}
		datagramBuffers.Put(buf)
		switch err.(type) {
		case nil:
			return true
		case *tcpip.ErrWouldBlock:
		default:
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-ready:
		}
	}
}
