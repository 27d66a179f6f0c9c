package serial

import (
	"bytes"
	"testing"
)

// FuzzUART drives the chip with random accesses of the guest and events of the line. After each, the interrupt line must
// be where the state wants it, nothing may have outgrown its bounds, and of the input, what the guest has not read (or
// thrown away) must be whole and in order.
func FuzzUART(f *testing.F) {
	f.Add([]byte{})
	// Linux opens the port, is sent a text, reads two characters, is reset, and opens it again.
	f.Add([]byte{
		0x60, 1, 0x30, 0, 3, 3, 4, 11, 1, 5, 2, 129, 0x20, 2, 0x30, 0, 0x08, 0, 0x0d, 0, 0x08, 0, 0x40, 0, 2, 129, 4, 11, 0x30, 0,
	})
	// Loopback, a break, a stalled transmitter.
	f.Add(append([]byte{0x60, 1, 2, 1, 4, 0x18, 0, 'x', 0x0d, 0, 4, 8, 0x50, 0, 1, 0x0f}, append(bytes.Repeat([]byte{0x10, 0xff}, 17), 0x0a, 0, 0x70, 0)...))
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newGuest()
		c := &g.u.chip
		spare := make([]byte, 0, outputSize)
		p := make([]byte, 8)
		next := byte(0)  // what comes from the line counts up
		reading := false // the reader is in its Read, where it goes when nothing is left to feed
		ops = ops[:min(len(ops), 256)]
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
				for range int(v) * 16 {
					g.out(reg, v)
				}
			case 2:
				if reading {
					chunk := make([]byte, int(v)*2)
					for i := range chunk {
						chunk[i] = next
						next++
					}
					c.queueInput(chunk)
					reading = !g.u.feed()
				}
			case 3:
				if c.attached {
					reading = !g.u.feed()
				}
			case 4:
				g.u.Reset()
			case 5:
				g.u.Break()
			case 6:
				if v&1 != 0 {
					g.u.attach()
				} else {
					g.u.detach()
					reading = false
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

			requireSound(t, g, next)
		}
	})
}

// requireSound checks all that holds between two accesses, where next is what the line would bring next. It uses plain
// comparisons, for the sake of the number of executions.
func requireSound(t *testing.T, g guest, next byte) {
	t.Helper()
	c := &g.u.chip
	for _, rule := range [...]struct {
		name string
		ok   bool
	}{
		{"the interrupt line is where the state wants it", c.interrupt() == g.irq.high},
		{"SetLevel is called for changes only", g.u.irqErrors == 0},
		{"the receiver holds what it has room for", c.rxLen <= c.rxDepth() && c.rxHead < fifoSize},
		{"the input is bounded", c.inputPos <= len(c.input) && len(c.input)-c.inputPos <= inputSize+fifoSize},
		{"the output is bounded", cap(c.output) == outputSize},
		{"a full transmitter has nothing to tell", !c.threPending || c.transmitterEmpty()},
		{"a break has its place", !c.breakQueued || c.inputPos <= c.breakAt && c.breakAt <= len(c.input)},
		{"no unknown bit is set", c.ier&^ierMask == 0 && c.mcr&^mcrMask == 0 && c.interruptID()&0xf0 == 0},
	} {
		if !rule.ok {
			t.Fatalf("broken: %s", rule.name)
		}
	}

	unread := c.input[c.inputPos:]
	for i, got := range unread {
		if want := next - byte(len(unread)-i); got != want {
			t.Fatalf("queued input byte %d of %d: %#x, want %#x", i, len(unread), got, want)
		}
	}
	next -= byte(len(unread))
	for i := c.rxLen - 1; i >= 0; i-- {
		if ch := c.rx[(c.rxHead+i)%fifoSize]; !ch.looped && !ch.isBreak {
			if next--; ch.data != next {
				t.Fatalf("FIFO byte %d of %d: %#x, want %#x", i, c.rxLen, ch.data, next)
			}
		}
	}
}
