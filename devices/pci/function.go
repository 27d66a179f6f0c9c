package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// FunctionConfig is the identity of a function.
type FunctionConfig struct {
	VendorID, DeviceID             uint16
	Class                          uint32 // base class, subclass and programming interface, in 24 bits
	Revision                       uint8
	SubsystemVendorID, SubsystemID uint16
	InterruptPin                   uint8 // 1 for INTA# to 4 for INTD#; zero for none
	InterruptLine                  uint8 // what firmware would have written there
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

	state state
}

// state is all of a function that changes while the guest runs.
type state struct {
	regs   [spaceSize]byte
	mapped [numBARs]mapping
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
	f := &Function{nextCap: headerEnd}
	le := binary.LittleEndian
	le.PutUint16(f.state.regs[regVendorID:], cfg.VendorID)
	le.PutUint16(f.state.regs[regDeviceID:], cfg.DeviceID)
	le.PutUint32(f.state.regs[regRevisionID:], cfg.Class<<8|uint32(cfg.Revision))
	le.PutUint16(f.state.regs[regSubsystem:], cfg.SubsystemVendorID)
	le.PutUint16(f.state.regs[regSubsystem+2:], cfg.SubsystemID)
	f.state.regs[regInterruptLine] = cfg.InterruptLine
	f.state.regs[regInterruptPin] = cfg.InterruptPin

	f.allowCommand(commandBusMaster)
	le.PutUint16(f.w1c[regStatus:], statusErrors)
	f.writable[regCacheLineSize] = 0xff
	if cfg.InterruptPin != 0 {
		f.allowCommand(commandINTxDisable)
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
	f.lastCap = off
	f.nextCap = (end + 3) &^ 3 // §6.7: capabilities are dword aligned
	return off, nil
}

// write stores p at reg, in the bits that a guest can change, and clears those that it writes to clear.
func (f *Function) write(reg int, p []byte) {
	for i, v := range p {
		r := &f.state.regs[reg+i]
		*r = (*r&^f.writable[reg+i] | v&f.writable[reg+i]) &^ (v & f.w1c[reg+i])
	}
}
