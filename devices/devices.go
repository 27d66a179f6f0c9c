// Package devices holds what all emulated hardware shares: the contract of a device on a bus, the interrupt line, and
// the bus that finds the device for an access of a vCPU. The devices themselves are in the packages below it.
package devices

// Device is hardware that occupies a range of port or memory addresses.
//
// An access cannot fail, as it cannot on a real bus: a read of nothing gives all ones, a write to nothing vanishes. Any
// vCPU may call at any time, several at once; a call must not block for longer than a short critical section. The
// guest chooses the offset (inside the range, the access's end included) and the length (1, 2, 4 or 8 bytes).
type Device interface {
	// Read fills p with what is at off, relative to the device's own range.
	Read(off uint64, p []byte)
	// Write stores p at off, relative to the device's own range.
	Write(off uint64, p []byte)
}

// IRQLine is one wire into the interrupt controller: one GSI.
type IRQLine interface {
	// SetLevel drives the line. An edge is a call with true and one with false.
	SetLevel(high bool) error
}
