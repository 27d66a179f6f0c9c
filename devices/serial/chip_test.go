package serial

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPowerOn(t *testing.T) {
	g := newGuest()
	for reg, want := range []byte{regRBR: 0, regIER: 0, regIIR: iirNone, regLCR: 0, regMCR: 0, regLSR: lsrIdle, regMSR: 0, regSCR: 0} {
		require.Equal(t, want, g.in(uint64(reg)), "register %d", reg)
	}
	requireLevel(t, g, false)
}

func TestRegisterBits(t *testing.T) {
	for _, tt := range []struct {
		name        string
		reg         uint64
		write, want byte
	}{
		{"IER keeps four bits", regIER, 0xff, 0x0f},
		{"LCR keeps all", regLCR, 0xff, 0xff},
		{"LCR keeps none", regLCR, 0x00, 0x00},
		{"MCR keeps five bits", regMCR, 0xff, 0x1f},
		{"LSR ignores writes", regLSR, 0x1f, lsrIdle},
		{"MSR ignores writes", regMSR, 0xff, 0x00},
		{"SCR keeps all", regSCR, 0xa5, 0xa5},
		{"FCR turns the FIFOs on", regFCR, fcrEnable, iirFIFOs | iirNone},
		{"FCR shows no 64 byte mode", regFCR, fcrEnable | fcr64Bytes, iirFIFOs | iirNone},
		{"FCR without the enable bit", regFCR, 0xfe, iirNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			g.out(tt.reg, tt.write)
			require.Equal(t, tt.want, g.in(tt.reg))
		})
	}
}

func TestDivisorLatch(t *testing.T) {
	g := newGuest()
	g.out(regIER, ierRLSI)
	g.out(regLCR, lcrDLAB|lcr8Bits)
	require.Equal(t, byte(1), g.in(0), "115200 baud after power-on")
	require.Equal(t, byte(0), g.in(1))
	g.out(0, 0x34)
	g.out(1, 0x12)
	require.Equal(t, byte(0x34), g.in(0))
	require.Equal(t, byte(0x12), g.in(1))
	require.Equal(t, byte(iirNone), g.in(regIIR), "the other registers stay")
	g.out(regLCR, lcr8Bits)
	require.Equal(t, byte(ierRLSI), g.in(regIER))
	require.Empty(t, g.u.chip.output, "no character was sent")
}

func TestAccessOfSeveralBytes(t *testing.T) {
	g := newGuest()
	g.out(regLCR, lcrDLAB)
	g.u.Write(0, []byte{0x34, 0x12})
	p := make([]byte, 4)
	g.u.Read(0, p)
	require.Equal(t, []byte{0x34, 0x12, iirNone, lcrDLAB}, p)
	g.u.Write(regLCR, []byte{lcr8Bits, mcrOut2, 0, 0})
	all := make([]byte, 8)
	g.u.Read(0, all)
	require.Equal(t, []byte{0, 0, iirNone, lcr8Bits, mcrOut2, lsrIdle, 0, 0}, all)
}

// receive makes the guest's receiver get text from outside, where its state lets it.
func (g guest) receive(s string) {
	g.u.mu.Lock()
	g.u.chip.queueInput([]byte(s))
	g.u.mu.Unlock()
	g.u.feed()
}

func TestReceiverTriggerLevels(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fcr   byte
		count int
		want  byte
	}{
		{"no FIFO", 0, 1, iirData},
		{"level 1", fcrEnable | 0<<6, 1, iirFIFOs | iirData},
		{"below level 4", fcrEnable | 1<<6, 3, iirFIFOs | iirTimeout},
		{"level 4", fcrEnable | 1<<6, 4, iirFIFOs | iirData},
		{"below level 8", fcrEnable | 2<<6, 7, iirFIFOs | iirTimeout},
		{"level 8", fcrEnable | 2<<6, 8, iirFIFOs | iirData},
		{"below level 14", fcrEnable | 3<<6, 13, iirFIFOs | iirTimeout},
		{"level 14", fcrEnable | 3<<6, 14, iirFIFOs | iirData},
		{"more than fits", fcrEnable | 3<<6, 17, iirFIFOs | iirData},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			g.out(regFCR, tt.fcr)
			g.out(regMCR, mcrRTS|mcrOut2)
			g.out(regIER, ierRDI)
			requireLevel(t, g, false)
			g.receive("0123456789abcdefghijklm"[:tt.count])
			requireLevel(t, g, true)
			require.Equal(t, tt.want, g.in(regIIR))
			require.Equal(t, tt.want, g.in(regIIR), "reading IIR does not end it")
			g.out(regIER, 0)
			requireLevel(t, g, false)
			require.Equal(t, tt.want&iirFIFOs|iirNone, g.in(regIIR))
		})
	}
}

