package vsock_test

import (
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/virtio/virtiotest"
	"vmm/virtio/vsock"
)

const guestCID = 3

// Operations, as §5.10.6.2 numbers them.
const (
	opRequest = iota + 1
	opResponse
	opRST
	opShutdown
	opRW
	opCreditUpdate
	opCreditRequest
)

// packet is one, with its header taken apart.
type packet struct {
	src, dst         uint64
	srcPort, dstPort uint32
	kind, op         uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
	data             []byte
}

func (p packet) bytes() []byte {
	le := binary.LittleEndian
	var b []byte
	b = le.AppendUint64(b, p.src)
	b = le.AppendUint64(b, p.dst)
	b = le.AppendUint32(b, p.srcPort)
	b = le.AppendUint32(b, p.dstPort)
	b = le.AppendUint32(b, uint32(len(p.data)))
	b = le.AppendUint16(b, p.kind)
	b = le.AppendUint16(b, p.op)
	b = le.AppendUint32(b, p.flags)
	b = le.AppendUint32(b, p.bufAlloc)
	return le.AppendUint32(b, p.fwdCnt)
}

func parse(b []byte) packet {
	le := binary.LittleEndian
	p := packet{
		src: le.Uint64(b), dst: le.Uint64(b[8:]), srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
	p.data = b[44:][:le.Uint32(b[24:])]
	return p
}

// guest is a driver of vsock, as honest as a test wants it: sockets on ports, with credit.
type guest struct {
	t   testing.TB
	d   *virtiotest.Driver
	dev *vsock.Device

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	sockets map[[2]uint32]*socket // by the guest's port and the host's
	accept  func(port uint32) bool
	strays  []packet // for no socket

	stop    chan struct{}
	polling sync.WaitGroup
}

// socket is the guest's end of a connection.
type socket struct {
	g           *guest
	port, peer  uint32
	open, reset bool
	in          []byte
	peerDone    uint32
	taken       uint32 // bytes that the program has read
	sent        uint32
	peerBuf     uint32
	peerFwd     uint32
	bufAlloc    uint32
}

const guestBuffers = 64

func newGuest(t testing.TB, cfg vsock.Config) *guest {
	t.Helper()
	cfg.CID = guestCID
	dev, err := vsock.New(cfg)
	require.NoError(t, err)
	g := &guest{t: t, dev: dev, sockets: map[[2]uint32]*socket{}, stop: make(chan struct{})}
	g.changed = sync.NewCond(&g.mu)
	g.d = virtiotest.New(t, dev, virtiotest.Options{Memory: 256 << 20})
	g.d.Start()
	g.d.Queue(1).Submit(nil, 44).Wait() // the device serves
	return g
}

// poll gives the device buffers and takes what it puts there, until the test's end.
func (g *guest) poll() {
	ring := make(chan *virtiotest.Request, guestBuffers)
	for range guestBuffers {
		r := g.d.Queue(0).Prepare(nil, 44, 4096)
		r.Submit()
		ring <- r
	}
	g.polling.Go(func() {
		for {
			r := <-ring
			for !r.Done() {
				select {
				case <-g.stop:
					return
				case <-time.After(50 * time.Microsecond):
				}
			}
			n := r.Wait()
			p := parse(append([]byte(nil), r.Bytes()[:n]...))
			r.Submit()
			ring <- r
			g.take(p)
		}
	})
	g.t.Cleanup(func() {
		close(g.stop)
		g.polling.Wait()
	})
}

func (g *guest) take(p packet) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.changed.Broadcast()
	s := g.sockets[[2]uint32{p.dstPort, p.srcPort}]
	if s == nil && p.op == opRequest && g.accept != nil && g.accept(p.dstPort) {
		s = g.socket(p.dstPort, p.srcPort)
		s.open = true
		s.peerBuf, s.peerFwd = p.bufAlloc, p.fwdCnt
		s.send(packet{op: opResponse})
		return
	}
	if s == nil {
		g.strays = append(g.strays, p)
		if p.op != opRST {
			g.transmit(packet{src: guestCID, dst: 2, kind: 1, srcPort: p.dstPort, dstPort: p.srcPort, op: opRST})
		}
		return
	}
	s.peerBuf, s.peerFwd = p.bufAlloc, p.fwdCnt
	switch p.op {
	case opResponse:
		s.open = true
	case opRST:
		s.reset = true
	case opShutdown:
		s.peerDone |= p.flags
	case opRW:
		s.in = append(s.in, p.data...)
	}
}

// socket makes one; mu is held.
func (g *guest) socket(port, peer uint32) *socket {
	s := &socket{g: g, port: port, peer: peer, bufAlloc: 64 << 10}
	g.sockets[[2]uint32{port, peer}] = s
	return s
}

// transmit sends a packet and waits until the device has taken it; for a guest that polls, from any goroutine.
func (g *guest) transmit(p packet) {
	pieces := [][]byte{p.bytes()}
	if len(p.data) > 0 {
		pieces = append(pieces, p.data)
	}
	g.d.Queue(1).Submit(pieces)
}

// send sends a packet of the socket's; the guest's mu is held.
func (s *socket) send(p packet) {
	p.src, p.dst, p.kind, p.srcPort, p.dstPort = guestCID, 2, 1, s.port, s.peer
	p.bufAlloc, p.fwdCnt = s.bufAlloc, s.taken
	s.g.d.Queue(1).Submit([][]byte{append(p.bytes(), p.data...)}).Wait()
}

// connect asks the host for a connection to its port.
func (g *guest) connect(port, hostPort uint32) *socket {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.socket(port, hostPort)
	s.send(packet{op: opRequest})
	return s
}

// until waits for what the device will do; it is called with mu held.
func (g *guest) until(what string, done func() bool) {
	timer := time.AfterFunc(20*time.Second, func() { panic("no " + what) })
	defer timer.Stop()
	for !done() {
		g.changed.Wait()
	}
}

func (s *socket) waitOpen() bool {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.until("answer", func() bool { return s.open || s.reset })
	return s.open && !s.reset
}

func (s *socket) waitReset() {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.until("RST", func() bool { return s.reset })
}

// Read implements io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.until("data", func() bool { return len(s.in) > 0 || s.reset || s.peerDone&2 != 0 })
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	s.taken += uint32(n)
	if n > 0 {
		s.send(packet{op: opCreditUpdate})
	}
	return n, nil
}

// Write implements io.Writer, within the credit.
func (s *socket) Write(p []byte) (int, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	n := 0
	for n < len(p) {
		s.g.until("credit", func() bool { return s.peerBuf > s.sent-s.peerFwd || s.reset || s.peerDone&1 != 0 })
		if s.reset || s.peerDone&1 != 0 {
			return n, io.ErrClosedPipe
		}
		m := min(len(p)-n, 64<<10, int(s.peerBuf-(s.sent-s.peerFwd)))
		s.sent += uint32(m)
		s.send(packet{op: opRW, data: p[n:][:m]})
		n += m
	}
	return n, nil
}

func (s *socket) shutdown(flags uint32) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.send(packet{op: opShutdown, flags: flags})
}
