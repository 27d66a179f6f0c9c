package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// FunctionConfig is the identity of a function.
type FunctionConfig struct {
	VendorID, DeviceID             uint16
	Class                          uint32 // base class, subclass and programming interface, in 24 bits
	Revision                       uint8
	SubsystemVendorID, SubsystemID uint16
	InterruptPin                   uint8 // 1 for INTA# to 4 for INTD#; zero for none
	InterruptLine                  uint8 // what firmware would have written there

	// OnCommand, if set, is called with the command register after the guest or a reset has changed it, under the
	// conditions of a hook (see [Capability]).
	OnCommand func(command uint16)
}

// Function is one PCI function: its configuration space and its BARs. Build it with [NewFunction], [Function.AddBAR] and
// [Function.AddCapability], from one goroutine; [Root.Add] puts it on the bus, and its shape is fixed from then on.
type Function struct {
	writable [spaceSize]byte // bits that a guest can change
	w1c      [spaceSize]byte // bits that a guest clears by writing one
	bars     [numBARs]*BAR   // by index; nil where there is none, and for the upper half of a 64-bit BAR
	lastCap  int             // offset of the last capability; zero before the first
	nextCap  int             // offset of the next one
	attached bool            // is on a bus

	capabilities []capability // those with hooks
	onCommand    func(command uint16)
	onReset      func()
	initial      [spaceSize]byte // the registers when the function came on its bus

	interrupt atomic.Bool // the interrupt status bit, which belongs to the function's owner
	state     state
}

// state is all of a function that changes while the guest runs.
type state struct {
	regs   [spaceSize]byte
	mapped [numBARs]mapping

	resetting bool // inside the write that asks for a reset
}

// NewFunction returns a function without BARs and capabilities.
func NewFunction(cfg FunctionConfig) (*Function, error) {
	switch {
	case cfg.VendorID == 0xffff:
		return nil, errors.New("pci function: vendor ID 0xffff means that there is none")
	case cfg.Class > 0xffffff:
		return nil, fmt.Errorf("pci function: class %#x: more than 24 bits", cfg.Class)
	case cfg.InterruptPin > 4:
		return nil, fmt.Errorf("pci function: interrupt pin %d: not 0 to 4", cfg.InterruptPin)
	}
	f := &Function{nextCap: headerEnd, onCommand: cfg.OnCommand}
	le := binary.LittleEndian
	le.PutUint16(f.state.regs[regVendorID:], cfg.VendorID)
	le.PutUint16(f.state.regs[regDeviceID:], cfg.DeviceID)
	le.PutUint32(f.state.regs[regRevisionID:], cfg.Class<<8|uint32(cfg.Revision))
	le.PutUint16(f.state.regs[regSubsystem:], cfg.SubsystemVendorID)
	le.PutUint16(f.state.regs[regSubsystem+2:], cfg.SubsystemID)
	f.state.regs[regInterruptLine] = cfg.InterruptLine
	f.state.regs[regInterruptPin] = cfg.InterruptPin

	f.allowCommand(CommandBusMaster)
	le.PutUint16(f.w1c[regStatus:], statusErrors)
	f.writable[regCacheLineSize] = 0xff
	if cfg.InterruptPin != 0 {
		f.allowCommand(CommandINTxDisable)
		f.writable[regInterruptLine] = 0xff
	}
	return f, nil
}

// allowCommand lets a guest change bits of the command register.
func (f *Function) allowCommand(bits uint16) {
	reg := f.writable[regCommand:]
	binary.LittleEndian.PutUint16(reg, binary.LittleEndian.Uint16(reg)|bits)
}

// Capability is one entry of the capability list (PCI Local Bus 3.0 §6.7).
type Capability struct {
	ID   uint8
	Body []byte // what follows the ID and the next pointer, as the guest finds it
	// Writable and WriteOneToClear have a bit set for each bit of Body that a guest can change, and can clear by
	// writing one. Either may be shorter than Body: the bits beyond it are read-only.
	Writable, WriteOneToClear []byte

	// OnRead is called before the guest reads n bytes of Body at off, and OnWrite after it has written there; both may be
	// nil. They get the whole body, and may change it. A hook runs with the root bus locked: it must not block and must
	// not touch configuration space.
	OnRead, OnWrite func(body []byte, off, n int)
}

