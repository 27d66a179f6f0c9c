package serial

import "slices"

// Register offsets (PC16550D table II). Two registers share an offset where one is only read and the other only written.
const (
	regRBR = 0 // read; THR when written, DLL while LCR.DLAB is set
	regTHR = 0
	regIER = 1 // DLM while LCR.DLAB is set
	regIIR = 2 // read
	regFCR = 2 // write
	regLCR = 3
	regMCR = 4
	regLSR = 5
	regMSR = 6
	regSCR = 7
)

// Interrupt enable register, PC16550D §8.7.
const (
	ierRDI  = 0x01 // received data available, and character timeout
	ierTHRI = 0x02 // transmitter holding register empty
	ierRLSI = 0x04 // receiver line status
	ierMSI  = 0x08 // modem status
	ierMask = 0x0f // the other bits read as zero
)

// Interrupt identification register, PC16550D §8.6 and table IV.
const (
	iirModemStatus = 0x00
	iirNone        = 0x01
	iirTHREmpty    = 0x02
	iirData        = 0x04
	iirLineStatus  = 0x06
	iirTimeout     = 0x0c
	iirFIFOs       = 0xc0 // the FIFOs are enabled, and work: the mark of a 16550A
)

// FIFO control register, PC16550D §8.5.
const (
	fcrEnable       = 0x01
	fcrClearRx      = 0x02
	fcrTriggerShift = 6
)

const lcrDLAB = 0x80 // line control register, PC16550D §8.1: offsets 0 and 1 are the divisor latch

// Modem control register, PC16550D §8.8.
const (
	mcrDTR  = 0x01
	mcrRTS  = 0x02
	mcrOut1 = 0x04
	mcrOut2 = 0x08 // gates the interrupt line in a PC
	mcrLoop = 0x10
	mcrMask = 0x1f // the other bits read as zero
)

// Line status register, PC16550D §8.4. The chip's PE and FE do not occur here.
const (
	lsrDR        = 0x01
	lsrOE        = 0x02
	lsrBI        = 0x10
	lsrTHRE      = 0x20
	lsrTEMT      = 0x40
	lsrFIFOError = 0x80
)

// Modem status register, PC16550D §8.9. The low four bits tell which of the high four have changed.
const (
	msrTERI   = 0x04 // RI has gone from on to off; its other edge is not told
	msrDeltas = 0x0f
	msrCTS    = 0x10
	msrDSR    = 0x20
	msrRI     = 0x40
	msrDCD    = 0x80
)

const (
	fifoSize   = 16
	outputSize = 64 << 10
	// pollsToReceive is how often in a row a guest must read LSR, with nothing but input to wait for, until it counts
	// as one that polls for input. Linux and FreeBSD read it a few times in a row when they wait for the transmitter.
	pollsToReceive = 16
)

// rxChar is a character in the receiver FIFO.
type rxChar struct {
	data    byte
	isBreak bool // a break: data is zero, and LSR.BI tells it apart when the character comes to the FIFO's top
	looped  bool // sent by the guest itself, in loopback
}

// registers is what a master reset clears.
type registers struct {
	ier, fcr, lcr, mcr, msr, scr byte
	divisor                      uint16

	lineErrors  byte // LSR's OE and BI; reading LSR clears them
	threPending bool // the transmitter has become empty (or its interrupt was enabled when it was) and IIR has not told yet

	rx            [fifoSize]rxChar // a ring; without FIFOs only one character deep
	rxHead, rxLen int

	usesRTS bool // the guest has raised RTS since the reset, so RTS means what it says
	polls   int  // reads of LSR in a row that found nothing to do; stays at pollsToReceive once it is there

	breakQueued bool
	breakAt     int // index into input that the queued break comes before
}

// chip is all the state of the UART that the guest can change or see. It knows nothing of time, locks or the line.
type chip struct {
	registers

	// input came from the line and waits for room in the receiver FIFO, from inputPos on. It is bounded by the reader,
	// which adds a chunk only when what was there is gone: a chunk, and a FIFO's content that a reset has put back.
	input    []byte
	inputPos int

	output        []byte // sent by the guest and not yet taken for the line; at most outputSize
	outputDropped uint64
	flush         bool // output shall go to the line without waiting for more

	attached   bool // a line is there
	lineFailed bool // but a write to it has failed
}

// reset is the master reset, PC16550D table I.
func (c *chip) reset() {
	unread := make([]byte, 0, c.rxLen)
	for i := range c.rxLen {
		if ch := c.rx[(c.rxHead+i)%fifoSize]; !ch.isBreak && !ch.looped {
			unread = append(unread, ch.data)
		}
	}
	c.input = slices.Concat(unread, c.input[c.inputPos:])
	c.inputPos = 0
	c.registers = registers{divisor: 1}
	c.updateModemStatus()
	c.msr &^= msrDeltas
}

func (c *chip) read(reg uint64) byte {
	if reg != regLSR {
		c.noPoll()
	}
	switch {
	case reg == regRBR && c.lcr&lcrDLAB != 0:
		return byte(c.divisor)
	case reg == regIER && c.lcr&lcrDLAB != 0:
		return byte(c.divisor >> 8)
	}
	switch reg {
	case regRBR:
		return c.readRBR()
	case regIER:
		return c.ier
	case regIIR:
		return c.readIIR()
	case regLCR:
		return c.lcr
	case regMCR:
		return c.mcr
	case regLSR:
		return c.readLSR()
	case regMSR:
		v := c.msr
		c.msr &^= msrDeltas
		return v
	case regSCR:
		return c.scr
	}
	return 0xff // outside the chip; a bus does not let it come here
}

