package machine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"vmm/devices/serial"
	"vmm/kvm"
)

// A kernel that prints polls the UART: it reads the line status, writes a character, and so on, two exits for each. The
// write needs no answer, so KVM can note it and go on, and the next exit (as a rule the next look at the line status)
// brings it along: half the exits of a boot that prints.
//
// A driver that sends by interrupts gets no character coalesced, as the interrupt is due after the character. And a
// guest that prints and never exits again must still be seen to have printed: while writes are coalesced, somebody looks
// at the ring every coalesceTick, and where nothing comes for coalesceIdle ticks, coalescing ends until the next
// character, so that an idle guest costs no wake-ups.
//
// CONFIG_ADDRESS, the port of PCI that says what the next access of CONFIG_DATA is for, is coalesced always: what follows such a
// write is that access, an exit, before which the ring is drained. It is half the exits of a boot with a few devices.
const (
	coalesceTick = 20 * time.Millisecond
	coalesceIdle = 50
)

// coalescer is what KVM does for a [polledUART]; see package kvm for the methods.
type coalescer interface {
	CoalescePorts(port uint16, size uint32, on bool) error
	HasCoalesced() bool
	DrainCoalesced(f func(port uint16, data []byte))
}

// vmCoalescer is the coalescer of a VM.
type vmCoalescer struct {
	vm        *kvm.VM
	*kvm.VCPU // any of the VM's, for the ring that they share
}

func (c vmCoalescer) CoalescePorts(port uint16, size uint32, on bool) error {
	return c.vm.CoalescePorts(port, size, on)
}

// polledUART is COM1 with coalesced output. It implements devices.Device.
type polledUART struct {
	uart  *serial.UART
	kvm   coalescer                      // nil where this KVM cannot coalesce
	other func(port uint16, data []byte) // takes writes to other ports than the UART's

	// drainMu makes the drained writes come in their order; taken before the UART's lock.
	drainMu sync.Mutex
	drained atomic.Uint64 // writes so far

	mu    sync.Mutex // guards armed and the calls that change it; taken before the UART's lock
	armed bool
	awake chan struct{} // has a token when armed has become true
}

func newPolledUART(uart *serial.UART, kvm coalescer, other func(port uint16, data []byte)) *polledUART {
	return &polledUART{uart: uart, kvm: kvm, other: other, awake: make(chan struct{}, 1)}
}

// Read implements devices.Device.
func (d *polledUART) Read(off uint64, p []byte) { d.uart.Read(off, p) }

// Write implements devices.Device. It sees the writes that are not coalesced: the first character of a burst, and all
// that decides whether there may be a burst.
func (d *polledUART) Write(off uint64, p []byte) {
	d.uart.Write(off, p)
	if d.kvm == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch polled := d.uart.PolledOutput(); {
	case polled && !d.armed && off == 0:
		d.arm(true)
	case !polled && d.armed:
		d.arm(false)
	}
}

// arm switches coalescing; mu is held. Where KVM refuses, things stay as they are: correct, if with more exits.
func (d *polledUART) arm(on bool) {
	if err := d.kvm.CoalescePorts(portCOM1, 1, on); err != nil {
		return
	}
	d.armed = on
	if on {
		select {
		case d.awake <- struct{}{}:
		default:
		}
	}
}

// drain hands the UART what KVM has noted. Every vCPU calls it before it handles an exit.
func (d *polledUART) drain() {
	if d.kvm == nil || !d.kvm.HasCoalesced() {
		return
	}
	d.drainMu.Lock()
	defer d.drainMu.Unlock()
	d.kvm.DrainCoalesced(d.deliver)
}

func (d *polledUART) deliver(port uint16, data []byte) {
	if port != portCOM1 {
		d.other(port, data)
		return
	}
	d.drained.Add(1)
	d.uart.Write(uint64(port-portCOM1), data)
}

// serve looks at the ring of a guest that does not exit, until ctx ends.
func (d *polledUART) serve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.awake:
		}
		d.watch(ctx)
	}
}

// watch drains at each tick, and ends coalescing after a while without a write.
func (d *polledUART) watch(ctx context.Context) {
	tick := time.NewTicker(coalesceTick)
	defer tick.Stop()
	seen, idle := d.drained.Load(), 0
	for idle < coalesceIdle {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.drain()
		if now := d.drained.Load(); now != seen {
			seen, idle = now, 0
		} else {
			idle++
		}
	}
	d.disarm()
	d.drain() // what the guest wrote since the last tick: nobody will look again
}

func (d *polledUART) disarm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.armed {
		d.arm(false)
	}
}
