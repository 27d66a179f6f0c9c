package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	inputSize = 4096 // bytes of one Read from the line

	// gatherTime is how long a text that has no end of line waits for more.
	gatherTime = time.Millisecond
	// restTime is how long the guest is left alone when it has spent as much on input since the last rest. A long paste
	// otherwise keeps a guest with one slow CPU in its interrupt handler, until its watchdogs bark or its buffers, which
	// nobody gets to empty, overflow. Below this time, timers are too coarse.
	restTime = 2 * time.Millisecond
)

var errAttached = errors.New("serial: a line is attached already")

// Serve attaches line to the chip, with its modem inputs on, and moves bytes between them until ctx ends. Nothing that
// line does holds up a vCPU: one goroutine reads from it and one writes to it, and Serve ends both before it returns.
//
// Serve owns line and closes it at its end. The Close must end a Read or Write that is under way, as a net.Conn's does.
//
// What the guest sent before ctx ended is written to line before it is closed, unless that takes longer than
// Config.DrainTimeout: a reader that stalls cannot hold up the stop. To have a guest's last words, end ctx after the
// vCPUs have stopped.
//
// An io.EOF from line only says that no more input comes. Another error ends the input too, and an error of a Write the
// output, which is dropped (and counted) from then on; the guest goes on, and so does Serve. It returns these errors,
// and that of Close, when ctx has ended, and nil where there were none. One line can be attached at a time; after Serve
// has returned, another may be.
func (u *UART) Serve(ctx context.Context, line io.ReadWriteCloser) error {
	if !u.attach() {
		return errors.Join(errAttached, line.Close())
	}
	defer u.detach()

	var readErr, writeErr error
	var g sync.WaitGroup
	g.Go(func() { readErr = u.receive(ctx, line) })
	drained := make(chan struct{})
	g.Go(func() {
		defer close(drained)
		writeErr = u.transmit(ctx, line)
	})

	<-ctx.Done()
	stalled := false
	limit := time.NewTimer(u.drainTimeout)
	select {
	case <-drained:
	case <-limit.C:
		stalled = true
	}
	limit.Stop()
	closeErr := line.Close()
	g.Wait()
	if stalled {
		writeErr = nil // it says that the line is closed, which is our doing
	}
	return errors.Join(readErr, writeErr, closeErr)
}

func (u *UART) attach() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.chip.attached {
		return false
	}
	u.chip.attach(true)
	u.settle()
	return true
}

func (u *UART) detach() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.feeding = false
	u.chip.attach(false)
	u.settle()
}

// receive moves the line's input to the chip, no faster than the guest takes it.
func (u *UART) receive(ctx context.Context, line io.Reader) error {
	buf := make([]byte, inputSize)
	var readErr error
	var busy time.Duration // what the guest has spent on input since its last rest
	for {
		// The first time, this is what an earlier line has left.
		for u.feed() {
			start := time.Now()
			select {
			case <-u.space:
			case <-ctx.Done():
				return nil
			}
			if busy += time.Since(start); busy < restTime {
				continue
			}
			busy = 0
			select {
			case <-time.After(restTime):
			case <-ctx.Done():
				return nil
			}
		}
		switch {
		case errors.Is(readErr, io.EOF), readErr != nil && ctx.Err() != nil:
			return nil //nolint:nilerr // neither the end of the input nor that of the line is an error
		case readErr != nil:
			return fmt.Errorf("read serial line: %w", readErr)
		}
		var n int
		n, readErr = line.Read(buf)
		u.mu.Lock()
		u.chip.queueInput(buf[:n])
		u.mu.Unlock()
	}
}

// feed fills the FIFO from the queue and reports whether something remains there, for which u.space will tell the time.
func (u *UART) feed() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chip.fill()
	u.feeding = u.chip.inputQueued()
	u.settle()
	return u.feeding
}

// transmit moves the guest's output to the line until ctx has ended and what was sent before is written.
func (u *UART) transmit(ctx context.Context, line io.Writer) error {
	spare := make([]byte, 0, outputSize)
	gather := time.NewTimer(gatherTime)
	defer gather.Stop()
	for {
		select {
		case <-u.begun:
			gather.Reset(gatherTime)
			select {
			case <-u.flush:
			case <-gather.C:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		// Asked before the output is taken, so that what is taken last holds all that was sent before.
		last := ctx.Err() != nil
		batch := u.takeOutput(spare)
		if len(batch) > 0 {
			if n, err := line.Write(batch); err != nil {
				u.failLine(len(batch) - n)
				return fmt.Errorf("write serial line: %w", err)
			}
		}
		if last {
			return nil
		}
		spare = batch[:0]
	}
}

// takeOutput takes the output in exchange for an empty buffer. A token that comes between the end of a wait and this
// stays, and only makes the next wait a short one.
func (u *UART) takeOutput(empty []byte) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.chip.takeOutput(empty)
	u.settle()
	return out
}

// failLine drops n bytes that could not be written, and all the output that follows.
func (u *UART) failLine(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chip.failLine(n)
	u.settle()
}
