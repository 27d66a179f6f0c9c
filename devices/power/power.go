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

// New returns a controller as it is after a reset.
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
	return &Controller{cfg: cfg, wake: make(chan struct{}, 1)}
}

// PressPowerButton tells the guest that its user wants it to power off. Any goroutine may call it.
func (c *Controller) PressPowerButton() {}

// Reset puts the registers back to what they are when the machine starts. The timer runs on.
func (c *Controller) Reset() {}

// Serve raises the SCI at the timer's carries, where the guest has enabled that, until ctx ends; then it returns nil.
// Without it, a carry shows at the guest's next access.
func (c *Controller) Serve(ctx context.Context) error { <-ctx.Done(); return nil }

// Read implements devices.Device.
func (c *Controller) Read(off uint64, p []byte) {}

// Write implements devices.Device.
func (c *Controller) Write(off uint64, p []byte) {}
