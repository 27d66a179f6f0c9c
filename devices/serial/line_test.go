package serial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// serve runs Serve in the background. The function it returns ends it and returns what it returned.
func serve(t *testing.T, u *UART, line io.ReadWriteCloser) func() error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- u.Serve(ctx, line) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-result
	})
}

// paste is 64 KiB of text lines.
func paste() []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 64<<10)
	for i := range text {
		text[i] = byte(' ' + rnd.IntN(95))
		if i%80 == 79 {
			text[i] = '\n'
		}
	}
	return text
}

func TestPasteArrivesWhole(t *testing.T) {
	text := paste()
	for _, tt := range []struct {
		name string
		size int // of what one Read gives
	}{
		{"in large reads", inputSize},
		{"in small reads", 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := driver{guest: newGuest()}
				line := newHose()
				stop := serve(t, d.u, line)
				go func() {
					for rest := text; len(rest) > 0; {
						n := min(tt.size, len(rest))
						line.in <- rest[:n]
						rest = rest[n:]
					}
					close(line.in)
				}()
				d.open()
				d.run(t, func() bool { return len(d.received) >= len(text) })
				require.NoError(t, stop())
				require.Equal(t, text, d.received)
				// Per character an RBR and an LSR; per filling of the FIFO an IIR, an LSR, an MSR, the last IIR, and one
				// more where the next filling came while the handler still ran, and it has seen to that too.
				require.LessOrEqual(t, d.exits, len(text)*2+5*(len(text)/min(tt.size, fifoSize)+1))
			})
		})
	}
}

func TestPasteToAGuestThatPolls(t *testing.T) {
	text := paste()[:4*inputSize]
	for _, fcr := range []byte{0, fcrEnable} {
		synctest.Test(t, func(t *testing.T) {
			g := newGuest()
			line := newHose()
			stop := serve(t, g.u, line)
			go func() {
				for rest := text; len(rest) > 0; rest = rest[inputSize:] {
					line.in <- rest[:inputSize]
				}
			}()
			g.out(regFCR, fcr)
			var got []byte
			for len(got) < len(text) {
				if g.in(regLSR)&lsrDR != 0 {
					got = append(got, g.in(regRBR))
				} else {
					<-time.After(time.Microsecond) // virtual time: lets the other goroutines run
				}
			}
			require.NoError(t, stop())
			require.Equal(t, text, got)
		})
	}
}

// A guest that is slow to take its input gets as much time for the rest of its work.
func TestPasteLeavesTheGuestHalfItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver{guest: newGuest()}
		line := newHose()
		stop := serve(t, d.u, line)
		line.in <- paste()[:inputSize]
		d.open()
		start := time.Now()
		var busy time.Duration
		for len(d.received) < inputSize {
			<-d.irq.raised
			<-time.After(100 * time.Microsecond)
			busy += 100 * time.Microsecond
			d.interrupt()
			synctest.Wait() // the line has its turn before the next interrupt
		}
		took := time.Since(start)
		require.NoError(t, stop())
		require.Greater(t, busy, 5*restTime)
		require.InDelta(t, 2*busy, took, float64(restTime))
	})
}

func TestInputWaitsForRTS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver{guest: newGuest()}
		line := newHose()
		stop := serve(t, d.u, line)
		line.in <- []byte("uname -r\npoweroff\n")
		close(line.in)
		synctest.Wait()
		d.out(regFCR, fcrEnable|fcrClearRx|fcrClearTx)
		require.Equal(t, byte(lsrIdle), d.in(regLSR))
		d.open()
		d.run(t, func() bool { return len(d.received) == 18 })
		require.Equal(t, "uname -r\npoweroff\n", string(d.received))

		require.NoError(t, stop())
	})
}

// While the reader is blocked in Read, what a reset has put back, and a break, need no help of its.
func TestResetAndBreakWhileNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver{guest: newGuest()}
		line := newHose()
		stop := serve(t, d.u, line)
		d.open()
		line.in <- []byte("typed ahead")
		synctest.Wait()
		d.u.Reset()
		synctest.Wait()
		requireLevel(t, d.guest, false)
		d.open()
		requireLevel(t, d.guest, true)
		d.interrupt()
		require.Equal(t, "typed ahead", string(d.received))
		d.u.Break()
		requireLevel(t, d.guest, true)
		d.interrupt()
		require.Equal(t, 1, d.breaks)
		require.NoError(t, stop())
	})
}

// A reset drops a break that waits behind input, and does not leave the reader waiting for it.
func TestResetWhileTheReaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver{guest: newGuest()}
		line := newHose()
		stop := serve(t, d.u, line)
		line.in <- []byte("a")
		synctest.Wait() // the reader waits for RTS
		d.u.Break()
		d.open()
		d.u.Reset()
		synctest.Wait()
		d.open()
		line.in <- []byte("b")
		d.run(t, func() bool { return len(d.received) == 2 })
		require.Equal(t, "ab", string(d.received))
		require.Zero(t, d.breaks)
		require.NoError(t, stop())
	})
}

