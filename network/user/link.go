package user

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vmm/internal/eventfd"
	"vmm/internal/iovec"
)

// The header of virtio in front of each frame (Virtual I/O Device 1.2 §5.1.6).
const (
	headerSize    = 12
	needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	segmentsTCPv4 = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	segmentsTCPv6 = 4 // VIRTIO_NET_HDR_GSO_TCPV6
)

// offloads are those that the stack knows, as flags of a TAP (Linux include/uapi/linux/if_tun.h).
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

const (
	maxSegments = 65535                                  // bytes of a packet with several segments
	maxFrame    = header.EthernetMinimumSize + 4 + 65535 // bytes
	maxWaiting  = 16 << 20                               // bytes of the frames that wait for the guest
)

// link is the Ethernet between the guest and the stack: for the guest's network card a port, for the stack an endpoint.
type link struct {
	n     *Network
	mac   tcpip.LinkAddress
	event *eventfd.EventFD // readable when a frame waits that came after none did

	guestOffloads atomic.Uint32
	dispatcher    atomic.Pointer[stack.NetworkDispatcher]

	mu      sync.Mutex
	waiting []*stack.PacketBuffer // from first on
	first   int
	size    int  // of what waits, in bytes
	asleep  bool // the guest's side has found nothing, and the event is not set
	closed  bool
}

func newLink(n *Network) (*link, error) {
	event, err := eventfd.New()
	if err != nil {
		return nil, err
	}
	return &link{n: n, mac: routerMAC(), event: event, asleep: true}, nil
}

func (l *link) close() error {
	l.mu.Lock()
	l.closed = true
	waiting := l.waiting[l.first:]
	l.waiting, l.first = nil, 0
	l.mu.Unlock()
	for _, p := range waiting {
		p.DecRef()
	}
	return l.event.Close()
}

// Header tells that frames have the header of virtio in front.
func (l *link) Header() bool { return true }

// Offloads are what the guest may leave to the stack, and the stack to the guest.
func (l *link) Offloads() uint { return offloads }

// SetOffloads says which of them the guest takes.
func (l *link) SetOffloads(flags uint) error {
	l.guestOffloads.Store(uint32(flags))
	return nil
}

// takesSegments tells whether the guest takes all of the offloads, and so frames that are longer than Ethernet's.
func (l *link) takesSegments() bool { return l.guestOffloads.Load()&offloads == offloads }

// SetQueues has nothing to set: there is one.
func (l *link) SetQueues(int) error { return nil }

// FD is readable when a frame may wait for the guest.
func (l *link) FD() int { return l.event.FD() }

// Receive copies the next frame for the guest into iov, and returns its length. EAGAIN says that there is none.
func (l *link) Receive(iov []unix.Iovec) (int, error) {
	for {
		p := l.next()
		if p == nil {
			return 0, unix.EAGAIN
		}
		n, ok := l.copyOut(iov, p)
		p.DecRef()
		if ok {
			return n, nil
		}
	}
}

// next takes the next frame.
func (l *link) next() *stack.PacketBuffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == len(l.waiting) {
		l.waiting, l.first = l.waiting[:0], 0
		if !l.asleep {
			_ = l.event.Wait() // it is set: that takes no time
			l.asleep = true
		}
		return nil
	}
	p := l.waiting[l.first]
	l.waiting[l.first] = nil
	l.first++
	l.size -= p.Size()
	return p
}

// copyOut writes header and frame to iov. It is false for a frame that the guest does not take any more.
func (l *link) copyOut(iov []unix.Iovec, p *stack.PacketBuffer) (n int, ok bool) {
	var h [headerSize]byte
	if gso := p.GSOOptions; gso.Type == stack.GSOTCPv4 || gso.Type == stack.GSOTCPv6 {
		if !l.takesSegments() {
			return 0, false // it took them once, and was started again without
		}
		le := binary.LittleEndian
		h[0] = needsChecksum
		le.PutUint16(h[6:], header.EthernetMinimumSize+gso.L3HdrLen)
		le.PutUint16(h[8:], gso.CsumOffset)
		if p.Data().Size() > int(gso.MSS) {
			h[1] = segmentsTCPv4
			if gso.Type == stack.GSOTCPv6 {
				h[1] = segmentsTCPv6
			}
			le.PutUint16(h[2:], uint16(p.HeaderSize()))
			le.PutUint16(h[4:], gso.MSS)
		}
	}
	to := iovec.NewScatter(iov)
	to.Put(h[:])
	views, offset := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip := min(offset, len(b)); skip > 0 {
			b, offset = b[skip:], offset-skip
		}
		to.Put(b)
	}
	return to.Len(), true
}

