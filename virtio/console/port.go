package console

import (
	"context"
	"io"
	"sync"
	"time"

	"vmm/virtio/virtqueue"
)

// bufferSize is how many bytes may be on the way between a line and the guest, each way.
const bufferSize = 16 << 10

// port is one port with its line. Two goroutines move bytes between the line and the buffers for as long as the port
// lives, since a Read or Write of a line can be ended only by closing it; guests come and go at the buffers' other ends.
type port struct {
	name string
	line io.ReadWriteCloser

	in, out buffer
	pumping sync.WaitGroup
}

// buffer is a bounded queue of bytes.
type buffer struct {
	mu      sync.Mutex // guards what follows
	changed *sync.Cond // for the goroutine at the line
	bytes   []byte
	ended   bool             // the line is gone: nothing goes in any more
	guest   *virtqueue.Queue // the guest's side; nil while there is none
	waiting bool             // the guest's side waits for a change
}

func newPort(name string, line io.ReadWriteCloser) *port {
	p := &port{name: name, line: line}
	for _, b := range []*buffer{&p.in, &p.out} {
		b.changed = sync.NewCond(&b.mu)
		b.bytes = make([]byte, 0, bufferSize)
	}
	p.pumping.Go(p.readLine)
	p.pumping.Go(p.writeLine)
	return p
}

// lastWords is how long a line may take for the rest of the output when the port is closed.
const lastWords = 2 * time.Second

// close closes the line when the rest of the output is through, or does not go through.
func (p *port) close() error {
	p.out.end()
	timer := time.AfterFunc(lastWords, func() { _ = p.line.Close() })
	p.out.mu.Lock()
	for len(p.out.bytes) > 0 {
		p.out.changed.Wait()
	}
	p.out.mu.Unlock()
	var err error
	if timer.Stop() {
		err = p.line.Close()
	}
	p.in.end()
	p.pumping.Wait()
	return err
}

// end says that no more bytes will come.
func (b *buffer) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.changed.Broadcast()
}

// attach makes q the guest's side, which is woken when the buffer has changed; nil detaches it.
func (b *buffer) attach(q *virtqueue.Queue) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guest, b.waiting = q, false
}

// touched wakes whoever waits for the buffer at either side; mu is held.
func (b *buffer) touched() {
	b.changed.Broadcast()
	if b.waiting && b.guest != nil {
		b.waiting = false
		b.guest.Wake()
	}
}

// readLine moves bytes from the line into the buffer.
func (p *port) readLine() {
	chunk := make([]byte, bufferSize/4)
	for {
		n, err := p.line.Read(chunk)
		if !p.in.put(chunk[:n]) || err != nil {
			return
		}
	}
}

// put appends all of data, waiting for room. It reports false when the buffer has ended.
func (b *buffer) put(data []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(data) > 0 && !b.ended {
		n := min(len(data), bufferSize-len(b.bytes))
		if n == 0 {
			b.changed.Wait()
			continue
		}
		b.bytes = append(b.bytes, data[:n]...)
		data = data[n:]
		b.touched()
	}
	return !b.ended
}

// writeLine moves bytes from the buffer to the line. A line that fails swallows the rest.
func (p *port) writeLine() {
	chunk := make([]byte, 0, bufferSize)
	b := &p.out
	b.mu.Lock()
	defer b.mu.Unlock()
	failed := false
	for {
		for len(b.bytes) == 0 {
			if b.ended {
				return
			}
			b.changed.Wait()
		}
		chunk = append(chunk[:0], b.bytes...)
		b.mu.Unlock()
		if !failed {
			_, err := p.line.Write(chunk)
			failed = err != nil
		}
		b.mu.Lock()
		b.bytes = append(b.bytes[:0], b.bytes[len(chunk):]...) // only what has left makes room: close waits for it
		b.touched()
	}
}

// receive gives the guest what the line has sent.
func (p *port) receive(ctx context.Context, q *virtqueue.Queue) error {
	p.in.attach(q)
	defer p.in.attach(nil)
	var c virtqueue.Chain
	for ctx.Err() == nil {
		ok, err := p.deliver(q, &c)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		q.Notify()
		if err := q.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// deliver moves bytes into the guest's next buffer, and reports whether there were both.
func (p *port) deliver(q *virtqueue.Queue, c *virtqueue.Chain) (bool, error) {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if len(p.in.bytes) == 0 {
		p.in.waiting = true
		q.DisableKicks()
		return false, nil
	}
	ok, err := q.Pop(c)
	if !ok || err != nil {
		return err == nil && q.EnableKicks(), err
	}
	n, _ := c.Writable.Write(p.in.bytes) // as much as there is room for
	p.in.bytes = append(p.in.bytes[:0], p.in.bytes[n:]...)
	p.in.changed.Broadcast()
	q.Push(c, uint32(n))
	return true, nil
}

// transmit takes what the guest prints.
func (p *port) transmit(ctx context.Context, q *virtqueue.Queue) error {
	p.out.attach(q)
	defer p.out.attach(nil)
	var c virtqueue.Chain
	pending := false // c is not through
	for ctx.Err() == nil {
		if !pending {
			ok, err := q.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				if err := q.Sleep(); err != nil {
					return err
				}
				continue
			}
		}
		if pending = !p.print(&c); !pending {
			q.Push(&c, 0)
			continue
		}
		q.Notify()
		if err := q.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// print moves the chain's bytes into the buffer as far as there is room, and reports whether all are through.
func (p *port) print(c *virtqueue.Chain) bool {
	b := &p.out
	b.mu.Lock()
	defer b.mu.Unlock()
	room := b.bytes[len(b.bytes):bufferSize]
	n, _ := c.Readable.Read(room)
	b.bytes = b.bytes[:len(b.bytes)+n]
	b.changed.Broadcast()
	b.waiting = len(c.Readable) > 0
	return !b.waiting
}
