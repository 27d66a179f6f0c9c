package pci

import "errors"

// The Advanced Features capability (PCI-SIG ECN "Advanced Capabilities for Conventional PCI", 2006): the function level
// reset of functions that are not PCI Express.
const (
	capAdvancedFeatures = 0x13

	afLength = 0 // in the body: bytes of the whole capability
	afCaps   = 1
	afCtrl   = 2
	afStatus = 3

	afCapTP    = 1 << 0 // the transactions pending bit is there
	afCapFLR   = 1 << 1
	afCtrlFLR  = 1 << 0 // written 1 to reset; reads as zero
	afStatusTP = 1 << 0
)

// AddFunctionReset gives the function the capability by which a guest resets it alone: all registers get the values
// that they had when the function came on its bus, its BARs leave theirs, and onReset is called. While pending returns
// true the capability says that the function may still access memory. Both are hooks (see [Capability]).
func (f *Function) AddFunctionReset(onReset func(), pending func() bool) error {
	if f.onReset != nil {
		return errors.New("pci function: has a function level reset already")
	}
	_, err := f.AddCapability(Capability{
		ID:       capAdvancedFeatures,
		Body:     []byte{afLength: 6, afCaps: afCapTP | afCapFLR, afStatus: 0},
		Writable: []byte{afCtrl: afCtrlFLR},
		OnRead: func(body []byte, _, _ int) {
			body[afStatus] = 0
			if pending() {
				body[afStatus] = afStatusTP
			}
		},
		OnWrite: func(body []byte, _, _ int) {
			f.state.resetting = body[afCtrl]&afCtrlFLR != 0
			body[afCtrl] = 0
		},
	})
	if err == nil {
		f.onReset = onReset
	}
	return err
}

// resetRequested tells whether the last write has asked for a reset.
func (f *Function) resetRequested() bool { return f.state.resetting }

// reset does a function level reset; r.mu is held.
func (r *Root) reset(f *Function) {
	before := f.command()
	f.state.regs = f.initial
	f.state.resetting = false
	r.remap()
	f.commandWas(before)
	f.onReset()
}
