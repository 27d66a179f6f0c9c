// Package serial emulates a 16550A UART.
package serial

import (
	"context"
	"io"
	"time"

	"vmm/devices"
)

// Size is how many ports the chip occupies.
const Size = 8

// Config is what a UART is connected to.
type Config struct {
	// IRQ is the chip's interrupt line; nil where it is not wired, for a guest that polls.
	IRQ devices.IRQLine
	// DrainTimeout bounds how long [UART.Serve] goes on writing the guest's last output once its context has ended.
	// Zero is one second.
	DrainTimeout time.Duration
}

// Stats counts what the guest does not see. The counters only grow.
type Stats struct {
	OutputDropped uint64 // bytes that the guest sent and that reached no line
	IRQErrors     uint64 // calls of IRQLine.SetLevel that failed
}

// UART is the chip. It implements [devices.Device].
type UART struct{ cfg Config }

// New makes a chip with nothing attached to it.
func New(cfg Config) *UART { return &UART{cfg: cfg} }

// Read implements [devices.Device].
func (u *UART) Read(off uint64, p []byte) {}

// Write implements [devices.Device].
func (u *UART) Write(off uint64, p []byte) {}

// Reset is the chip's master reset.
func (u *UART) Reset() {}

// Break receives a line break.
func (u *UART) Break() {}

// Stats returns the counters.
func (u *UART) Stats() Stats { return Stats{} }

// Serve moves bytes between the chip and line until ctx ends, and closes line.
func (u *UART) Serve(ctx context.Context, line io.ReadWriteCloser) error {
	<-ctx.Done()
	return line.Close()
}
