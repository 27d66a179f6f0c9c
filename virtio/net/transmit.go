package net

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"vmm/virtio/virtqueue"
)

// transmitter takes frames from the guest.
type transmitter struct {
	d     *Device
	port  Port
	chain virtqueue.Chain
	iov   []unix.Iovec
}

func (t *transmitter) serve(ctx context.Context, q *virtqueue.Queue) error {
	for ctx.Err() == nil {
		ok, err := q.Pop(&t.chain)
		switch {
		case err != nil:
			return err
		case !ok:
			if err := q.Sleep(); err != nil {
				return err
			}
		case t.send(ctx, q):
			q.Push(&t.chain, 0)
		}
	}
	return nil
}

// send sends the chain's frame, however long the back end makes it wait. It reports false when ctx has ended meanwhile.
func (t *transmitter) send(ctx context.Context, q *virtqueue.Queue) bool {
	c := &t.d.counters
	frame := t.chain.Readable
	if n := frame.Len() - HeaderSize; n < ethernetHeader || n > longestEthernet {
		c.malformed.Add(1)
		return true
	}
	if !t.d.up.Load() || t.d.dead.Load() {
		return true // into the air
	}
	if !t.d.cfg.Backend.Header() {
		frame.Skip(HeaderSize) // no offload was negotiated, so it has nothing to say
	}
	t.iov = frame.AppendIovecs(t.iov[:0])
	for {
		switch err := t.port.Send(t.iov); {
		case err == nil:
			c.sent.Add(1)
			return true
		case errors.Is(err, unix.EAGAIN):
			q.Notify() // what went before must not wait
			waitFor(q, t.port.FD(), unix.POLLOUT, forever)
			if ctx.Err() != nil {
				return false
			}
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
			t.d.lose()
			return true
		default:
			c.refused.Add(1)
			return true
		}
	}
}

// forever is the timeout of [waitFor] that never comes, in milliseconds.
const forever = -1

// waitFor waits until fd is ready or the queue is kicked, and reports false if neither happened in time. An fd of -1 is
// none.
func waitFor(q *virtqueue.Queue, fd int, events int16, milliseconds int) bool {
	kick := q.Config().Kick
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(kick.FD()), Events: unix.POLLIN}}
	q.BeforeWait()
	n, err := unix.Poll(fds[:], milliseconds)
	if err == nil && fds[1].Revents&unix.POLLIN != 0 {
		_ = kick.Wait()
	}
	return n != 0 // an interrupted wait is as good as one that is over: the caller looks
}