// capability is the hooks of one, and where its body is.
type capability struct {
	start, end      int
	onRead, onWrite func(body []byte, off, n int)
}

// AddCapability appends c to the list and returns the offset of its first byte (that of the ID).
func (f *Function) AddCapability(c Capability) (int, error) {
	off, end := f.nextCap, f.nextCap+2+len(c.Body)
	switch {
	case f.attached:
		return 0, fmt.Errorf("pci capability %#02x: the function is on its bus already", c.ID)
	case len(c.Writable) > len(c.Body) || len(c.WriteOneToClear) > len(c.Body):
		return 0, fmt.Errorf("pci capability %#02x: a mask is longer than the body of %d bytes", c.ID, len(c.Body))
	case end > conventionalEnd:
		return 0, fmt.Errorf("pci capability %#02x: %d bytes at %#x: beyond %#x", c.ID, end-off, off, conventionalEnd)
	}
	f.state.regs[off] = c.ID
	copy(f.state.regs[off+2:], c.Body)
	copy(f.writable[off+2:], c.Writable)
	copy(f.w1c[off+2:], c.WriteOneToClear)
	if f.lastCap == 0 {
		f.state.regs[regStatus] |= statusCapabilities
		f.state.regs[regCapabilities] = uint8(off)
	} else {
		f.state.regs[f.lastCap+1] = uint8(off)
	}
	if c.OnRead != nil || c.OnWrite != nil {
		f.capabilities = append(f.capabilities, capability{start: off + 2, end: end, onRead: c.OnRead, onWrite: c.OnWrite})
	}
	f.lastCap = off
	f.nextCap = (end + 3) &^ 3 // §6.7: capabilities are dword aligned
	return off, nil
}

// SetInterruptStatus sets the interrupt status bit of the status register, which tells the guest that the function asserts
// its pin, or would if [CommandINTxDisable] were clear. Any goroutine may call it at any time, hooks too.
func (f *Function) SetInterruptStatus(on bool) { f.interrupt.Store(on) }

// command is the command register.
func (f *Function) command() uint16 { return binary.LittleEndian.Uint16(f.state.regs[regCommand:]) }

// read fills p from reg; both lie inside one dword.
func (f *Function) read(reg int, p []byte) {
	f.hook(reg, len(p), func(c *capability) func([]byte, int, int) { return c.onRead })
	copy(p, f.state.regs[reg:])
	if reg <= regStatus && regStatus < reg+len(p) && f.interrupt.Load() {
		p[regStatus-reg] |= statusInterrupt
	}
}

// write stores p at reg, in the bits that a guest can change, and clears those that it writes to clear.
func (f *Function) write(reg int, p []byte) {
	before := f.command()
	for i, v := range p {
		r := &f.state.regs[reg+i]
		*r = (*r&^f.writable[reg+i] | v&f.writable[reg+i]) &^ (v & f.w1c[reg+i])
	}
	f.commandWas(before)
	f.hook(reg, len(p), func(c *capability) func([]byte, int, int) { return c.onWrite })
}

// commandWas tells the owner if the command register has changed since.
func (f *Function) commandWas(before uint16) {
	if now := f.command(); now != before && f.onCommand != nil {
		f.onCommand(now)
	}
}

// hook calls what which returns of each capability whose body the n bytes at reg touch.
func (f *Function) hook(reg, n int, which func(*capability) func(body []byte, off, n int)) {
	for i := range f.capabilities {
		c := &f.capabilities[i]
		from, to := max(reg, c.start), min(reg+n, c.end)
		if call := which(c); call != nil && from < to {
			call(f.state.regs[c.start:c.end:c.end], from-c.start, to-from)
		}
	}
}
