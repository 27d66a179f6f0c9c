// Package power is the ACPI fixed hardware of a machine: the power button, the way into soft off, the power-management
// timer and the reset register, in one block of ports (ACPI 6.5 §4.8.3 and §4.8.4).
//
//	offset  size  register  access
//	0x0     2     PM1_STS   read, write one to clear: TMR, GBL, PWRBTN, SLPBTN, RTC, WAK
//	0x2     2     PM1_EN    read/write: TMR, GBL, PWRBTN, SLPBTN, RTC
//	0x4     2     PM1_CNT   SCI_EN reads as one; BM_RLD and SLP_TYP read/write; SLP_EN write-only
//	0x8     4     PM_TMR    read-only: 3.579545 MHz, 32 bits
//	0xC     1     RESET     writing ResetValue resets the machine; reads as zero
//
// The block bears accesses of any width and alignment. The bytes between the registers read as zero.
//
// Deviations:
//   - There is no SMI_CMD: the machine is in ACPI mode from the start, SCI_EN cannot be cleared, and GBL_RLS, which would
//     call the firmware, vanishes. So GBL_STS is never set; nor are BM_STS, SLPBTN_STS and RTC_STS, as there is no C3, no
//     sleep button and no sleeping state to wake from.
//   - S5 is the only sleeping state. A request for another one ends at once, as if the machine had woken: WAK_STS is set.
//   - The timer counts from the zero of Config.Now rather than from a random value.
package power

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"vmm/devices"
)

// The layout of the block: offsets and sizes in bytes, for the FADT.
const (
	EventOffset   = 0x0 // PM1a_EVT_BLK: PM1_STS, then PM1_EN
	EventSize     = 4
	ControlOffset = 0x4 // PM1a_CNT_BLK
	ControlSize   = 2
	TimerOffset   = 0x8 // PM_TMR_BLK
	TimerSize     = 4
	ResetOffset   = 0xc // RESET_REG, one byte wide
	BlockSize     = 0x10
)

const (
	// ResetValue is what the guest writes to the reset register: the FADT's RESET_VALUE.
	ResetValue = 0x01
	// SleepTypeS5 is the SLP_TYP of soft off: the first value in the package of the DSDT's \_S5.
	SleepTypeS5 = 5
	// TimerFrequency is the PM timer's, in Hz. The timer is 32 bits wide (the FADT's TMR_VAL_EXT).
	TimerFrequency = 3579545
)

const enableOffset = EventOffset + EventSize/2

// The bits of PM1_STS and, but for WAK, of PM1_EN (ACPI 6.5 §4.8.3.1).
const (
	eventTimer       = 1 << 0
	eventGlobal      = 1 << 5
	eventPowerButton = 1 << 8
	eventSleepButton = 1 << 9
	eventRTC         = 1 << 10
	statusWake       = 1 << 15

	enableWritable = eventTimer | eventGlobal | eventPowerButton | eventSleepButton | eventRTC
)

// The bits of PM1_CNT (ACPI 6.5 §4.8.3.2).
const (
	controlSCIEnable       = 1 << 0
	controlBusMasterReload = 1 << 1
	controlSleepType       = 7 << controlSleepTypeShift
	controlSleepTypeShift  = 10
	controlSleepEnable     = 1 << 13

	controlWritable = controlBusMasterReload | controlSleepType
)

// Config describes a [Controller].
type Config struct {
	// SCI is the system control interrupt, level-triggered; nil for none.
	SCI devices.IRQLine
	// OnPowerOff is called when the guest enters S5, OnReset when it writes to the reset register: each time it does,
	// on the vCPU that did, with no lock held. They must not block. Nil for nothing.
	OnPowerOff, OnReset func()
	// Now is the time that the PM timer counts. It must not go backwards. Nil for the time since New.
	Now func() time.Duration
}

// Controller is the whole block, a devices.Device of [BlockSize] bytes.
type Controller struct {
	cfg  Config
	wake chan struct{} // tells Serve that its next wake-up may have changed

	// mu guards state. It is held while the SCI is driven, so that its levels come in the order of their causes: it is
	// taken before any lock of the interrupt controller.
	mu    sync.Mutex
	state state
}

// state is all that changes in a Controller.
type state struct {
	status  uint16
	enable  uint16
	control uint16
	carries uint64 // changes of the timer's top bit that TMR_STS has been told of
	sci     bool   // the level of the SCI
}

