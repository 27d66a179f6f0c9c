package vsock

import (
	"errors"
	"io"
	"sync"
	"time"

	"vmm/virtio/virtqueue"
)

const (
	// bufAlloc is how many bytes a guest may have sent that the host's end has not taken yet.
	bufAlloc = 256 << 10
	// chunkSize is how much is read from the host's end at a time.
	chunkSize = 64 << 10
	// patience is how long a guest may take to answer a request.
	patience = 30 * time.Second
)

// What a connection has to send, beside data: a bit each.
const (
	pendRequest = 1 << iota
	pendResponse
	pendCredit
	pendShutdown
	pendReset // the last thing that it sends
)

// connection is one connection.
type connection struct {
	s    *session
	key  key
	conn Conn // the host's end; nil while it is dialled

	// Of a connection from the host, until the guest has answered.
	opened func(hostPort uint32) error
	agreed chan error // gets the answer, once
	timer  *time.Timer

	queued bool // in the session's list; guarded by the session's mu

	mu      sync.Mutex // guards what follows; taken before the session's
	changed *sync.Cond
	pending int
	open    bool // both sides have agreed
	dead    bool // nothing moves any more

	// To the guest.
	chunk    []byte // what was read from the host's end: in[from:to] is not sent yet
	from, to int
	told     uint32 // flags of the SHUTDOWN to send
	peerBuf  uint32 // the guest's buf_alloc and fwd_cnt
	peerFwd  uint32
	sent     uint32 // bytes

	// From the guest.
	ring      []byte // of bufAlloc bytes, made when the first comes; received-forwarded of them are in use
	received  uint32 // bytes
	forwarded uint32 // bytes that the host's end has taken
	announced uint32 // forwarded, as the guest knows it
	guestDone uint32 // flags of its SHUTDOWN
}

func newConnection(s *session, k key) *connection {
	c := &connection{s: s, key: k}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// post has something sent; mu is held.
func (c *connection) post(what int) {
	c.pending |= what
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.enqueue(c)
}

// dial connects to what the guest has asked for.
func (c *connection) dial() {
	conn, err := c.s.d.cfg.Dial(c.s.ctx, c.key.host)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.dead: // meanwhile
		if err == nil {
			_ = conn.Close()
		}
	case err != nil:
		c.end()
		c.post(pendReset)
	default:
		c.conn, c.open = conn, true
		c.post(pendResponse)
		c.start()
	}
}

// start lets the data flow; mu is held, and the caller is one of the session's goroutines or the queue's.
func (c *connection) start() {
	c.s.running.Add(2)
	go func() {
		defer c.s.running.Done()
		c.readHost()
	}()
	go func() {
		defer c.s.running.Done()
		c.writeHost()
	}()
}

// end closes the host's end and wakes all that wait for the connection; mu is held. It sends nothing.
func (c *connection) end() {
	if c.dead {
		return
	}
	c.dead = true
	if c.conn != nil {
		_ = c.conn.Close() // a reader or writer of it ends, and finds the connection dead
	}
	c.answer(ErrRefused)
	c.changed.Broadcast()
	c.s.forget(c)
}

// answer tells whoever has asked for the connection, if nobody has yet; mu is held.
func (c *connection) answer(err error) {
	if c.agreed == nil {
		return
	}
	select {
	case c.agreed <- err:
	default:
	}
	if c.timer != nil {
		c.timer.Stop()
	}
}

// abort ends the connection and tells the guest.
func (c *connection) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dead {
		c.end()
		c.post(pendReset)
	}
}

// handle does what a packet for this connection says; data is its payload.
func (c *connection) handle(h *header, data *virtqueue.Buffers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	c.peerBuf, c.peerFwd = h.bufAlloc, h.fwdCnt
	c.changed.Broadcast() // there may be credit
	ok := true
	switch h.op {
	case opResponse:
		ok = c.agree()
	case opRST:
		c.end()
	case opShutdown:
		c.guestDone |= h.flags & shutdownBoth
	case opRW:
		ok = c.receive(data)
	case opCreditUpdate:
	case opCreditRequest:
		c.post(pendCredit)
	default: // a second request among them
		ok = false
	}
	if !ok && !c.dead {
		c.end()
		c.post(pendReset)
	}
}

// agree opens a connection that the host has asked for; mu is held.
func (c *connection) agree() bool {
	if c.open || c.agreed == nil {
		return false
	}
	if c.opened != nil && c.opened(c.key.host) != nil {
		return false
	}
	c.open = true
	c.answer(nil)
	c.start()
	return true
}

