package serial

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// access is one step of a driver's probe: a write, or a read whose result, masked, must be want.
type access struct {
	write      bool
	reg        uint64
	value      byte // written
	mask, want byte // read
	why        string
}

func w(reg uint64, v byte) access { return access{write: true, reg: reg, value: v} }
func r(reg uint64, mask, want byte, why string) access {
	return access{reg: reg, mask: mask, want: want, why: why}
}

func (g guest) replay(t *testing.T, steps []access) {
	t.Helper()
	for i, s := range steps {
		if s.write {
			g.out(s.reg, s.value)
			continue
		}
		require.Equal(t, s.want, g.in(s.reg)&s.mask, "step %d, register %d: %s", i, s.reg, s.why)
	}
}

// What Linux's drivers/tty/serial/8250/8250_port.c does to tell a 16550A from its many relatives.
func TestLinuxAutoconfig(t *testing.T) {
	g := newGuest()
	g.u.attach()
	g.replay(t, []access{
		// Is there a chip at all?
		r(regIER, 0xff, 0, "IER"),
		w(regIER, 0),
		r(regIER, 0x0f, 0, "IER holds zeroes"),
		w(regIER, 0x0f),
		r(regIER, 0x0f, 0x0f, "IER holds ones"),
		w(regIER, 0),
		r(regMCR, 0xff, 0, "MCR"),
		r(regLCR, 0xff, 0, "LCR"),
		w(regMCR, mcrLoop|mcrOut2|mcrRTS),
		r(regMSR, 0xf0, msrDCD|msrCTS, "MSR mirrors MCR"),
		w(regMCR, 0),

		// Which one? The FIFO bits of IIR come first.
		w(regLCR, 0xbf),
		w(regFCR, 0),
		w(regLCR, 0),
		w(regFCR, fcrEnable),
		r(regIIR, 0xc0, 0xc0, "a 16550A or better"),

		// 16650: an EFR at offset 2 that reads as zero while DLAB is set.
		w(regLCR, lcrDLAB),
		r(regIIR, 0xff, iirFIFOs|iirNone, "no EFR behind DLAB"),
		// 16850 and 16654: an EFR behind LCR 0xbf.
		w(regLCR, 0xbf),
		r(regIIR, 0xff, iirFIFOs|iirNone, "no EFR behind 0xbf"),
		// National's SuperIO: a second bank, behind LCR 0xe0, whose offset 2 mirrors MCR's loop bit.
		w(regLCR, 0),
		r(regMCR, 0xff, 0, "MCR"),
		w(regLCR, 0xe0),
		r(regIIR, mcrLoop, 0, "no second bank"),
		w(regLCR, 0),
		w(regMCR, mcrLoop),
		w(regLCR, 0xe0),
		r(regIIR, mcrLoop, 0, "no second bank, with the bit turned"),
		w(regLCR, 0),
		w(regMCR, 0),
		// 16750: FCR bit 5 shows in IIR only while DLAB is set.
		w(regLCR, 0),
		w(regFCR, fcrEnable|fcr64Bytes),
		r(regIIR, 0xe0, 0xc0, "no 64-byte FIFO"),
		w(regFCR, fcrEnable),
		w(regLCR, lcrDLAB),
		w(regFCR, fcrEnable|fcr64Bytes),
		r(regIIR, 0xe0, 0xc0, "no 64-byte FIFO behind DLAB"),
		w(regFCR, fcrEnable),
		w(regLCR, 0),
		// XScale: a unit enable bit in IER.
		r(regIER, 0xff, 0, "IER"),
		w(regIER, 0x40),
		r(regIER, 0x40, 0, "no unit enable bit"),
		w(regIER, 0),

		// Leave it quiet.
		w(regMCR, 0),
		w(regFCR, fcrEnable),
		w(regFCR, fcrEnable|fcrClearRx|fcrClearTx),
		w(regFCR, 0),
		r(regRBR, 0xff, 0, "RBR"),
		w(regIER, 0),
	})
	_, rises := g.irq.state()
	require.Zero(t, rises, "a probe without OUT2 is silent")
	require.Empty(t, g.u.chip.output)
}

func TestLinuxSizeFIFO(t *testing.T) {
	g := newGuest()
	g.out(regLCR, 0)
	g.out(regFCR, fcrEnable|fcrClearRx|fcrClearTx)
	g.out(regMCR, mcrLoop)
	g.out(regLCR, lcrDLAB)
	g.out(0, 1)
	g.out(1, 0)
	g.out(regLCR, lcr8Bits)
	for i := range 256 {
		g.out(regTHR, byte(i))
	}
	size := 0
	for ; size < 256 && g.in(regLSR)&lsrDR != 0; size++ {
		require.Equal(t, byte(size), g.in(regRBR))
	}
	require.Equal(t, 16, size)
}

