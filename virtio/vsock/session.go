package vsock

import (
	"context"
	"errors"
	"io"
	"sync"

	"vmm/virtio/virtqueue"
)

const (
	// maxConnections bounds the connections of a guest, and with them its share of the host's memory.
	maxConnections = 2048
	// maxReplies bounds the packets to the guest that belong to no connection, and maxReady the connections that wait for
	// their turn, those that are over and have only an RST to send among them.
	maxReplies = 256
	maxReady   = 2 * maxConnections
	// firstHostPort is where the ports begin that the host's own connections get.
	firstHostPort = 1 << 30
)

// key names a connection: its port at the host and the one in the guest.
type key struct{ host, guest uint32 }

// session is the device's business with one driver: from DRIVER_OK to the reset.
type session struct {
	d      *Device
	ctx    context.Context
	rx, tx *virtqueue.Queue

	running sync.WaitGroup // the connections' goroutines

	mu          sync.Mutex // guards what follows; taken after a connection's
	connections map[key]*connection
	ready       []*connection // those that have something to send
	replies     []header      // beside them
	nextPort    uint32
	idle        bool // send sleeps until there is something
	stalled     bool // listen sleeps until there is room for replies
	ended       bool
}

func newSession(ctx context.Context, d *Device, rx, tx *virtqueue.Queue) *session {
	return &session{d: d, ctx: ctx, rx: rx, tx: tx, connections: map[key]*connection{}, nextPort: firstHostPort}
}

// end closes all connections and waits for their goroutines.
func (s *session) end() {
	s.mu.Lock()
	s.ended = true
	var all []*connection
	for _, c := range s.connections {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.abort()
	}
	s.running.Wait()
}

// request begins a connection from the host.
func (s *session) request(conn Conn, port uint32, opened func(uint32) error) (*connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return nil, ErrNoGuest
	case len(s.connections) >= maxConnections:
		return nil, errors.New("the guest has too many connections")
	}
	k := key{s.nextPort, port}
	for s.connections[k] != nil {
		k.host = max(k.host+1, firstHostPort)
	}
	s.nextPort = max(k.host+1, firstHostPort)
	c := newConnection(s, k)
	c.conn, c.opened, c.agreed = conn, opened, make(chan error, 1)
	c.pending = pendRequest
	s.connections[k] = c
	s.enqueue(c)
	return c, nil
}

// enqueue takes note that c has something to send; mu is held.
func (s *session) enqueue(c *connection) {
	if c.queued {
		return
	}
	c.queued = true
	s.ready = append(s.ready, c)
	s.wake()
}

// wake wakes send; mu is held.
func (s *session) wake() {
	if s.idle {
		s.idle = false
		s.rx.Wake()
	}
}

// reset answers a packet that no connection is for with an RST, but for an RST; mu is not held.
func (s *session) reset(h *header) {
	if h.op == opRST {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies = append(s.replies, header{srcPort: h.dstPort, dstPort: h.srcPort, op: opRST, kind: typeStream})
	s.wake()
}

// forget removes a connection; a packet for it is one for nobody from then on.
func (s *session) forget(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connections[c.key] == c {
		delete(s.connections, c.key)
	}
}

// listen takes the guest's packets.
func (s *session) listen(ctx context.Context, q *virtqueue.Queue) error {
	var chain virtqueue.Chain
	for ctx.Err() == nil {
		if s.full() {
			q.Notify()
			if err := q.Wait(); err != nil {
				return err
			}
			continue
		}
		ok, err := q.Pop(&chain)
		if err != nil {
			return err
		}
		if ok {
			s.handle(&chain.Readable)
			q.Push(&chain, 0)
			continue
		}
		if err := q.Sleep(); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = len(s.replies) >= maxReplies || len(s.ready) >= maxReady
	return s.stalled
}

// handle does what a packet of the guest's says.
func (s *session) handle(data *virtqueue.Buffers) {
	var b [headerSize]byte
	if _, err := io.ReadFull(data, b[:]); err != nil {
		return // nobody to tell
	}
	h := parseHeader(&b)
	if h.srcCID != s.d.cfg.CID || h.dstCID != HostCID {
		return // nor here: the sender is not who it says, or means somebody else
	}
	k := key{host: h.dstPort, guest: h.srcPort}
	s.mu.Lock()
	c := s.connections[k]
	s.mu.Unlock()
	switch {
	case h.kind != typeStream:
		s.reset(&h)
	case h.op == opRequest && c == nil:
		s.accept(&h, k)
	case c == nil:
		s.reset(&h)
	case int(h.len) > data.Len():
		c.abort()
	default:
		data.Limit(int(h.len))
		c.handle(&h, data)
	}
}

// accept begins a connection from the guest.
func (s *session) accept(h *header, k key) {
	s.mu.Lock()
	if len(s.connections) >= maxConnections || s.ended {
		s.mu.Unlock()
		s.reset(h)
		return
	}
	c := newConnection(s, k)
	c.peerBuf, c.peerFwd = h.bufAlloc, h.fwdCnt
	s.connections[k] = c
	s.running.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		c.dial()
	}()
}

// send gives the guest what there is for it.
func (s *session) send(ctx context.Context, q *virtqueue.Queue) error {
	var chain virtqueue.Chain
	have := false // a chain
	for ctx.Err() == nil {
		if s.nothing() {
			q.Notify()
			if err := q.Wait(); err != nil {
				return err
			}
			continue
		}
		if !have {
			var err error
			if have, err = q.Pop(&chain); err != nil {
				return err
			}
			if !have {
				if err := q.Sleep(); err != nil {
					return err
				}
				continue
			}
			if chain.Writable.Len() < headerSize {
				q.Push(&chain, 0)
				have = false
				continue
			}
		}
		if n := s.next(&chain.Writable); n > 0 {
			q.Push(&chain, uint32(n))
			have = false
		}
	}
	return nil
}

// nothing tells whether there is nothing to send, and has send woken when there is.
func (s *session) nothing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = len(s.replies) == 0 && len(s.ready) == 0
	return s.idle
}

// next writes the next packet, if there is one, and returns its length. Replies come first: a guest may wait for them.
func (s *session) next(w *virtqueue.Buffers) int {
	s.mu.Lock()
	if s.stalled { // one less, in a moment
		s.stalled = false
		s.tx.Wake()
	}
	if len(s.replies) > 0 {
		h := s.replies[0]
		s.replies = append(s.replies[:0], s.replies[1:]...)
		s.mu.Unlock()
		return s.write(w, &h, nil)
	}
	if len(s.ready) == 0 {
		s.mu.Unlock()
		return 0
	}
	c := s.ready[0]
	s.ready = append(s.ready[:0], s.ready[1:]...)
	c.queued = false
	s.mu.Unlock()
	return c.send(w)
}

// write writes a packet into the guest's buffers, which have room for the header, with as much of data as fits, and returns
// how long it is.
func (s *session) write(w *virtqueue.Buffers, h *header, data []byte) int {
	data = data[:min(len(data), w.Len()-headerSize)]
	h.srcCID, h.dstCID, h.len = HostCID, s.d.cfg.CID, uint32(len(data))
	var b [headerSize]byte
	h.put(&b)
	_, _ = w.Write(b[:])
	_, _ = w.Write(data)
	return headerSize + len(data)
}