// receive takes data from the guest, which must not send more than there is room for; mu is held.
func (c *connection) receive(data *virtqueue.Buffers) bool {
	n := data.Len()
	if !c.open || c.guestDone&shutdownSend != 0 || n > bufAlloc-int(c.received-c.forwarded) {
		return false
	}
	if c.ring == nil {
		c.ring = make([]byte, bufAlloc)
	}
	for n > 0 {
		at := c.received % bufAlloc
		m, err := data.Read(c.ring[at:min(int(at)+n, bufAlloc)])
		if err != nil {
			return false
		}
		c.received += uint32(m)
		n -= m
	}
	return true
}

// writeHost moves what the guest sends to the host's end.
func (c *connection) writeHost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.dead {
		if c.received == c.forwarded {
			if c.guestDone&shutdownSend != 0 {
				c.finish()
				return
			}
			c.changed.Wait()
			continue
		}
		at := c.forwarded % bufAlloc
		piece := c.ring[at:min(at+(c.received-c.forwarded), bufAlloc)] // which nobody writes to before it is forwarded
		c.mu.Unlock()
		n, err := c.conn.Write(piece)
		c.mu.Lock()
		c.forwarded += uint32(n)
		if c.dead {
			return
		}
		if err != nil {
			// The host's end takes no more. What it has said before is still good; what the guest says from now on is
			// swallowed, until it has heard.
			c.forwarded = c.received
			c.told |= shutdownReceive
			c.post(pendShutdown)
		}
		// The guest hears of it before half of what it may send is used up.
		if c.forwarded-c.announced >= bufAlloc/2 {
			c.post(pendCredit)
		}
	}
}

// finish is the guest's end of sending; mu is held. When it does not receive either, the connection is over.
func (c *connection) finish() {
	if c.guestDone == shutdownBoth {
		c.end()
		c.post(pendReset) // which is how a guest knows that all it has sent was taken
		return
	}
	_ = c.conn.CloseWrite() // an end that is closed already reads as ended too
	for !c.dead && c.guestDone != shutdownBoth {
		c.changed.Wait()
	}
	if !c.dead {
		c.end()
		c.post(pendReset)
	}
}

// readHost moves what the host's end sends into the chunk, as far as the guest has room.
func (c *connection) readHost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chunk = make([]byte, chunkSize)
	for {
		for !c.dead && (c.from < c.to || c.credit() == 0) && c.guestDone&shutdownReceive == 0 {
			c.changed.Wait()
		}
		if c.dead || c.guestDone&shutdownReceive != 0 {
			return
		}
		room := min(chunkSize, int(c.credit()))
		c.mu.Unlock()
		n, err := c.conn.Read(c.chunk[:room])
		c.mu.Lock()
		if c.dead {
			return
		}
		if n > 0 {
			c.from, c.to = 0, n
			c.post(0)
		}
		if err != nil {
			c.hostEnded(err)
			return
		}
	}
}

// hostEnded tells the guest, after the data, that the host's end sends no more; mu is held.
func (c *connection) hostEnded(err error) {
	c.told |= shutdownSend
	if !errors.Is(err, io.EOF) || hungUp(c.conn) {
		c.told = shutdownBoth
	}
	c.post(pendShutdown)
}

// credit is how many bytes the guest has room for (§5.10.6.3); mu is held. A guest that takes back what it has promised has
// none.
func (c *connection) credit() uint32 {
	inFlight := c.sent - c.peerFwd
	if inFlight >= c.peerBuf {
		return 0
	}
	return c.peerBuf - inFlight
}

// send writes one packet of those that the connection has to send, and returns its length, 0 if there is none any more.
func (c *connection) send(w *virtqueue.Buffers) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := header{
		srcPort: c.key.host, dstPort: c.key.guest, kind: typeStream,
		bufAlloc: bufAlloc, fwdCnt: c.forwarded,
	}
	var data []byte
	switch {
	case c.pending&pendReset != 0:
		c.pending, h.op = 0, opRST
		return c.s.write(w, &h, nil) // nothing comes after it
	case c.dead:
		return 0
	case c.take(pendRequest):
		h.op = opRequest
		c.timer = time.AfterFunc(patience, c.giveUp)
	case c.take(pendResponse):
		h.op = opResponse
	case c.from < c.to:
		h.op, data = opRW, c.chunk[c.from:c.to]
	case c.take(pendCredit):
		h.op = opCreditUpdate
	case c.take(pendShutdown):
		h.op, h.flags = opShutdown, c.told
	default:
		return 0
	}
	c.announced = c.forwarded
	n := c.s.write(w, &h, data)
	if data != nil {
		c.from += int(h.len)
		c.sent += h.len
		if c.from == c.to {
			c.changed.Broadcast()
		}
	}
	if c.pending != 0 || c.from < c.to {
		c.post(0)
	}
	return n
}

// take takes a bit out of what is pending; mu is held.
func (c *connection) take(what int) bool {
	had := c.pending&what != 0
	c.pending &^= what
	return had
}

// giveUp ends a request that the guest does not answer.
func (c *connection) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open && !c.dead {
		c.end()
		c.post(pendReset)
	}
}