// What Linux does when it opens the port, with the tests for chips that don't raise the transmitter's interrupt anew
// (UART_BUG_THRE) or not at once (UART_BUG_TXEN).
func TestLinuxStartup(t *testing.T) {
	g := newGuest()
	g.u.attach()
	g.u.mu.Lock()
	g.u.chip.queueInput([]byte("typed early\n"))
	g.u.mu.Unlock()
	g.replay(t, []access{
		w(regFCR, fcrEnable),
		w(regFCR, fcrEnable|fcrClearRx|fcrClearTx),
		w(regFCR, 0),
		r(regLSR, 0xff, lsrIdle, "LSR"),
		r(regRBR, 0xff, 0, "RBR"),
		r(regIIR, 0xff, iirNone, "IIR"),
		r(regMSR, 0xff, msrCTS|msrDSR|msrDCD|0x0b, "MSR"),
		r(regLSR, 0xff, lsrIdle, "not the 0xff of an empty slot"),

		r(regLSR, lsrTHRE, lsrTHRE, "transmitter"),
		w(regIER, ierTHRI),
		r(regIIR, 0xff, iirTHREmpty, "interrupt"),
		w(regIER, 0),
		w(regIER, ierTHRI),
		r(regIIR, 0xff, iirTHREmpty, "interrupt again"),
		w(regIER, 0),

		w(regLCR, lcr8Bits),
		w(regMCR, mcrOut2),
		w(regIER, ierTHRI),
		r(regLSR, lsrTEMT, lsrTEMT, "transmitter"),
		r(regIIR, iirNone, 0, "interrupt at once"),
		w(regIER, 0),
		r(regLSR, 0xff, lsrIdle, "LSR"),
		r(regRBR, 0xff, 0, "RBR"),
		r(regIIR, 0xff, iirNone, "IIR"),
		r(regMSR, 0xff, msrCTS|msrDSR|msrDCD, "MSR"),

		w(regIER, ierRDI|ierRLSI),
		w(regLCR, lcrDLAB|lcr8Bits),
		w(0, 1),
		w(1, 0),
		w(regLCR, lcr8Bits),
		w(regFCR, fcrEnable),
		w(regFCR, fcrEnable|fcrTrig8),
		w(regMCR, mcrDTR|mcrOut2|mcrRTS),
	})
	d := driver{guest: g}
	d.interrupt()
	require.Equal(t, "typed early\n", string(d.received), "input that came before the guest was ready is there")
}

// What FreeBSD's sys/dev/uart/uart_dev_ns8250.c does; it finds the FIFO's size by its first overrun.
func TestFreeBSDProbe(t *testing.T) {
	g := newGuest()
	g.u.attach()
	g.u.mu.Lock()
	g.u.chip.queueInput([]byte("x"))
	g.u.mu.Unlock()
	g.replay(t, []access{
		r(regIIR, 0x30, 0, "bits that are always zero"),
		r(regMCR, 0xa0, 0, "bits that are always zero"),
		w(regLCR, lcrDLAB|lcr8Bits),
		w(0, 1),
		w(1, 0),
		w(regLCR, lcr8Bits),
		r(regIER, 0xe0, 0, "IER"),
		w(regIER, 0),
		w(regFCR, 0),
		r(regLSR, lsrTEMT, lsrTEMT, "drained"),
		w(regMCR, mcrLoop|mcrOut2|mcrDTR|mcrRTS),
		w(regFCR, fcrEnable),
		r(regIIR, iirFIFOs, iirFIFOs, "FIFOs"),
		w(regFCR, fcrEnable|fcrClearRx|fcrClearTx),
		r(regLSR, lsrTEMT, lsrTEMT, "transmitter drained"),
		r(regLSR, lsrDR, 0, "receiver drained, whatever is on the line"),
	})
	count := 0
	for lsr := byte(0); lsr&lsrOE == 0 && count < 260; count++ {
		g.out(regTHR, 0)
		lsr = g.in(regLSR)
		require.NotZero(t, lsr&lsrTEMT)
	}
	require.Equal(t, 16, count-1)
	g.replay(t, []access{
		w(regMCR, mcrOut2|mcrDTR|mcrRTS),
		w(regFCR, fcrEnable|fcrClearRx|fcrClearTx),
		w(regFCR, fcrEnable|fcrTrig8),
		w(regIER, ierRDI|ierRLSI|ierMSI),
		// A burst: sixteen characters, then the interrupt that asks for more.
		r(regMSR, 0xf0, msrCTS|msrDSR|msrDCD, "MSR"),
	})
	g.in(regRBR)
	g.print("0123456789abcdef")
	g.replay(t, []access{
		w(regIER, ierRDI|ierRLSI|ierMSI|ierTHRI),
		r(regIIR, 0x0f, iirTHREmpty, "burst done"),
		w(regIER, ierRDI|ierRLSI|ierMSI),
		r(regIIR, 0x0f, iirNone, "all told"),
	})
	require.Equal(t, "0123456789abcdef", string(g.u.chip.output))
}
