// Package machine assembles a virtual machine.
package machine

import (
	"context"
	"errors"
)

// DefaultCmdline is placeholder-free: see below.
const DefaultCmdline = "console=ttyS0"

// Reason says why a machine stopped.
type Reason int

// The reasons of an [Exit].
const (
	// PowerOff: the guest powered itself off.
	PowerOff Reason = iota + 1
	// Reset: the guest reset itself; Exit.Source says by what means.
	Reset
	// DebugExit: the guest wrote to the debug-exit port; Exit.Code is what it wrote.
	DebugExit
	// Stopped: the context ended.
	Stopped
)

// Exit is how a machine ended, where it ended as it should.
type Exit struct {
	Reason Reason
	Source string // for Reset and PowerOff: "triple fault", "keyboard controller", "ACPI reset register", ...
	Code   uint32 // for DebugExit
}

// Machine is a virtual machine.
type Machine struct{}

// New builds a machine; user mistakes are *ConfigError.
func New(cfg Config) (*Machine, error) { return nil, errors.ErrUnsupported }

// Run runs the guest until it ends; an error is an *InternalError, *EntryError and the like.
func (m *Machine) Run(ctx context.Context) (Exit, error) { return Exit{}, nil }

// PowerButton presses the ACPI power button.
func (m *Machine) PowerButton() error { return nil }

// SendBreak sends a break condition to COM1.
func (m *Machine) SendBreak() {}

// Close releases everything. Idempotent.
func (m *Machine) Close() error { return nil }

// ConfigError reports a field of Config that New refuses.
type ConfigError struct {
	Field string // "Memory", "CPUs", "Kernel", "Initrd", "Cmdline"
	Err   error
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }
