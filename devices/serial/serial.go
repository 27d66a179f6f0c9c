// Package serial emulates a National Semiconductor PC16550D ("16550A") UART, the chip behind a PC's COM ports, with
// what the Linux 8250 and the FreeBSD ns8250 drivers look at when they probe for it.
//
// The registers (PC16550D data sheet, table II), one byte each:
//
//	offset  read                          write                           while LCR.DLAB is set
//	0       RBR receiver buffer           THR transmitter holding         DLL divisor latch, low byte
//	1       IER interrupt enable          IER                             DLM divisor latch, high byte
//	2       IIR interrupt identification  FCR FIFO control                IIR and FCR
//	3       LCR line control              LCR                             LCR
//	4       MCR modem control             MCR                             MCR
//	5       LSR line status               ignored                         LSR
//	6       MSR modem status              ignored                         MSR
//	7       SCR scratch                   SCR                             SCR
//
// # Towards the guest
//
// A character that the guest writes is sent at once, so THRE and TEMT are set and the next THRE interrupt is due as
// soon as the write is done, and a driver never waits. The characters gather in a buffer of 64 KiB, which goes to the
// line in few and large writes: at the end of a text line, when the driver turns its transmitter interrupt off because
// it has nothing more to send, or a millisecond after the first character. Where the line's reader stalls, the buffer
// fills up to its last 16 bytes; then THRE and TEMT stay clear until it drains. A driver that goes on regardless loses
// characters, as with the real chip.
//
// # Towards the host
//
// The far end of the line honours RTS: input waits outside, unlost, while the guest has not raised RTS (or has taken it
// back), and comes in pieces that the FIFO has room for. This is what lets text wait for a guest that still boots, whose
// driver will clear the FIFOs when it opens the port. As not every guest cares for RTS, two other signs count too: that
// it has enabled the FIFOs, the receiver interrupt and the interrupt line without ever having raised RTS, and that it
// polls LSR with nothing but input to wait for.
//
// # Deviations
//
//   - Characters take no time. The baud rate, the word length, parity and stop bits are stored and without effect.
//   - The character timeout interrupt, which the real chip raises when nothing moved for the time of four characters, is
//     raised at once where fewer characters than the trigger level are in the FIFO.
//   - The receiver never overruns from outside, since the far end waits; in loopback it does as the data sheet says.
//     Parity and framing errors do not occur.
//   - A break that the guest sends (LCR bit 6) goes nowhere. DMA mode (FCR bit 3) is ignored: RXRDY and TXRDY are not
//     wired in a PC.
//   - After a reset the divisor is 1 (115200 baud) and the scratch register 0; the real chip leaves them as they are,
//     and undefined after power-on.
package serial

import (
	"sync"
	"time"

	"vmm/devices"
)

// Size is how many ports the chip occupies.
const Size = 8

// DefaultDrainTimeout is what a [Config] with a DrainTimeout of zero stands for.
const DefaultDrainTimeout = time.Second

// Config is what a UART is connected to.
type Config struct {
	// IRQ is the chip's interrupt line; nil where it is not wired, for a guest that polls. SetLevel is called with the
	// chip locked: it must be quick and must not call back.
	IRQ devices.IRQLine
	// DrainTimeout bounds how long [UART.Serve] goes on writing the guest's last output once its context has ended.
	// Zero is [DefaultDrainTimeout].
	DrainTimeout time.Duration
}

// Stats counts what the guest does not see. The counters only grow.
type Stats struct {
	OutputDropped uint64 // bytes that the guest sent and that reached no line
	IRQErrors     uint64 // calls of IRQLine.SetLevel that failed
}

// UART is the chip. It implements [devices.Device] on [Size] ports; all its methods may be called concurrently.
type UART struct {
	irq          devices.IRQLine
	drainTimeout time.Duration

	// mu guards what follows. It is held while SetLevel runs, so that the calls come in the order of the changes that
	// cause them and the line always ends up where the chip's state wants it; SetLevel is one short ioctl. It is never
	// held during a Read or Write of the line.
	mu        sync.Mutex
	chip      chip
	level     bool // what the interrupt line was last driven to
	feeding   bool // Serve's reader waits to put more input into the FIFO
	irqErrors uint64

	// Tokens for the goroutines of Serve, put in with mu held. Each has room for one.
	begun chan struct{} // the guest has begun to send
	flush chan struct{} // what it has sent shall not wait any longer
	space chan struct{} // the FIFO is empty, and the guest wants to receive
}

var _ devices.Device = (*UART)(nil)

// New makes a chip as it is after power-on, with nothing attached to it. Until [UART.Serve] attaches a line, what the
// guest sends is kept for it as far as the buffer holds it; the rest is dropped, and the guest never waits.
func New(cfg Config) *UART {
	u := &UART{
		irq:          cfg.IRQ,
		drainTimeout: cfg.DrainTimeout,
		chip:         chip{output: make([]byte, 0, outputSize)},
		begun:        make(chan struct{}, 1),
		flush:        make(chan struct{}, 1),
		space:        make(chan struct{}, 1),
	}
	if u.drainTimeout == 0 {
		u.drainTimeout = DefaultDrainTimeout
	}
	u.chip.reset()
	return u
}

// Read implements [devices.Device]. An access of several bytes reads as many registers, in ascending order.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range p {
		p[i] = u.chip.read(off + uint64(i))
	}
	u.settle()
}

// Write implements [devices.Device]. An access of several bytes writes as many registers, in ascending order.
func (u *UART) Write(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	idle := len(u.chip.output) == 0
	for i, v := range p {
		u.chip.write(off+uint64(i), v)
	}
	if idle && len(u.chip.output) > 0 {
		signal(u.begun)
	}
	if u.chip.flush {
		u.chip.flush = false
		signal(u.flush)
	}
	u.settle()
}

// Reset is the chip's master reset (its MR pin): the registers are as after power-on and the FIFOs empty. Input that
// the guest has not read yet, in the FIFO or before it, waits for the guest that comes up; output that the guest has
// sent still goes to the line.
func (u *UART) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chip.reset()
	u.settle()
}

// Break receives a line break from the far end: a zero byte with LSR.BI. It follows the input that was read from the
// line before it. Of several breaks that wait only the last counts; in loopback the receiver hears none.
func (u *UART) Break() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chip.queueBreak()
	u.settle()
}

// PolledOutput tells whether the guest now sends without the transmitter's interrupt and not in loopback, so that nothing
// it can notice follows from a character at once: its writes of THR may arrive late, if before any other access.
func (u *UART) PolledOutput() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.chip.ier&ierTHRI == 0 && u.chip.mcr&mcrLoop == 0
}

// Stats returns the counters.
func (u *UART) Stats() Stats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Stats{OutputDropped: u.chip.outputDropped, IRQErrors: u.irqErrors}
}

// settle makes the world outside follow a change of the chip. The caller holds mu.
func (u *UART) settle() {
	switch {
	case u.feeding:
		if u.chip.wantsInput() || !u.chip.inputQueued() {
			signal(u.space)
		}
	case u.chip.wantsInput():
		// Only a break, or what a reset has put back: the reader is about other things.
		u.chip.fill()
	}
	if level := u.chip.interrupt(); level != u.level && u.irq != nil {
		if err := u.irq.SetLevel(level); err != nil {
			u.irqErrors++ // the next access tries again
		} else {
			u.level = level
		}
	}
}

// signal puts a token into ch unless there is one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