func TestReceiverEmptiesInOrder(t *testing.T) {
	g := newGuest()
	g.open()
	g.receive("0123456789abcdefXYZ")
	for _, want := range []byte("0123456789abcdef") {
		require.Equal(t, byte(lsrDR|lsrIdle), g.in(regLSR))
		requireLevel(t, g, true)
		require.Equal(t, want, g.in(regRBR))
	}
	requireLevel(t, g, false)
	require.Equal(t, byte(lsrIdle), g.in(regLSR), "the guest sees the end of the FIFO before it fills again")
	g.u.feed()
	requireLevel(t, g, true)
	for _, want := range []byte("XYZ") {
		require.Equal(t, want, g.in(regRBR))
	}
	require.Zero(t, g.in(regRBR), "nothing left")
}

func TestClearingTheReceiver(t *testing.T) {
	for _, tt := range []struct {
		name string
		fcr  byte
		left byte
	}{
		{"clear", fcrEnable | fcrClearRx, 0},
		{"clear without enable disables, which clears", fcrClearRx, 0},
		{"disable", 0, 0},
		{"clear transmitter", fcrEnable | fcrClearTx, lsrDR},
		{"another trigger level", fcrEnable | fcrTrig8, lsrDR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			g.out(regFCR, fcrEnable)
			g.out(regMCR, mcrRTS)
			g.receive("abc")
			g.out(regMCR, 0)
			g.out(regFCR, tt.fcr)
			require.Equal(t, tt.left|lsrIdle, g.in(regLSR))
		})
	}
}

// The transmitter's interrupt is told once by IIR, and comes again with the next character or when it is enabled anew.
func TestTransmitterInterrupt(t *testing.T) {
	g := newGuest()
	g.out(regMCR, mcrOut2)
	requireLevel(t, g, false)
	g.out(regIER, ierTHRI)
	requireLevel(t, g, true)
	require.Equal(t, byte(lsrIdle), g.in(regLSR))
	requireLevel(t, g, true)
	require.Equal(t, byte(iirTHREmpty), g.in(regIIR))
	requireLevel(t, g, false)
	require.Equal(t, byte(iirNone), g.in(regIIR))

	g.out(regIER, ierTHRI)
	require.Equal(t, byte(iirNone), g.in(regIIR), "enabled before: nothing new")
	g.out(regTHR, 'x')
	requireLevel(t, g, true)
	require.Equal(t, byte(iirTHREmpty), g.in(regIIR))
	g.out(regIER, 0)
	g.out(regIER, ierTHRI)
	require.Equal(t, byte(iirTHREmpty), g.in(regIIR), "enabled anew")

	g.out(regTHR, 'x')
	g.out(regIER, 0)
	requireLevel(t, g, false)
	require.Equal(t, byte(iirNone), g.in(regIIR))
}

func TestInterruptPriorities(t *testing.T) {
	g := newGuest()
	g.out(regFCR, fcrEnable)
	g.out(regMCR, mcrRTS|mcrOut2)
	g.out(regIER, ierAll)
	g.u.attach() // a change of the modem inputs
	g.u.Break()
	g.receive("a")

	require.Equal(t, byte(iirFIFOs|iirLineStatus), g.in(regIIR))
	require.Equal(t, byte(lsrFIFOError|lsrBI|lsrDR|lsrIdle), g.in(regLSR))
	require.Equal(t, byte(iirFIFOs|iirData), g.in(regIIR))
	require.Zero(t, g.in(regRBR))
	require.Equal(t, byte('a'), g.in(regRBR))
	require.Equal(t, byte(iirFIFOs|iirTHREmpty), g.in(regIIR), "not told while others came first")
	require.Equal(t, byte(iirFIFOs|iirModemStatus), g.in(regIIR))
	requireLevel(t, g, true)
	require.Equal(t, byte(msrCTS|msrDSR|msrDCD|0x0b), g.in(regMSR))
	require.Equal(t, byte(iirFIFOs|iirNone), g.in(regIIR))
	requireLevel(t, g, false)
	require.Equal(t, byte(msrCTS|msrDSR|msrDCD), g.in(regMSR), "reading has cleared the deltas")
	_, rises := g.irq.state()
	require.Equal(t, 1, rises, "the line stayed high all along")
}

