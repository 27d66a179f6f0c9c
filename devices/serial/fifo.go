package serial

import "slices"

// The receiver: from the line through input into the FIFO, and from there to the guest.

// rxDepth is how many characters the receiver holds.
func (c *chip) rxDepth() int {
	if c.fifosEnabled() {
		return fifoSize
	}
	return 1
}

// rxTrigger is how many characters in the receiver make a received data interrupt (PC16550D §8.5).
func (c *chip) rxTrigger() int {
	if c.fifosEnabled() {
		return [...]int{1, 4, 8, 14}[c.fcr>>fcrTriggerShift]
	}
	return 1
}

// receive puts a character into the receiver. Where there is no room, the FIFO keeps what it has and the holding
// register takes the new one; both tell an overrun (PC16550D §8.4).
func (c *chip) receive(ch rxChar) {
	switch {
	case c.rxLen < c.rxDepth():
		c.rx[(c.rxHead+c.rxLen)%fifoSize] = ch
		c.rxLen++
	case c.fifosEnabled():
		c.lineErrors |= lsrOE
		return
	default:
		c.lineErrors |= lsrOE
		c.rx[c.rxHead] = ch
	}
	if c.rxLen == 1 {
		c.showTop()
	}
}

// readRBR takes the character at the top; there is a zero where there is none.
func (c *chip) readRBR() byte {
	if c.rxLen == 0 {
		return 0
	}
	ch := c.rx[c.rxHead]
	c.rxHead = (c.rxHead + 1) % fifoSize
	c.rxLen--
	if c.rxLen > 0 {
		c.showTop()
	}
	return ch.data
}

// showTop makes LSR tell of the character that has come to the top (PC16550D §8.4).
func (c *chip) showTop() {
	if c.rx[c.rxHead].isBreak {
		c.lineErrors |= lsrBI
	}
}

// breakInFIFO reports whether a break waits in the FIFO below the top, of which LSR.BI tells.
func (c *chip) breakInFIFO() bool {
	for i := 1; i < c.rxLen; i++ {
		if c.rx[(c.rxHead+i)%fifoSize].isBreak {
			return true
		}
	}
	return false
}

// queueInput adds what was read from the line.
func (c *chip) queueInput(p []byte) {
	c.breakAt -= c.inputPos
	c.input = append(slices.Delete(c.input, 0, c.inputPos), p...)
	c.inputPos = 0
}

// queueBreak adds a break after the input that is queued.
func (c *chip) queueBreak() {
	if c.mcr&mcrLoop == 0 {
		c.breakQueued, c.breakAt = true, len(c.input)
	}
}

// inputQueued reports whether anything waits for the FIFO.
func (c *chip) inputQueued() bool { return c.inputPos < len(c.input) || c.breakQueued }

// wantsInput reports whether it is time for [chip.fill]. That is when the FIFO has run empty, rather than when it has
// room: the guest's interrupt handler must see an end of its work, and it costs one wake-up for sixteen characters.
func (c *chip) wantsInput() bool { return c.rxLen == 0 && c.mayReceive() }

// fill moves queued input into the FIFO, as much as fits.
func (c *chip) fill() {
	for c.rxLen < c.rxDepth() && c.mayReceive() {
		if c.atBreak() {
			c.breakQueued = false
			c.receive(rxChar{isBreak: true})
			continue
		}
		c.receive(rxChar{data: c.input[c.inputPos]})
		c.inputPos++
	}
}

// atBreak reports whether the break is what comes next.
func (c *chip) atBreak() bool { return c.breakQueued && c.breakAt == c.inputPos }

// mayReceive reports whether the next thing in the queue, if there is any, may come in now. A break does not wait for
// RTS: it is no data, and the far end can send it at any time.
func (c *chip) mayReceive() bool {
	switch {
	case !c.inputQueued() || c.mcr&mcrLoop != 0:
		return false
	case c.atBreak() || c.mcr&mcrRTS != 0 || c.polls == pollsToReceive:
		return true
	}
	// All three, since Linux enables each of the first two alone, or both, before it clears the FIFOs for the last time.
	return !c.usesRTS && c.ier&ierRDI != 0 && c.mcr&mcrOut2 != 0 && c.fifosEnabled()
}

// The transmitter: from the guest into output, and from there to the line.

// writeTHR sends a character. The transmitter is empty again at once, which is a THRE interrupt of its own.
func (c *chip) writeTHR(v byte) {
	if c.mcr&mcrLoop != 0 {
		c.receive(rxChar{data: v, looped: true})
	} else {
		c.send(v)
	}
	c.threPending = c.transmitterEmpty()
}

func (c *chip) send(v byte) {
	if c.lineFailed || len(c.output) == outputSize {
		c.outputDropped++
		return
	}
	c.output = append(c.output, v)
	if v == '\n' || !c.transmitterEmpty() {
		c.flush = true
	}
}

// transmitterEmpty is LSR's THRE and TEMT: that there is room for all that a driver may then send without looking
// again. Where nobody will make room, the guest does not wait for it either.
func (c *chip) transmitterEmpty() bool {
	return !c.attached || outputSize-len(c.output) >= fifoSize
}

// takeOutput empties output into the hands of the caller, who gives an empty buffer of outputSize in exchange.
func (c *chip) takeOutput(empty []byte) []byte {
	out := c.output
	c.changeLine(func() { c.output = empty })
	return out
}

// attach connects the line, or disconnects it.
func (c *chip) attach(attached bool) {
	c.changeLine(func() { c.attached, c.lineFailed = attached, false })
	c.updateModemStatus()
}

// failLine drops the output, and what will come, after a write that has lost n bytes.
func (c *chip) failLine(n int) {
	c.outputDropped += uint64(n + len(c.output))
	c.changeLine(func() { c.output, c.lineFailed = c.output[:0], true })
}

// changeLine makes a change that may let a stalled transmitter run empty.
func (c *chip) changeLine(change func()) {
	stalled := !c.transmitterEmpty()
	change()
	if stalled && c.transmitterEmpty() {
		c.threPending = true
	}
}