func (c *chip) write(reg uint64, v byte) {
	c.noPoll()
	switch {
	case reg == regTHR && c.lcr&lcrDLAB != 0:
		c.divisor = c.divisor&0xff00 | uint16(v)
		return
	case reg == regIER && c.lcr&lcrDLAB != 0:
		c.divisor = c.divisor&0x00ff | uint16(v)<<8
		return
	}
	switch reg {
	case regTHR:
		c.writeTHR(v)
	case regIER:
		c.writeIER(v)
	case regFCR:
		c.writeFCR(v)
	case regLCR:
		c.lcr = v
	case regMCR:
		c.writeMCR(v)
	case regSCR:
		c.scr = v
	}
}

// interrupt reports whether the interrupt line is high. OUT2 drives the gate between the chip's INTR pin and the bus in
// a PC; loopback forces the pin OUT2 off (PC16550D §8.8), whatever the register's bit says.
func (c *chip) interrupt() bool {
	return c.mcr&(mcrOut2|mcrLoop) == mcrOut2 && c.interruptID() != iirNone
}

// interruptID returns the cause with the highest priority (PC16550D table IV).
func (c *chip) interruptID() byte {
	switch {
	case c.ier&ierRLSI != 0 && c.lineErrors != 0:
		return iirLineStatus
	case c.ier&ierRDI != 0 && c.rxLen >= c.rxTrigger():
		return iirData
	case c.ier&ierRDI != 0 && c.rxLen > 0:
		return iirTimeout
	case c.ier&ierTHRI != 0 && c.threPending:
		return iirTHREmpty
	case c.ier&ierMSI != 0 && c.msr&msrDeltas != 0:
		return iirModemStatus
	}
	return iirNone
}

// readIIR tells the cause and, where it is the empty transmitter, takes it as told.
func (c *chip) readIIR() byte {
	id := c.interruptID()
	if id == iirTHREmpty {
		c.threPending = false
	}
	if c.fifosEnabled() {
		id |= iirFIFOs
	}
	return id
}

// writeIER raises the THRE interrupt anew when it gets enabled while the transmitter is empty, told before or not: that
// is how drivers start to send, and what Linux tests for when it opens the port.
func (c *chip) writeIER(v byte) {
	enabled, disabled := v&^c.ier, c.ier&^v
	c.ier = v & ierMask
	if enabled&ierTHRI != 0 {
		c.threPending = c.transmitterEmpty()
	}
	if disabled&ierTHRI != 0 && len(c.output) > 0 {
		c.flush = true
	}
}

// writeFCR follows PC16550D §8.5: enabling and disabling both clear the FIFOs. Clearing the transmitter's (bit 2) finds
// it empty always. The register's other bits count only when bit 0 is set.
func (c *chip) writeFCR(v byte) {
	if (v^c.fcr)&fcrEnable != 0 || v&(fcrEnable|fcrClearRx) == fcrEnable|fcrClearRx {
		c.rxHead, c.rxLen = 0, 0
	}
	c.fcr = v
}

func (c *chip) writeMCR(v byte) {
	c.mcr = v & mcrMask
	if c.mcr&(mcrRTS|mcrLoop) == mcrRTS {
		c.usesRTS = true
	}
	c.polls = 0 // from here on the guest's RTS is what counts, until it polls again
	c.updateModemStatus()
}

// updateModemStatus brings MSR up to date with its inputs, which are the line's or, in loopback, the MCR's outputs
// (PC16550D §8.8).
func (c *chip) updateModemStatus() {
	var in byte
	switch {
	case c.mcr&mcrLoop != 0:
		for _, wire := range [...]struct{ out, in byte }{
			{mcrDTR, msrDSR}, {mcrRTS, msrCTS}, {mcrOut1, msrRI}, {mcrOut2, msrDCD},
		} {
			if c.mcr&wire.out != 0 {
				in |= wire.in
			}
		}
	case c.attached:
		in = msrCTS | msrDSR | msrDCD
	}
	deltas := (c.msr ^ in) >> 4
	if in&msrRI != 0 {
		deltas &^= msrTERI
	}
	c.msr = in | c.msr&msrDeltas | deltas
}

func (c *chip) readLSR() byte {
	v := c.lineErrors
	if c.rxLen > 0 {
		v |= lsrDR
	}
	if c.transmitterEmpty() {
		v |= lsrTHRE | lsrTEMT
	}
	if c.fifosEnabled() && (c.lineErrors&lsrBI != 0 || c.breakInFIFO()) {
		v |= lsrFIFOError
	}
	c.lineErrors = 0
	switch {
	case v&^(lsrTHRE|lsrTEMT) != 0 || v&lsrTHRE == 0:
		c.noPoll()
	case c.polls < pollsToReceive:
		c.polls++
	}
	return v
}

// noPoll notes an access that is no poll for input.
func (c *chip) noPoll() {
	if c.polls < pollsToReceive {
		c.polls = 0
	}
}

func (c *chip) fifosEnabled() bool { return c.fcr&fcrEnable != 0 }