func TestOut2GatesTheInterrupt(t *testing.T) {
	g := newGuest()
	g.out(regIER, ierTHRI)
	requireLevel(t, g, false)
	g.out(regMCR, mcrOut2)
	requireLevel(t, g, true)
	g.out(regMCR, mcrOut2|mcrLoop)
	requireLevel(t, g, false)
	g.out(regMCR, mcrOut2)
	requireLevel(t, g, true)
	g.out(regMCR, 0)
	requireLevel(t, g, false)
	require.Equal(t, byte(iirTHREmpty), g.in(regIIR), "IIR tells without the gate")
}

func TestInterruptLineThatFails(t *testing.T) {
	g := newGuest()
	g.irq.fail = errors.New("broken")
	g.out(regMCR, mcrOut2)
	g.out(regIER, ierTHRI)
	g.in(regLSR)
	require.Equal(t, Stats{IRQErrors: 2}, g.u.Stats())
	g.irq.fail = nil
	g.in(regLSR)
	requireLevel(t, g, true)
	require.Equal(t, Stats{IRQErrors: 2}, g.u.Stats())
}

func TestInterruptLineNotWired(t *testing.T) {
	g := guest{u: New(Config{})}
	g.out(regMCR, mcrOut2)
	g.out(regIER, ierTHRI)
	require.Equal(t, byte(iirTHREmpty), g.in(regIIR))
}

func TestLoopbackModemLines(t *testing.T) {
	for _, tt := range []struct{ mcr, msr byte }{
		{0, 0},
		{mcrDTR, msrDSR},
		{mcrRTS, msrCTS},
		{mcrOut1, msrRI},
		{mcrOut2, msrDCD},
		{mcrRTS | mcrOut2, msrCTS | msrDCD},
		{mcrDTR | mcrRTS | mcrOut1 | mcrOut2, msrDSR | msrCTS | msrRI | msrDCD},
	} {
		g := newGuest()
		g.u.attach()
		g.out(regMCR, mcrLoop|tt.mcr)
		require.Equal(t, tt.msr, g.in(regMSR)&^msrDeltas, "MCR %#x", tt.mcr)
		g.out(regMCR, tt.mcr)
		require.Equal(t, byte(msrCTS|msrDSR|msrDCD), g.in(regMSR)&^msrDeltas, "the line's again after MCR %#x", tt.mcr)
	}
}

func TestLoopbackModemDeltas(t *testing.T) {
	g := newGuest()
	g.out(regMCR, mcrLoop)
	for _, tt := range []struct{ mcr, deltas byte }{
		{mcrRTS, 0x01}, {0, 0x01},
		{mcrDTR, 0x02}, {0, 0x02},
		{mcrOut1, 0x00}, {0, msrTERI}, // only the trailing edge
		{mcrOut2, 0x08}, {0, 0x08},
	} {
		g.out(regMCR, mcrLoop|tt.mcr)
		require.Equal(t, tt.deltas, g.in(regMSR)&msrDeltas, "MCR %#x", tt.mcr)
	}
}

func TestLoopbackData(t *testing.T) {
	g := newGuest()
	g.open()
	g.out(regMCR, mcrLoop|mcrRTS)
	g.receive("outside")
	g.u.Break()
	g.print("inside")
	for _, want := range []byte("inside") {
		require.Equal(t, byte(lsrDR|lsrIdle), g.in(regLSR))
		require.Equal(t, want, g.in(regRBR))
	}
	require.Equal(t, byte(lsrIdle), g.in(regLSR))
	require.Empty(t, g.u.chip.output, "nothing went out")
	g.out(regMCR, mcrRTS)
	g.u.feed()
	require.Equal(t, byte('o'), g.in(regRBR), "the line waited")
}

