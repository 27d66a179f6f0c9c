// Package debugport is the two ports by which a program without any driver talks to the monitor.
//
//	port  size  device  read              write
//	0x80  1     POST    last code         progress code
//	0xF4  4     Exit    all ones          ends the machine with the value written
//
// Port 0x80 takes the progress codes of a power-on self-test. Linux writes to it for no other effect than the delay
// (Linux Documentation/admin-guide/kernel-parameters.txt, io_delay=0x80), so it must exist and be quick.
// Port 0xF4 is no hardware's: it is for tests, and a machine has it only where its user asked for it.
//
// Deviations: no display shows the codes; [POST.Code] does.
package debugport

import (
	"encoding/binary"
	"sync/atomic"
)

// Where a PC has these devices, and their sizes in bytes.
const (
	POSTPort = 0x80
	POSTSize = 1
	ExitPort = 0xf4
	ExitSize = 4
)

// POST is the progress-code port. The zero value is ready for use.
type POST struct {
	code atomic.Uint32 // the device's whole state: the last code, 8 bits
}

// Code returns the last code that the guest wrote, zero before the first.
func (d *POST) Code() byte { return byte(d.code.Load()) }

// Read implements devices.Device.
func (d *POST) Read(_ uint64, p []byte) { p[0] = d.Code() }

// Write implements devices.Device.
func (d *POST) Write(_ uint64, p []byte) { d.code.Store(uint32(p[0])) }

// Exit is the debug-exit port. It has no state.
type Exit struct {
	// OnExit gets the value that the guest wrote, extended with zeroes to 32 bits, on the vCPU that wrote it. It is
	// called anew for each write and must not block.
	OnExit func(code uint32)
}

// Read implements devices.Device.
func (d *Exit) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// Write implements devices.Device. Only a write to the first byte's port counts.
func (d *Exit) Write(off uint64, p []byte) {
	if off != 0 {
		return
	}
	var code [ExitSize]byte
	copy(code[:], p)
	d.OnExit(binary.LittleEndian.Uint32(code[:]))
}