// New returns a controller as it is when the machine starts.
func New(cfg Config) *Controller {
	if cfg.OnPowerOff == nil {
		cfg.OnPowerOff = func() {}
	}
	if cfg.OnReset == nil {
		cfg.OnReset = func() {}
	}
	if cfg.Now == nil {
		start := time.Now()
		cfg.Now = func() time.Duration { return time.Since(start) }
	}
	c := &Controller{cfg: cfg, wake: make(chan struct{}, 1)}
	c.state.carries = carries(c.ticks())
	return c
}

// PressPowerButton tells the guest that its user wants it to power off. Any goroutine may call it.
func (c *Controller) PressPowerButton() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.status |= eventPowerButton
	c.drive()
}

// Serve raises the SCI at the timer's carries, where the guest has enabled that, until ctx ends. Without it, a carry
// shows at the guest's next access.
func (c *Controller) Serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		if wait, ok := c.poll(); ok {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// poll takes note of a carry, and returns the time until the next one that the guest wants to hear of.
func (c *Controller) poll() (wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ticks := c.update()
	c.drive()
	if c.state.enable&eventTimer == 0 || c.state.status&eventTimer != 0 {
		return 0, false
	}
	left := int64((carries(ticks)+1)<<carryShift - ticks)
	// One tick more than the carry needs makes up for the divisions that round down.
	return time.Duration((left + 1) * int64(time.Second) / TimerFrequency), true
}

// Read implements devices.Device.
func (c *Controller) Read(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ticks := c.update()
	var b [BlockSize]byte
	binary.LittleEndian.PutUint16(b[EventOffset:], c.state.status)
	binary.LittleEndian.PutUint16(b[enableOffset:], c.state.enable)
	binary.LittleEndian.PutUint16(b[ControlOffset:], c.state.control|controlSCIEnable)
	binary.LittleEndian.PutUint32(b[TimerOffset:], uint32(ticks))
	copy(p, b[off:])
	c.drive()
}

// Write implements devices.Device.
func (c *Controller) Write(off uint64, p []byte) {
	c.mu.Lock()
	c.update()
	var call func()
	for i, v := range p {
		if f := c.writeByte(off+uint64(i), v); f != nil {
			call = f
		}
	}
	c.drive()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	if call != nil {
		call()
	}
}

// writeByte stores one byte and returns the callback that the write asks for, or nil. No action of the hardware hangs
// on more than one byte, so an access of any width is the same as its bytes one after the other.
func (c *Controller) writeByte(off uint64, v byte) (call func()) {
	s := &c.state
	switch off {
	case EventOffset, EventOffset + 1:
		s.status &^= uint16(v) << (8 * (off - EventOffset))
	case enableOffset:
		s.enable = s.enable&0xff00 | uint16(v)&enableWritable
	case enableOffset + 1:
		s.enable = s.enable&0x00ff | uint16(v)<<8&enableWritable
	case ControlOffset:
		s.control = s.control&0xff00 | uint16(v)&controlWritable
	case ControlOffset + 1:
		s.control = s.control&0x00ff | uint16(v)<<8&controlWritable
		if uint16(v)<<8&controlSleepEnable == 0 {
			return nil
		}
		if s.control&controlSleepType>>controlSleepTypeShift == SleepTypeS5 {
			return c.cfg.OnPowerOff
		}
		s.status |= statusWake
	case ResetOffset:
		if v == ResetValue {
			return c.cfg.OnReset
		}
	}
	return nil
}

// update takes note of a carry since the last call, and returns the timer's count, in 64 bits.
func (c *Controller) update() uint64 {
	ticks := c.ticks()
	if n := carries(ticks); n != c.state.carries {
		c.state.carries = n
		c.state.status |= eventTimer
	}
	return ticks
}

// drive sets the SCI to what the registers ask for.
func (c *Controller) drive() {
	level := c.state.status&c.state.enable&enableWritable != 0
	if level == c.state.sci || c.cfg.SCI == nil {
		return
	}
	c.state.sci = level
	// A line fails only once the machine is being torn down, when no guest is left to miss it.
	_ = c.cfg.SCI.SetLevel(level)
}

// ticks returns the timer's count, in 64 bits.
func (c *Controller) ticks() uint64 {
	now := c.cfg.Now()
	whole, rest := uint64(now/time.Second), uint64(now%time.Second)
	return whole*TimerFrequency + rest*TimerFrequency/uint64(time.Second)
}

// carryShift is the place of the timer's top bit, each change of which sets TMR_STS (ACPI 6.5 §4.8.3.3).
const carryShift = 31

// carries returns how often the top bit has changed by the time of ticks.
func carries(ticks uint64) uint64 { return ticks >> carryShift }
