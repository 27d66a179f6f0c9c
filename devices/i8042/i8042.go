// Package i8042 is the keyboard controller of a PC, of which a machine without a keyboard needs one thing, the line to
// the processor's reset, and a second one, not to look broken to a guest that probes it (IBM PC/AT Technical Reference,
// "Keyboard Controller"; Intel 8042).
//
//	port  device         read               write
//	0x60  Data           output buffer      parameter of a command, or a byte for the keyboard
//	0x64  Command        status register    command
//	0x92  SystemControl  bit 1: A20         bit 0: pulse the reset line, bit 1: A20 (PS/2 system control port A)
//
// Port 0x61, between the first two, belongs to the speaker and so to the timer. The status register:
//
//	bit 0  OBF     the output buffer holds a byte that was not read yet
//	bit 1  IBF     the input buffer is full: never, every byte is dealt with as it is written
//	bit 2  SYS     the self-test has passed; follows bit 2 of the command byte
//	bit 3  A2      the last write went to port 0x64
//	bit 4  INH     the keyboard is not locked: always
//	bit 6  TIMEOUT the keyboard did not answer; the output buffer holds 0xFE
//
// The commands; others vanish:
//
//	0x20-0x3F  read byte n of the RAM; byte 0 is the command byte
//	0x60-0x7F  write byte n of the RAM with the parameter
//	0xA9       test the auxiliary interface: 0x01, clock line stuck
//	0xAA       self-test: 0x55, passed
//	0xAB       test the keyboard interface: 0x00, no error
//	0xAD 0xAE  disable, enable the keyboard: bit 4 of the command byte
//	0xC0       read the input port: 0x80, not locked
//	0xD0 0xD1  read, write the output port: bit 0 is the reset line (active low), bit 1 is A20
//	0xD2 0xD3  put the parameter into the output buffer
//	0xDD 0xDF  clear, set A20
//	0xE0       read the test inputs: 0x00
//	0xF0-0xFF  pulse low those of the output port's low 4 lines whose bit is clear: 0xFE resets the processor
//
// Deviations:
//   - No keyboard is attached: a byte for it gets a timeout. There is no mouse port, and a driver need not wait to learn it:
//     0xA9 finds the port stuck, and what 0xD3 puts into the output buffer is not marked as the mouse's.
//   - There are no interrupts 1 and 12: a driver must poll for the answers to its commands, as they all do.
//   - A20 reads back as it was written and masks nothing. It starts set.
package i8042

import (
	"sync"

	"vmm/devices"
)

// Where a PC has the controller's devices; each is one byte.
const (
	DataPort          = 0x60
	CommandPort       = 0x64
	SystemControlPort = 0x92
)

// The bits of the status register.
const (
	statusOutputFull = 1 << 0
	statusSystem     = 1 << 2
	statusCommand    = 1 << 3
	statusNotLocked  = 1 << 4
	statusTimeout    = 1 << 6
)

// The bits of the command byte.
const (
	commandInterrupt       = 1 << 0
	commandSystem          = 1 << 2
	commandDisableKeyboard = 1 << 4
	commandTranslate       = 1 << 6
)

// The bits of the output port.
const (
	outputNotReset   = 1 << 0
	outputA20        = 1 << 1
	outputBufferFull = 1 << 4 // wired to interrupt 1
)

// The bits of the system control port.
const (
	systemReset = 1 << 0
	systemA20   = 1 << 1
)

// keyboardTimeout is what the output buffer holds where the keyboard does not answer.
const keyboardTimeout = 0xfe

// Config describes a [Controller].
type Config struct {
	// OnReset is called when the guest pulses the processor's reset line: each time it does, on the vCPU that did, with
	// no lock held. It must not block. Nil for nothing.
	OnReset func()
}

// Controller is a keyboard controller with no keyboard.
type Controller struct {
	cfg Config

	mu    sync.Mutex // guards state; not held while OnReset runs
	state state
}

// state is all that changes in a Controller.
type state struct {
	status  byte     // without statusSystem, which is in the command byte
	output  byte     // the output buffer
	port    byte     // the output port, without outputBufferFull, which is in status
	pending byte     // the command that waits for its parameter, zero for none
	ram     [32]byte // byte 0 is the command byte
}

