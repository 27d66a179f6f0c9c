package pci

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"vmm/devices"
	devpci "vmm/devices/pci"
	"vmm/internal/eventfd"
)

// queueInterrupt is one source of interrupts: a queue, or the configuration. It implements virtqueue.Interrupt.
type queueInterrupt struct {
	t      *Transport
	isr    uint8         // its bit in the ISR status
	vector atomic.Uint32 // in the MSI-X table, or noVector
}

func newQueueInterrupt(t *Transport, isr uint8) *queueInterrupt {
	i := &queueInterrupt{t: t, isr: isr}
	i.vector.Store(noVector)
	return i
}

// Signal implements virtqueue.Interrupt.
func (i *queueInterrupt) Signal() {
	if !i.t.msix.Load() {
		i.t.intx.raise(i.isr)
		return
	}
	if v := i.vector.Load(); v != noVector {
		i.t.vectors[v].event.Signal()
	}
}

// FD implements virtqueue.Interrupt. It is right for as long as the driver leaves the vector as it is, which it does while
// the queue is in use.
func (i *queueInterrupt) FD() int {
	if !i.t.msix.Load() {
		return i.t.intx.forward.FD()
	}
	if v := i.vector.Load(); v != noVector {
		return i.t.vectors[v].event.FD()
	}
	return -1
}

// vector is an entry of the MSI-X table (PCI Local Bus 3.0 §6.8.2).
type vector struct {
	event     *eventfd.EventFD
	host      Vector
	addr      uint64
	data      uint32
	masked    bool
	connected bool
}

func newVector(host Host) (v vector, err error) {
	v = vector{masked: true}
	if v.event, err = eventfd.New(); err != nil {
		return v, err
	}
	if v.host, err = host.NewVector(v.event); err != nil {
		_ = v.event.Close()
	}
	return v, err
}

func (v *vector) close() {
	v.connect(false)
	_ = v.event.Close()
}

// connect makes the host agree with the table. A message that has changed needs a new connection.
func (v *vector) connect(on bool) {
	switch {
	case on == v.connected:
	case on:
		v.connected = v.host.Connect(v.addr, v.data) == nil
	default:
		v.host.Disconnect()
		v.connected = false
	}
}

// forget drops an interrupt that waits for its vector to be unmasked.
func (v *vector) forget() {
	if !v.connected {
		v.event.Drain()
	}
}

// renew puts the entry into the state after a reset of the function.
func (v *vector) renew() {
	v.connect(false)
	v.addr, v.data, v.masked = 0, 0, true
}

// Bits of the MSI-X message control register, and of a vector's control.
const (
	msixEnable       = 1 << 15
	msixFunctionMask = 1 << 14
	vectorMasked     = 1
)

// setMSIX follows the message control register; mu is held.
func (t *Transport) setMSIX(control uint16) {
	t.msix.Store(control&msixEnable != 0)
	t.masked = control&msixFunctionMask != 0
	for i := range t.vectors {
		t.connect(i)
	}
	t.intx.mute(control&msixEnable != 0)
}

// connect connects vector i if it may send; mu is held.
func (t *Transport) connect(i int) {
	v := &t.vectors[i]
	v.connect(t.msix.Load() && !t.masked && !v.masked)
}

// readTable reads from the MSI-X table; mu is held.
func (t *Transport) readTable(off uint64, p []byte) {
	clear(p)
	i := int(off / vectorSize)
	if i >= len(t.vectors) {
		return
	}
	v := &t.vectors[i]
	var entry [vectorSize]byte
	binary.LittleEndian.PutUint64(entry[0:], v.addr)
	binary.LittleEndian.PutUint32(entry[8:], v.data)
	if v.masked {
		entry[12] = vectorMasked
	}
	copy(p, entry[off%vectorSize:])
}

// writeTable writes dwords to the MSI-X table; mu is held.
func (t *Transport) writeTable(off uint64, p []byte) {
	i := int(off / vectorSize)
	if i >= len(t.vectors) || off%4 != 0 || len(p)%4 != 0 || len(p) == 0 {
		return
	}
	v := &t.vectors[i]
	addr, data, masked := v.addr, v.data, v.masked
	for ; len(p) >= 4; off, p = off+4, p[4:] {
		dword := binary.LittleEndian.Uint32(p)
		switch off % vectorSize {
		case 0:
			addr = addr&^0xffffffff | uint64(dword&^3)
		case 4:
			addr = addr&0xffffffff | uint64(dword)<<32
		case 8:
			data = dword
		case 12:
			masked = dword&vectorMasked != 0
		}
	}
	if addr != v.addr || data != v.data {
		v.connect(false)
	}
	v.addr, v.data, v.masked = addr, data, masked
	t.connect(i)
}

// readPending reads from the pending bits; mu is held.
func (t *Transport) readPending(off uint64, p []byte) {
	clear(p)
	for i := range t.vectors {
		byteOff := uint64(i / 8)
		v := &t.vectors[i]
		if byteOff >= off && byteOff < off+uint64(len(p)) && !v.connected && v.event.Pending() {
			p[byteOff-off] |= 1 << (i % 8)
		}
	}
}

// intx is the function's interrupt pin, with the ISR status that tells why it is asserted.
type intx struct {
	line     devices.IRQLine
	function *devpci.Function
	forward  *eventfd.EventFD // a queue's interrupt, of a device half in the host's kernel

	mu       sync.Mutex // guards what follows, and the calls that drive the line; taken last of the transport's
	isr      uint8
	disabled bool // by the command register
	muted    bool // MSI-X is enabled
	high     bool // the line
}

func (x *intx) raise(bit uint8) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.isr |= bit
	x.drive()
}

// take returns the ISR status and clears it, which deasserts the pin.
func (x *intx) take() uint8 {
	x.mu.Lock()
	defer x.mu.Unlock()
	isr := x.isr
	x.isr = 0
	x.drive()
	return isr
}

func (x *intx) clear() { x.take() }

func (x *intx) disable(on bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.disabled = on
	x.drive()
}

func (x *intx) mute(on bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.muted = on
	x.drive()
}

// drive makes the line and the status register's bit agree with the rest; mu is held.
func (x *intx) drive() {
	if x.function != nil {
		x.function.SetInterruptStatus(x.isr != 0 && !x.muted)
	}
	if high := x.isr != 0 && !x.disabled && !x.muted; high != x.high {
		x.high = high
		_ = x.line.SetLevel(high) // fails only for a machine that is gone
	}
}

// forwardINTx turns signals of the forward eventfd into INTx interrupts, for a device half in the kernel and a guest
// without MSI-X. What it returns ends that.
func (t *Transport) forwardINTx() (stop func()) {
	if t.msix.Load() {
		return func() {}
	}
	var stopping atomic.Bool
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for t.intx.forward.Wait() == nil && !stopping.Load() {
			t.intx.raise(isrQueue)
		}
	})
	return func() {
		stopping.Store(true)
		t.intx.forward.Signal()
		forwarding.Wait()
	}
}