func TestLoopbackOverrun(t *testing.T) {
	t.Run("FIFO keeps the old", func(t *testing.T) {
		g := newGuest()
		g.out(regFCR, fcrEnable)
		g.out(regIER, ierRLSI)
		g.out(regMCR, mcrLoop)
		g.print("0123456789abcdef")
		require.Equal(t, byte(lsrDR|lsrIdle), g.in(regLSR))
		g.print("X")
		require.Equal(t, byte(iirFIFOs|iirLineStatus), g.in(regIIR))
		require.Equal(t, byte(lsrOE|lsrDR|lsrIdle), g.in(regLSR))
		require.Equal(t, byte(lsrDR|lsrIdle), g.in(regLSR), "told once")
		for _, want := range []byte("0123456789abcdef") {
			require.Equal(t, want, g.in(regRBR))
		}
	})
	t.Run("holding register takes the new", func(t *testing.T) {
		g := newGuest()
		g.out(regMCR, mcrLoop)
		g.print("ab")
		require.Equal(t, byte(lsrOE|lsrDR|lsrIdle), g.in(regLSR))
		require.Equal(t, byte('b'), g.in(regRBR))
		require.Equal(t, byte(lsrIdle), g.in(regLSR))
	})
}

func TestBreak(t *testing.T) {
	t.Run("behind the input before it", func(t *testing.T) {
		g := newGuest()
		g.open()
		g.receive("0123456789abcdefgh")
		g.u.Break()
		var d driver
		d.guest = g
		for range 2 { // a FIFO full, and the rest with the break
			requireLevel(t, g, true)
			d.interrupt()
			g.u.feed()
		}
		require.Equal(t, "0123456789abcdefgh", string(d.received))
		require.Equal(t, 1, d.breaks)
		requireLevel(t, g, false)
	})
	t.Run("below the top", func(t *testing.T) {
		g := newGuest()
		g.open()
		g.u.mu.Lock()
		g.u.chip.queueInput([]byte("a"))
		g.u.mu.Unlock()
		g.u.chip.queueBreak()
		g.u.feed()
		require.Equal(t, byte(iirFIFOs|iirTimeout), g.in(regIIR))
		require.Equal(t, byte(lsrFIFOError|lsrDR|lsrIdle), g.in(regLSR))
		require.Equal(t, byte(lsrFIFOError|lsrDR|lsrIdle), g.in(regLSR), "stays until the break is told")
		require.Equal(t, byte('a'), g.in(regRBR))
		require.Equal(t, byte(iirFIFOs|iirLineStatus), g.in(regIIR))
		require.Equal(t, byte(lsrFIFOError|lsrBI|lsrDR|lsrIdle), g.in(regLSR))
		require.Equal(t, byte(lsrDR|lsrIdle), g.in(regLSR))
		require.Zero(t, g.in(regRBR))
	})
	t.Run("without FIFOs and without RTS", func(t *testing.T) {
		g := newGuest()
		g.u.Break()
		require.Equal(t, byte(lsrBI|lsrDR|lsrIdle), g.in(regLSR))
		require.Zero(t, g.in(regRBR))
		require.Equal(t, byte(lsrIdle), g.in(regLSR))
	})
	t.Run("lost in loopback", func(t *testing.T) {
		g := newGuest()
		g.out(regMCR, mcrLoop)
		g.u.Break()
		g.out(regMCR, 0)
		require.Equal(t, byte(lsrIdle), g.in(regLSR))
	})
}