// A break goes between what was read before it and what is read after it.
func TestBreakKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver{guest: newGuest()}
		line := newHose()
		stop := serve(t, d.u, line)
		d.open()
		line.in <- []byte("0123456789abcdef")
		synctest.Wait() // all of it in the FIFO, which is full, and the reader in Read
		d.u.Break()
		line.in <- []byte("h")
		synctest.Wait()
		var got []byte
		for len(got) < 18 {
			if lsr := d.in(regLSR); lsr&lsrDR == 0 {
				synctest.Wait()
			} else if ch := d.in(regRBR); lsr&lsrBI != 0 {
				got = append(got, '!')
			} else {
				got = append(got, ch)
			}
		}
		require.Equal(t, "0123456789abcdef!h", string(got))
		require.NoError(t, stop())
	})
}

func TestOutputIsPromptAndInFewWrites(t *testing.T) {
	for _, tt := range []struct {
		name   string
		send   func(d *driver)
		want   string
		writes []int
		delay  time.Duration
	}{
		{"a line of the polling console", func(d *driver) {
			for _, ch := range []byte("hello, world\r\n") {
				for d.in(regLSR)&lsrTHRE == 0 {
				}
				d.out(regTHR, ch)
			}
		}, "hello, world\r\n", []int{14}, 0},
		{"a prompt, by interrupts", func(d *driver) { d.startSend("$ "); d.interrupt() }, "$ ", []int{2}, 0},
		{"a long line, by interrupts", func(d *driver) {
			d.startSend(strings.Repeat("x", 200))
			d.interrupt()
		}, strings.Repeat("x", 200), []int{200}, 0},
		{"an unfinished line of the polling console", func(d *driver) { d.print("login: ") }, "login: ", []int{7}, gatherTime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := driver{guest: newGuest()}
				line := newHose()
				stop := serve(t, d.u, line)
				d.open()
				synctest.Wait()
				tt.send(&d)
				synctest.Wait()
				if tt.delay > 0 {
					require.Empty(t, line.output())
					<-time.After(tt.delay)
					synctest.Wait()
				}
				require.Equal(t, tt.want, line.output())
				require.Equal(t, tt.writes, line.writes)
				require.NoError(t, stop())
				require.Zero(t, d.u.Stats())
			})
		})
	}
}

// The cost of sending by interrupts: per sixteen characters an IIR, an LSR and an MSR beside the characters.
func TestExitsOfSendingByInterrupts(t *testing.T) {
	d := driver{guest: newGuest()}
	d.open()
	d.startSend(strings.Repeat("x", 160))
	<-d.irq.raised
	d.interrupt()
	require.Empty(t, d.toSend)
	// IER before and after, and the last IIR.
	require.Equal(t, 160+10*3+2+1, d.exits)
	<-d.irq.raised // one interrupt too many: raised by the transmitter while the first was being served
	d.interrupt()
	require.Equal(t, 1, d.idle)
	require.Empty(t, d.irq.raised)
}

func TestOutputBeforeServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest()
		g.print("early")
		line := newHose()
		stop := serve(t, g.u, line)
		<-time.After(gatherTime)
		synctest.Wait()
		require.Equal(t, "early", line.output())
		require.NoError(t, stop())
	})
}

func TestModemLinesFollowTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest()
		g.out(regMCR, mcrOut2)
		g.out(regIER, ierMSI)
		require.Zero(t, g.in(regMSR))
		for range 2 { // one line after another
			stop := serve(t, g.u, newHose())
			synctest.Wait()
			requireLevel(t, g, true)
			require.Equal(t, byte(msrCTS|msrDSR|msrDCD|0x0b), g.in(regMSR))
			requireLevel(t, g, false)
			require.NoError(t, stop())
			requireLevel(t, g, true)
			require.Equal(t, byte(0x0b), g.in(regMSR))
		}
	})
}

func TestStalledReaderStallsOnlyThePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest()
		line := newHose()
		line.stall = make(chan struct{})
		stop := serve(t, g.u, line)
		g.out(regMCR, mcrOut2)
		g.out(regIER, ierTHRI)
		synctest.Wait()

		g.print("in hand\n")
		synctest.Wait() // the writer is stuck with it
		sent := 0
		for ; g.in(regLSR)&lsrTHRE != 0; sent++ {
			g.out(regTHR, 'x')
		}
		require.Equal(t, outputSize-fifoSize+1, sent)
		require.Zero(t, g.in(regLSR)&lsrTEMT)
		require.Equal(t, byte(iirNone), g.in(regIIR))
		requireLevel(t, g, false)
		for range fifoSize + 4 { // a driver that does not look
			g.out(regTHR, 'y')
		}
		require.Equal(t, Stats{OutputDropped: 5}, g.u.Stats())

		close(line.stall)
		synctest.Wait()
		requireLevel(t, g, true)
		require.Equal(t, byte(iirTHREmpty), g.in(regIIR))
		require.Equal(t, byte(lsrIdle), g.in(regLSR))
		require.Equal(t, "in hand\n"+strings.Repeat("x", sent)+strings.Repeat("y", fifoSize-1), line.output())
		require.NoError(t, stop())
	})
}

