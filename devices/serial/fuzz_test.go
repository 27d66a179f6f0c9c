package serial

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzUART drives the chip with random accesses of the guest and events of the line. After each, the interrupt line must
// be where the state wants it, nothing may have outgrown its bounds, and of the input, what the guest has not read (or
// thrown away) must be whole and in order.
func FuzzUART(f *testing.F) {
	f.Add([]byte{})
	// Linux opens the port, is sent a text, reads two characters, is reset, and opens it again.
	f.Add([]byte{
		3, 3, 4, 11, 1, 5, 2, 129, 0x20, 2, 0x30, 0, 0x08, 0, 0x0d, 0, 0x08, 0, 0x40, 0, 2, 129, 4, 11, 0x30, 0,
	})
	// Loopback, a break, a stalled transmitter.
	f.Add([]byte{0x60, 1, 2, 1, 4, 0x18, 0, 'x', 0x0d, 0, 4, 8, 0x50, 0, 1, 0x0f, 0x10, 0xff, 0x10, 0xff, 0x10, 0xff, 0x10, 0xff,
		0x10, 0xff, 0x10, 0xff, 0x10, 0xff, 0x10, 0xff, 0x10, 0xff, 0x0a, 0, 0x70, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newGuest()
		c := &g.u.chip
		spare := make([]byte, 0, outputSize)
		p := make([]byte, 8)
		next := byte(0) // what comes from the line counts up
		ops = ops[:min(len(ops), 512)]
		for ; len(ops) >= 2; ops = ops[2:] {
			op, v := ops[0], ops[1]
			reg := uint64(op & 7)
			switch op >> 4 {
			case 0: // a byte
				if op&8 != 0 {
					g.in(reg)
				} else {
					g.out(reg, v)
				}
			case 1: // many bytes to one register
				for range int(v) * 32 {
					g.out(reg, v)
				}
			case 2: // the reader has read, as it does when nothing waits
				if !g.u.feeding {
					chunk := make([]byte, int(v)*16)
					for i := range chunk {
						chunk[i] = next
						next++
					}
					c.queueInput(chunk)
					g.u.feed()
				}
			case 3:
				g.u.feed()
			case 4:
				g.u.Reset()
			case 5:
				g.u.Break()
			case 6:
				if v&1 != 0 {
					g.u.attach()
				} else {
					g.u.detach()
				}
			case 7: // the writer
				spare = g.u.takeOutput(spare)[:0]
			case 8:
				g.u.failLine(int(v))
			default: // an access of 2, 4 or 8 bytes that stays inside
				n := uint64(2) << (op >> 4 % 3)
				reg %= Size - n + 1
				for i := range p[:n] {
					p[i] = v
				}
				if op&8 != 0 {
					g.u.Read(reg, p[:n])
				} else {
					g.u.Write(reg, p[:n])
				}
			}

			high, _ := g.irq.state()
			require.Equal(t, c.interrupt(), high, "interrupt line")
			require.Zero(t, g.u.irqErrors, "SetLevel without a change")
			require.LessOrEqual(t, c.rxLen, c.rxDepth())
			require.Less(t, c.rxHead, fifoSize)
			require.LessOrEqual(t, c.inputPos, len(c.input))
			require.LessOrEqual(t, len(c.input)-c.inputPos, inputSize+fifoSize)
			require.Equal(t, outputSize, cap(c.output), "the output never moves")
			require.False(t, c.threPending && !c.transmitterEmpty(), "a full transmitter has nothing to tell")
			if c.breakQueued {
				require.LessOrEqual(t, c.inputPos, c.breakAt)
				require.LessOrEqual(t, c.breakAt, len(c.input))
			}
			requireTail(t, c, next)
			lsr, mcr := g.in(regLSR), g.in(regMCR)
			require.Equal(t, c.rxLen > 0, lsr&lsrDR != 0)
			require.Zero(t, mcr&^mcrMask)
		}
	})
}

// requireTail checks that the input inside the chip is the end of what came, which counted up to next.
func requireTail(t *testing.T, c *chip, next byte) {
	t.Helper()
	var inside []byte
	for i := range c.rxLen {
		if ch := c.rx[(c.rxHead+i)%fifoSize]; !ch.looped && !ch.isBreak {
			inside = append(inside, ch.data)
		}
	}
	inside = append(inside, c.input[c.inputPos:]...)
	for i, got := range inside {
		if want := next - byte(len(inside)-i); got != want {
			t.Fatalf("input byte %d of %d: %#x, want %#x", i, len(inside), got, want)
		}
	}
}