// Input waits outside until the guest shows that it receives.
func TestWhenTheGuestReceives(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(g guest)
		want bool
	}{
		{"after power-on", func(guest) {}, false},
		{"RTS", func(g guest) { g.out(regMCR, mcrRTS) }, true},
		{"DTR alone", func(g guest) { g.out(regMCR, mcrDTR|mcrOut2) }, false},
		{"RTS in loopback", func(g guest) { g.out(regMCR, mcrRTS|mcrLoop) }, false},
		{"RTS taken back", func(g guest) { g.open(); g.out(regMCR, mcrDTR|mcrOut2) }, false},
		{"interrupts without RTS", func(g guest) {
			g.out(regFCR, fcrEnable)
			g.out(regIER, ierRDI)
			g.out(regMCR, mcrOut2)
		}, true},
		{"interrupts without a line", func(g guest) { g.out(regFCR, fcrEnable); g.out(regIER, ierRDI) }, false},
		{"interrupts before FIFOs", func(g guest) { g.out(regMCR, mcrOut2); g.out(regIER, ierRDI) }, false},
		{"polls", func(g guest) {
			for range pollsToReceive {
				g.in(regLSR)
			}
		}, true},
		{"polls too few", func(g guest) {
			for range pollsToReceive - 1 {
				g.in(regLSR)
			}
		}, false},
		{"looks before each character", func(g guest) {
			for range 2 * pollsToReceive {
				g.in(regLSR)
				g.out(regTHR, 'x')
			}
		}, false},
		{"polls, then programs the modem lines", func(g guest) {
			for range pollsToReceive {
				g.in(regLSR)
			}
			g.out(regMCR, mcrDTR)
		}, false},
		{"waits for a stalled transmitter", func(g guest) {
			g.u.attach()
			for g.in(regLSR)&lsrTHRE != 0 {
				g.out(regTHR, 'x')
			}
			for range 2 * pollsToReceive {
				g.in(regLSR)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			tt.do(g)
			g.receive("x")
			require.Equal(t, tt.want, g.in(regLSR)&lsrDR != 0)
		})
	}
}

func TestReset(t *testing.T) {
	g := newGuest()
	g.u.attach()
	g.open()
	g.out(regSCR, 0x5a)
	g.out(regIER, ierAll)
	g.receive("0123456789abcdefgh") // two more than the FIFO holds
	require.Equal(t, byte('0'), g.in(regRBR))
	g.u.Break()
	g.print("sent")
	requireLevel(t, g, true)

	g.u.Reset()
	requireLevel(t, g, false)
	for reg, want := range []byte{
		regRBR: 0, regIER: 0, regIIR: iirNone, regLCR: 0, regMCR: 0, regLSR: lsrIdle, regMSR: msrCTS | msrDSR | msrDCD, regSCR: 0,
	} {
		require.Equal(t, want, g.in(uint64(reg)), "register %d", reg)
	}
	require.Equal(t, "sent", string(g.u.chip.output))

	d := driver{guest: g}
	d.open()
	g.u.feed()
	d.interrupt()
	g.u.feed()
	d.interrupt()
	require.Equal(t, "123456789abcdefgh", string(d.received), "what was not read is still to come")
	require.Zero(t, d.breaks)
}

func TestResetInLoopback(t *testing.T) {
	g := newGuest()
	g.open()
	g.receive("in")
	g.out(regMCR, mcrLoop)
	g.print("out")
	g.u.Reset()
	g.open()
	require.Equal(t, byte('i'), g.in(regRBR))
	require.Equal(t, byte('n'), g.in(regRBR))
	require.Equal(t, byte(lsrIdle), g.in(regLSR))
}

func TestResetForgetsBreaks(t *testing.T) {
	t.Run("in the FIFO", func(t *testing.T) {
		g := newGuest()
		g.u.Break()
		g.u.Reset()
		g.open()
		require.Equal(t, byte(lsrIdle), g.in(regLSR))
	})
	t.Run("that the reader waits with", func(t *testing.T) {
		g := newGuest()
		g.out(regMCR, mcrLoop)
		g.print("x")
		g.out(regMCR, 0)
		g.u.Break()
		require.True(t, g.u.feed(), "the receiver is full")
		require.Empty(t, g.u.space)
		g.u.Reset()
		require.Len(t, g.u.space, 1, "the reader need not wait any longer")
		require.False(t, g.u.feed())
	})
}

func TestNothingAttached(t *testing.T) {
	g := newGuest()
	for range outputSize + 100 {
		require.Equal(t, byte(lsrIdle), g.in(regLSR), "the guest never waits")
		g.out(regTHR, 'x')
	}
	require.Equal(t, Stats{OutputDropped: 100}, g.u.Stats())
}

func TestAccessesDoNotAllocate(t *testing.T) {
	g := newGuest()
	g.u.attach()
	g.out(regMCR, mcrOut2|mcrLoop)
	p := make([]byte, 1)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		for reg := range uint64(Size) {
			g.u.Read(reg, p)
			p[0] = 0x1b
			g.u.Write(reg, p)
		}
		g.u.Write(regLCR, p[:1])
	}))
	g.out(regMCR, mcrOut2)
	g.out(regLCR, 0)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		p[0] = '\n'
		g.u.Write(regTHR, p)
		g.u.Read(regIIR, p)
	}))
}