func TestStopWritesTheLastWords(t *testing.T) {
	for _, words := range []string{"reboot: Power down\n", "no end of line", "one\ntwo"} {
		synctest.Test(t, func(t *testing.T) {
			g := newGuest()
			line := newHose()
			stop := serve(t, g.u, line)
			synctest.Wait()
			start := time.Now()
			g.print(words)
			require.NoError(t, stop())
			require.Equal(t, words, line.output())
			require.Zero(t, time.Since(start), "no waiting for more")
		})
	}
}

func TestStopWithAStalledReader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		want    time.Duration
	}{
		{"default", 0, DefaultDrainTimeout},
		{"configured", 50 * time.Millisecond, 50 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := guest{u: New(Config{DrainTimeout: tt.timeout})}
				line := newHose()
				line.stall = make(chan struct{})
				stop := serve(t, g.u, line)
				g.print("never read\n")
				synctest.Wait()
				start := time.Now()
				require.NoError(t, stop())
				require.Equal(t, tt.want, time.Since(start))
				require.Equal(t, Stats{OutputDropped: 11}, g.u.Stats())
				<-line.closed
			})
		})
	}
}

func TestErrorsOfTheLine(t *testing.T) {
	broken := errors.New("broken")
	t.Run("write", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGuest()
			line := newHose()
			line.writeErr = broken
			line.stall = make(chan struct{})
			stop := serve(t, g.u, line)
			g.open()
			g.print("lost\n")
			synctest.Wait()
			g.print("lost too\n")
			close(line.stall)
			synctest.Wait()
			for range 2 * outputSize {
				g.out(regTHR, 'x')
				require.NotZero(t, g.in(regLSR)&lsrTHRE, "the guest goes on")
			}
			require.Equal(t, Stats{OutputDropped: 5 + 9 + 2*outputSize}, g.u.Stats())
			line.in <- []byte("in")
			synctest.Wait()
			require.Equal(t, byte('i'), g.in(regRBR), "input goes on")
			require.ErrorIs(t, stop(), broken)

			line = newHose()
			stop = serve(t, g.u, line)
			synctest.Wait()
			g.print("a new line\n")
			require.NoError(t, stop())
			require.Equal(t, "a new line\n", line.output())
		})
	})
	t.Run("read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGuest()
			line := newHose()
			line.readErr = broken
			close(line.in)
			stop := serve(t, g.u, line)
			synctest.Wait()
			g.print("output goes on\n")
			require.ErrorIs(t, stop(), broken)
			require.Equal(t, "output goes on\n", line.output())
		})
	})
	t.Run("close", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			line := newHose()
			line.closeErr = broken
			require.ErrorIs(t, serve(t, newGuest().u, line)(), broken)
		})
	})
}

// Input that the guest had no time for stays with the chip when the line goes.
func TestInputOutlivesItsLine(t *testing.T) {
	for _, text := range []string{"short", "more than fits into the FIFO"} {
		synctest.Test(t, func(t *testing.T) {
			d := driver{guest: newGuest()}
			line := newHose()
			stop := serve(t, d.u, line)
			line.in <- []byte(text)
			synctest.Wait()
			require.NoError(t, stop())

			d.open()
			requireLevel(t, d.guest, true)
			d.interrupt()
			require.Equal(t, text, string(d.received))
			stop = serve(t, d.u, newHose())
			synctest.Wait()
			requireLevel(t, d.guest, false)
			require.NoError(t, stop())
		})
	}
}

func TestServeOneLineAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest()
		stop := serve(t, g.u, newHose())
		synctest.Wait()
		second := newHose()
		require.ErrorIs(t, g.u.Serve(t.Context(), second), errAttached)
		<-second.closed
		require.NoError(t, stop())
	})
}

// Two vCPUs, a reset button, a break key and a line, all at once; the race detector watches.
func TestConcurrentAccess(t *testing.T) {
	g := newGuest()
	near, far := net.Pipe()
	stop := serve(t, g.u, near)
	var host sync.WaitGroup
	host.Go(func() { _, _ = io.Copy(io.Discard, far) })
	host.Go(func() { _, _ = io.Copy(far, bytes.NewReader(paste())) })

	var vcpus sync.WaitGroup
	for seed := range uint64(3) {
		vcpus.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 0))
			for i := range 20_000 {
				switch reg := rnd.Uint64N(Size); {
				case rnd.IntN(2) == 0:
					g.in(reg)
				case reg == regMCR: // mostly one that lets things move
					g.out(reg, mcrDTR|mcrRTS|mcrOut2)
				case reg == regLCR:
					g.out(reg, lcr8Bits)
				default:
					g.out(reg, byte(rnd.Uint32()))
				}
				if seed == 0 && i%1000 == 0 {
					g.u.Break()
					g.u.Stats()
				}
				if seed == 1 && i%5000 == 0 {
					g.u.Reset()
				}
			}
		})
	}
	vcpus.Wait()
	require.NoError(t, stop())
	require.NoError(t, far.Close())
	host.Wait()
	high, _ := g.irq.state()
	require.Equal(t, g.u.chip.interrupt(), high)
	require.Zero(t, g.u.Stats().IRQErrors, "SetLevel is called for changes only")
}
