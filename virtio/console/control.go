package console

import (
	"context"
	"encoding/binary"
	"io"
	"sync"

	"vmm/virtio/virtqueue"
)

// Events of control messages (§5.3.6.2).
const (
	eventDeviceReady = 0
	eventPortAdd     = 1
	eventPortReady   = 3
	eventConsolePort = 4
	eventResize      = 5
	eventPortOpen    = 6
	eventPortName    = 7
)

const messageSize = 8

// maxMessages bounds those that wait for the guest: while there are more, its own are not looked at.
const maxMessages = 4 * MaxPorts

// controller is the device's end of the control queues, for one guest.
type controller struct {
	d                  *Device
	toGuest, fromGuest *virtqueue.Queue

	mu       sync.Mutex // guards what follows
	messages [][]byte   // for the guest
	resized  bool       // it has not heard of the size yet
	ready    bool       // port 0 is there for it
}

func newController(d *Device, toGuest, fromGuest *virtqueue.Queue) *controller {
	return &controller{d: d, toGuest: toGuest, fromGuest: fromGuest}
}

func message(id uint32, event, value uint16, more ...byte) []byte {
	m := binary.LittleEndian.AppendUint32(nil, id)
	m = binary.LittleEndian.AppendUint16(m, event)
	m = binary.LittleEndian.AppendUint16(m, value)
	return append(m, more...)
}

// resize tells the guest of a new size, soon; however often it changes, there is one message.
func (c *controller) resize() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resized = true
	c.toGuest.Wake()
}

// listen serves the queue that the guest sends on.
func (c *controller) listen(ctx context.Context, q *virtqueue.Queue) error {
	var chain virtqueue.Chain
	for ctx.Err() == nil {
		if c.full() { // send wakes this queue when there is room
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
			c.hear(&chain)
			q.Push(&chain, 0)
			continue
		}
		if err := q.Sleep(); err != nil {
			return err
		}
	}
	return nil
}

func (c *controller) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.messages) >= maxMessages
}

// hear answers a message of the guest's.
func (c *controller) hear(chain *virtqueue.Chain) {
	var m [messageSize]byte
	if _, err := io.ReadFull(&chain.Readable, m[:]); err != nil {
		return
	}
	id, event := binary.LittleEndian.Uint32(m[0:]), binary.LittleEndian.Uint16(m[4:])
	value := binary.LittleEndian.Uint16(m[6:])
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case event == eventDeviceReady && value == 1:
		for i := range c.d.ports {
			c.messages = append(c.messages, message(uint32(i), eventPortAdd, 1))
		}
	case event == eventPortReady && value == 1 && id < uint32(len(c.d.ports)):
		if id == 0 {
			c.messages = append(c.messages, message(id, eventConsolePort, 1))
			c.resized, c.ready = true, true
		} else {
			c.messages = append(c.messages, message(id, eventPortName, 1, []byte(c.d.ports[id].name)...))
		}
		c.messages = append(c.messages, message(id, eventPortOpen, 1))
	default: // that the guest has opened a port is its own business
		return
	}
	c.toGuest.Wake()
}

// send serves the queue that the guest receives from.
func (c *controller) send(ctx context.Context, q *virtqueue.Queue) error {
	var chain virtqueue.Chain
	for ctx.Err() == nil {
		m := c.next()
		if m == nil {
			q.Notify()
			if err := q.Wait(); err != nil {
				return err
			}
			continue
		}
		for ctx.Err() == nil {
			ok, err := q.Pop(&chain)
			if err != nil {
				return err
			}
			if ok {
				n, _ := chain.Writable.Write(m)
				q.Push(&chain, uint32(n))
				break
			}
			if err := q.Sleep(); err != nil {
				return err
			}
		}
	}
	return nil
}

// next takes the next message, or returns nil.
func (c *controller) next() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.messages) > 0 {
		m := c.messages[0]
		c.messages = c.messages[1:]
		c.fromGuest.Wake()
		return m
	}
	if c.resized && c.ready {
		c.resized = false
		cols, rows := c.d.size()
		return message(0, eventResize, 0, byte(cols), byte(cols>>8), byte(rows), byte(rows>>8))
	}
	return nil
}