// New returns a controller as the firmware leaves it.
func New(cfg Config) *Controller {
	if cfg.OnReset == nil {
		cfg.OnReset = func() {}
	}
	c := &Controller{cfg: cfg, state: state{status: statusNotLocked, port: outputNotReset | outputA20}}
	c.state.ram[0] = commandTranslate | commandSystem | commandInterrupt
	return c
}

// Data returns the device at [DataPort].
func (c *Controller) Data() devices.Device { return data{c} }

// Command returns the device at [CommandPort].
func (c *Controller) Command() devices.Device { return command{c} }

// SystemControl returns the device at [SystemControlPort].
func (c *Controller) SystemControl() devices.Device { return systemControl{c} }

type data struct{ c *Controller }

func (d data) Read(_ uint64, p []byte) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	s := &d.c.state
	s.status &^= statusOutputFull | statusTimeout
	p[0] = s.output
}

func (d data) Write(_ uint64, p []byte) {
	d.c.mu.Lock()
	reset := d.c.state.parameter(p[0])
	d.c.mu.Unlock()
	if reset {
		d.c.cfg.OnReset()
	}
}

type command struct{ c *Controller }

func (d command) Read(_ uint64, p []byte) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	s := &d.c.state
	p[0] = s.status
	if s.ram[0]&commandSystem != 0 {
		p[0] |= statusSystem
	}
}

func (d command) Write(_ uint64, p []byte) {
	d.c.mu.Lock()
	reset := d.c.state.command(p[0])
	d.c.mu.Unlock()
	if reset {
		d.c.cfg.OnReset()
	}
}

type systemControl struct{ c *Controller }

func (d systemControl) Read(_ uint64, p []byte) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	p[0] = 0
	if d.c.state.port&outputA20 != 0 {
		p[0] |= systemA20
	}
}

func (d systemControl) Write(_ uint64, p []byte) {
	d.c.mu.Lock()
	d.c.state.setA20(p[0]&systemA20 != 0)
	d.c.mu.Unlock()
	if p[0]&systemReset != 0 {
		d.c.cfg.OnReset()
	}
}

// command carries out a write to port 0x64 and reports whether it resets the processor.
func (s *state) command(v byte) (reset bool) {
	s.status |= statusCommand
	s.pending = 0
	switch {
	case v >= 0x20 && v <= 0x3f:
		s.answer(s.ram[v&0x1f])
	case v >= 0x60 && v <= 0x7f, v == 0xd1, v == 0xd2, v == 0xd3:
		s.pending = v
	case v == 0xa9:
		s.answer(0x01)
	case v == 0xaa:
		s.ram[0] |= commandSystem
		s.answer(0x55)
	case v == 0xab:
		s.answer(0x00)
	case v == 0xad:
		s.ram[0] |= commandDisableKeyboard
	case v == 0xae:
		s.ram[0] &^= commandDisableKeyboard
	case v == 0xc0:
		s.answer(0x80)
	case v == 0xd0:
		s.answer(s.outputPort())
	case v == 0xdd:
		s.setA20(false)
	case v == 0xdf:
		s.setA20(true)
	case v == 0xe0:
		s.answer(0x00)
	case v >= 0xf0:
		return v&outputNotReset == 0
	}
	return false
}

// parameter carries out a write to port 0x60 and reports whether it resets the processor.
func (s *state) parameter(v byte) (reset bool) {
	s.status &^= statusCommand
	pending := s.pending
	s.pending = 0
	switch pending {
	case 0:
		s.answer(keyboardTimeout)
		s.status |= statusTimeout
	case 0xd1:
		s.port = v &^ outputBufferFull
		return v&outputNotReset == 0
	case 0xd2, 0xd3:
		s.answer(v)
	default: // 0x60 to 0x7F
		s.ram[pending&0x1f] = v
	}
	return false
}

// answer puts v into the output buffer, over what the guest left there.
func (s *state) answer(v byte) {
	s.output = v
	s.status |= statusOutputFull
	s.status &^= statusTimeout
}

func (s *state) outputPort() byte {
	if s.status&statusOutputFull != 0 {
		return s.port | outputBufferFull
	}
	return s.port
}

func (s *state) setA20(on bool) {
	if on {
		s.port |= outputA20
	} else {
		s.port &^= outputA20
	}
}
