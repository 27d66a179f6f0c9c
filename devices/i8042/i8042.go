// Package i8042 is the keyboard controller of a PC.
package i8042

import "vmm/devices"

// Where a PC has the controller's devices; each is one byte.
const (
	DataPort          = 0x60
	CommandPort       = 0x64
	SystemControlPort = 0x92
)

// Config describes a [Controller].
type Config struct {
	// OnReset is called when the guest pulses the processor's reset line: each time it does, on the vCPU that did, with
	// no lock held. It must not block. Nil for nothing.
	OnReset func()
}

// Controller is a keyboard controller with no keyboard.
type Controller struct {
	cfg Config
}

// New returns a controller as the firmware leaves it.
func New(cfg Config) *Controller { return &Controller{cfg: cfg} }

// Reset puts the controller back to the state of New.
func (c *Controller) Reset() {}

// Data returns the device at [DataPort].
func (c *Controller) Data() devices.Device { return nil }

// Command returns the device at [CommandPort].
func (c *Controller) Command() devices.Device { return nil }

// SystemControl returns the device at [SystemControlPort].
func (c *Controller) SystemControl() devices.Device { return nil }
