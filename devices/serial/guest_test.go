package serial

import (
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Bits that only guests use.
const (
	ierAll     = ierRDI | ierTHRI | ierRLSI | ierMSI
	lcr8Bits   = 0x03
	fcrClearTx = 0x04
	fcr64Bytes = 0x20
	fcrTrig8   = 2 << fcrTriggerShift
	lsrIdle    = lsrTHRE | lsrTEMT
)

// wire is an interrupt line that remembers.
type wire struct {
	mu     sync.Mutex
	high   bool
	rises  int
	fail   error
	raised chan struct{} // a token after each rising edge, as an edge-triggered interrupt controller keeps one
}

func newWire() *wire { return &wire{raised: make(chan struct{}, 1)} }

func (w *wire) SetLevel(high bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if high == w.high {
		return errors.New("SetLevel without a change")
	}
	w.high = high
	if high {
		w.rises++
		signal(w.raised)
	}
	return nil
}

func (w *wire) state() (bool, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.high, w.rises
}

// guest accesses a UART as a driver does.
type guest struct {
	u   *UART
	irq *wire
}

func newGuest() guest {
	irq := newWire()
	return guest{u: New(Config{IRQ: irq}), irq: irq}
}

func (g guest) in(reg uint64) byte {
	var b [1]byte
	g.u.Read(reg, b[:])
	return b[0]
}

func (g guest) out(reg uint64, v byte) { g.u.Write(reg, []byte{v}) }

func (g guest) print(s string) {
	for i := range len(s) {
		g.out(regTHR, s[i])
	}
}

// open does what Linux does at the end of opening the port.
func (g guest) open() {
	g.out(regLCR, lcr8Bits)
	g.out(regMCR, mcrDTR|mcrOut2)
	g.out(regIER, ierRDI|ierRLSI)
	g.out(regFCR, fcrEnable|fcrTrig8)
	g.out(regMCR, mcrDTR|mcrRTS|mcrOut2)
}

// driver is the interrupt half of a Linux-like driver.
type driver struct {
	guest
	received []byte
	breaks   int
	toSend   []byte
	sending  bool
	exits    int // accesses
	idle     int // interrupts without a cause
}

func (d *driver) in(reg uint64) byte     { d.exits++; return d.guest.in(reg) }
func (d *driver) out(reg uint64, v byte) { d.exits++; d.guest.out(reg, v) }

// startSend hands text to the driver, as a write system call does.
func (d *driver) startSend(s string) {
	d.toSend = append(d.toSend, s...)
	if !d.sending {
		d.sending = true
		d.out(regIER, ierRDI|ierRLSI|ierTHRI)
	}
}

func (d *driver) interrupt() {
	for pass := 0; ; pass++ {
		iir := d.in(regIIR)
		if iir&iirNone != 0 {
			if pass == 0 {
				d.idle++
			}
			return
		}
		lsr := d.in(regLSR)
		for lsr&lsrDR != 0 {
			ch := d.in(regRBR)
			if lsr&lsrBI != 0 {
				d.breaks++
			} else {
				d.received = append(d.received, ch)
			}
			lsr = d.in(regLSR)
		}
		d.in(regMSR)
		if d.sending && lsr&lsrTHRE != 0 {
			n := min(fifoSize, len(d.toSend))
			for _, ch := range d.toSend[:n] {
				d.out(regTHR, ch)
			}
			if d.toSend = d.toSend[n:]; len(d.toSend) == 0 {
				d.sending = false
				d.out(regIER, ierRDI|ierRLSI)
			}
		}
	}
}

// run serves interrupts until done says that it is over, which it is asked after each of them.
func (d *driver) run(t *testing.T, done func() bool) {
	t.Helper()
	for !done() {
		<-d.irq.raised
		d.interrupt()
	}
}

// hose is a line of which a test holds the other end.
type hose struct {
	in     chan []byte   // what Read returns; a closed channel is an end of file
	stall  chan struct{} // closed when writes may go on; nil if they never wait
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	out      []byte
	writes   []int
	writeErr error
	readErr  error // in place of io.EOF
	closeErr error
}

func newHose() *hose { return &hose{in: make(chan []byte, 1), closed: make(chan struct{})} }

func (h *hose) Read(p []byte) (int, error) {
	select {
	case b, ok := <-h.in:
		switch {
		case ok:
			return copy(p, b), nil
		case h.readErr != nil:
			return 0, h.readErr
		}
		return 0, io.EOF
	case <-h.closed:
		return 0, io.ErrClosedPipe
	}
}

func (h *hose) Write(p []byte) (int, error) {
	if h.stall != nil {
		select {
		case <-h.stall:
		case <-h.closed:
			return 0, io.ErrClosedPipe
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writeErr != nil {
		return 0, h.writeErr
	}
	h.out = append(h.out, p...)
	h.writes = append(h.writes, len(p))
	return len(p), nil
}

func (h *hose) Close() error {
	h.once.Do(func() { close(h.closed) })
	return h.closeErr
}

func (h *hose) output() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.out)
}

func requireLevel(t *testing.T, g guest, high bool) {
	t.Helper()
	got, _ := g.irq.state()
	require.Equal(t, high, got, "interrupt line")
}
