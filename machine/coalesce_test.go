package machine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/devices/serial"
)

// fakeCoalescer is a KVM whose ring has no bound, and the guest that prints through it.
type fakeCoalescer struct {
	mu     sync.Mutex // guards what follows
	on     bool
	ring   []byte
	refuse error
	late   []byte // what the guest prints just before coalescing ends
}

func (c *fakeCoalescer) CoalescePorts(port uint16, size uint32, on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case port != portCOM1 || size != 1:
		return errors.New("no register but the transmitter's may be coalesced")
	case c.refuse != nil:
		return c.refuse
	case !on:
		c.ring, c.late = append(c.ring, c.late...), nil
	}
	c.on = on
	return nil
}

func (c *fakeCoalescer) HasCoalesced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring) > 0
}

func (c *fakeCoalescer) DrainCoalesced(f func(uint16, []byte)) {
	c.mu.Lock()
	ring := c.ring
	c.ring = nil
	c.mu.Unlock()
	for i := range ring {
		f(portCOM1, ring[i:i+1])
	}
}

func (c *fakeCoalescer) coalesces() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.on
}

// note is a write that finds coalescing on.
func (c *fakeCoalescer) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ring = append(c.ring, s...)
}

// fakeLine collects the output of a UART.
type fakeLine struct {
	bytes.Buffer
	closed chan struct{}
}

func (l *fakeLine) Read([]byte) (int, error) {
	<-l.closed
	return 0, io.EOF
}

func (l *fakeLine) Close() error {
	close(l.closed)
	return nil
}

// sent runs f on a polledUART in a bubble of testing/synctest, and returns what has come out when f has returned.
func sent(t *testing.T, kvm *fakeCoalescer, f func(d *polledUART)) (out string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{closed: make(chan struct{})}
		d := newPolledUART(serial.New(serial.Config{}), kvm, nil)
		ctx, cancel := context.WithCancel(t.Context())
		served, watched := make(chan error, 1), make(chan struct{})
		go func() { served <- d.uart.Serve(ctx, line) }()
		go func() {
			d.serve(ctx)
			close(watched)
		}()
		f(d)
		cancel()
		require.NoError(t, <-served)
		<-watched
		out = line.String()
	})
	return out
}

func TestCoalescedOutputOfASilentGuest(t *testing.T) {
	kvm := &fakeCoalescer{}
	out := sent(t, kvm, func(d *polledUART) {
		d.Write(0, []byte("a"))
		require.True(t, kvm.coalesces())
		time.Sleep(coalesceTick / 2) // so that all that follows is between two ticks
		for range 3 {
			time.Sleep((coalesceIdle - 1) * coalesceTick)
			kvm.note("b")
			time.Sleep(coalesceTick)
			require.False(t, kvm.HasCoalesced(), "a tick is the longest that a character waits")
		}
		time.Sleep((coalesceIdle - 1) * coalesceTick)
		require.True(t, kvm.coalesces(), "the last output is not long ago")
		time.Sleep(coalesceTick)
		require.False(t, kvm.coalesces())
		d.Write(0, []byte("c"))
		require.True(t, kvm.coalesces(), "with the next character it begins again")
		kvm.note("d")
		time.Sleep(2 * coalesceTick)
		require.False(t, kvm.HasCoalesced())
	})
	require.Equal(t, "abbbcd", out)
}

// A character may be noted between the watcher's last look and the end of coalescing.
func TestCoalescedOutputAtTheEndOfCoalescing(t *testing.T) {
	kvm := &fakeCoalescer{late: []byte("b")}
	out := sent(t, kvm, func(d *polledUART) {
		d.Write(0, []byte("a"))
		time.Sleep((coalesceIdle + 2) * coalesceTick)
		require.False(t, kvm.coalesces())
	})
	require.Equal(t, "ab", out)
}

func TestCoalescingOnlyOfPolledOutput(t *testing.T) {
	const ierTHRI = 1 << 1
	kvm := &fakeCoalescer{}
	sent(t, kvm, func(d *polledUART) {
		d.Write(1, []byte{ierTHRI})
		d.Write(0, []byte("a"))
		require.False(t, kvm.coalesces())
		d.Write(1, []byte{0})
		require.False(t, kvm.coalesces(), "only a character begins it")
		d.Write(0, []byte("b"))
		require.True(t, kvm.coalesces())
		d.Write(1, []byte{ierTHRI})
		require.False(t, kvm.coalesces())
	})
}

func TestCoalescingRefused(t *testing.T) {
	kvm := &fakeCoalescer{refuse: errors.New("no")}
	out := sent(t, kvm, func(d *polledUART) {
		d.Write(0, []byte("a"))
		d.Write(0, []byte("b"))
	})
	require.Equal(t, "ab", out)
}

func TestNoCoalescer(t *testing.T) {
	d := newPolledUART(serial.New(serial.Config{}), nil, nil)
	require.NotPanics(t, func() {
		d.Write(0, []byte("a"))
		d.drain()
	})
}

// mixedRing is a ring with writes to several ports.
type mixedRing struct {
	fakeCoalescer
	ports []uint16
}

func (c *mixedRing) HasCoalesced() bool { return len(c.ports) > 0 }

func (c *mixedRing) DrainCoalesced(f func(uint16, []byte)) {
	for i, port := range c.ports {
		f(port, []byte{byte('0' + i)})
	}
	c.ports = nil
}

// TestCoalescedPorts has each write reach its device, in the order in which the guest has made them.
func TestCoalescedPorts(t *testing.T) {
	out := &bytes.Buffer{}
	var others []uint16
	uart := serial.New(serial.Config{})
	d := newPolledUART(uart, &mixedRing{ports: []uint16{0xcf8, portCOM1, 0xcf8, 0xcfa}}, func(port uint16, data []byte) {
		others = append(others, port)
		out.Write(data)
	})
	d.drain()
	require.Equal(t, []uint16{0xcf8, 0xcf8, 0xcfa}, others)
	require.Equal(t, "023", out.String())
	require.EqualValues(t, 1, d.drained.Load(), "the UART's own")
}