// Send takes a frame of the guest's.
func (l *link) Send(iov []unix.Iovec) error {
	size := int(iovec.Len(iov)) - headerSize
	if size < header.EthernetMinimumSize || size > maxFrame {
		return unix.EMSGSIZE
	}
	// Of the header nothing is needed: the stack takes long segments as they are, and memory keeps what was put there, so
	// that it looks at no checksum.
	view := buffer.NewViewSize(size)
	b, skip := view.AsSlice(), headerSize
	for i := range iov {
		piece := unsafe.Slice(iov[i].Base, iov[i].Len)
		cut := min(skip, len(piece))
		skip -= cut
		b = b[copy(b, piece[cut:]):]
	}
	if l.n.intercept(view.AsSlice()) {
		view.Release()
		return nil
	}
	d := l.dispatcher.Load()
	if d == nil {
		view.Release()
		return nil
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	defer p.DecRef()
	if (*endpoint)(l).ParseHeader(p) {
		eth := header.Ethernet(p.LinkHeader().Slice())
		switch dst := eth.DestinationAddress(); {
		case dst == header.EthernetBroadcastAddress:
			p.PktType = tcpip.PacketBroadcast
		case header.IsMulticastEthernetAddress(dst):
			p.PktType = tcpip.PacketMulticast
		case dst != l.mac:
			return nil // not for the router, and there is nobody else
		}
		(*d).DeliverNetworkPacket(eth.Type(), p)
	}
	return nil
}

// enqueue has a frame wait for the guest, which takes over its reference. It is false where too much waits already.
func (l *link) enqueue(p *stack.PacketBuffer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.size+p.Size() > maxWaiting {
		return false
	}
	if l.first > 1024 && l.first == cap(l.waiting)/2 { // else a queue that is never empty grows for ever
		n := copy(l.waiting, l.waiting[l.first:])
		clear(l.waiting[n:])
		l.waiting, l.first = l.waiting[:n], 0
	}
	l.waiting = append(l.waiting, p)
	l.size += p.Size()
	if l.asleep {
		l.asleep = false
		l.event.Signal()
	}
	return true
}

// inject has a whole frame wait for the guest.
func (l *link) inject(frame []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	if !l.enqueue(p) {
		p.DecRef()
	}
}

// endpoint is the stack's view of the link. It implements stack.LinkEndpoint and stack.GSOEndpoint.
type endpoint link

var (
	_ stack.LinkEndpoint = (*endpoint)(nil)
	_ stack.GSOEndpoint  = (*endpoint)(nil)
)

func (e *endpoint) link() *link { return (*link)(e) }

// WritePackets takes packets of the stack's for the guest.
func (e *endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range pkts.AsSlice() {
		c := p.Clone()
		if !e.link().enqueue(c) {
			c.DecRef()
			if n == 0 {
				return 0, &tcpip.ErrNoBufferSpace{}
			}
			break
		}
		n++
	}
	return n, nil
}

func (e *endpoint) SetMTU(uint32)                           {}
func (e *endpoint) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (e *endpoint) LinkAddress() tcpip.LinkAddress          { return e.mac }
func (e *endpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (e *endpoint) Wait()                                   {}
func (e *endpoint) Close()                                  {}
func (e *endpoint) SetOnCloseAction(func())                 {}
func (e *endpoint) IsAttached() bool                        { return e.dispatcher.Load() != nil }
func (e *endpoint) GSOMaxSize() uint32                      { return maxSegments }
func (e *endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&d)
}

// MTU of what the stack sends.
func (e *endpoint) MTU() uint32 {
	if e.link().takesSegments() {
		return MTU
	}
	return plainMTU
}

func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityResolutionRequired
}

// SupportedGSO tells who cuts long segments: the guest, or rather nobody; or the stack.
func (e *endpoint) SupportedGSO() stack.SupportedGSO {
	if e.link().takesSegments() {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}

func (e *endpoint) AddHeader(p *stack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: p.EgressRoute.LocalLinkAddress, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
	})
}

func (e *endpoint) ParseHeader(p *stack.PacketBuffer) bool {
	_, ok := p.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}
