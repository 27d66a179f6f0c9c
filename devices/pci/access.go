package pci

import (
	"encoding/binary"

	"vmm/devices"
)

// CONFIG_ADDRESS: the enable bit, and the bits that exist; the rest is hardwired to zero.
const (
	addressEnable = 1 << 31
	addressBits   = 0x80fffffc
)

// ConfigAddress is the register at ports 0xCF8 to 0xCFB. Only an access of its whole dword is for it: any other is an
// ordinary port access that nobody answers (PCI Local Bus 3.0 §3.2.2.3.2).
func (r *Root) ConfigAddress() devices.Device { return configAddress{r} }

// ConfigData is the register at ports 0xCFC to 0xCFF, a window to the dword that CONFIG_ADDRESS names. Two vCPUs that
// use the pair at once disturb each other, as on hardware: the guest has to lock.
func (r *Root) ConfigData() devices.Device { return configData{r} }

// ECAM is configuration space in memory, [ECAMBusSize] bytes for each bus, up to 256 of them from bus 0 on. An access
// that crosses a dword is done as one for each dword.
func (r *Root) ECAM() devices.Device { return ecam{r} }

type configAddress struct{ root *Root }

func (a configAddress) Read(off uint64, p []byte) {
	if off != 0 || len(p) != 4 {
		ones(p)
		return
	}
	binary.LittleEndian.PutUint32(p, a.root.latch())
}

func (a configAddress) Write(off uint64, p []byte) {
	if off != 0 || len(p) != 4 {
		return
	}
	a.root.mu.Lock()
	defer a.root.mu.Unlock()
	a.root.address = binary.LittleEndian.Uint32(p) & addressBits
}

func (r *Root) latch() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.address
}

type configData struct{ root *Root }

func (d configData) Read(off uint64, p []byte) {
	if at, reg, ok := d.target(off); ok {
		d.root.read(at, reg, p)
		return
	}
	ones(p)
}

func (d configData) Write(off uint64, p []byte) {
	if at, reg, ok := d.target(off); ok {
		d.root.write(at, reg, p)
	}
}

// target returns what an access at off of the data register is for, if CONFIG_ADDRESS is enabled.
func (d configData) target(off uint64) (at BDF, reg int, ok bool) {
	a := d.root.latch()
	return BDF(a >> 8), int(a&0xfc) + int(off), a&addressEnable != 0
}

type ecam struct{ root *Root }

func (e ecam) Read(off uint64, p []byte) {
	for len(p) > 0 {
		n := inDword(off, p)
		e.root.read(BDF(off>>12), int(off&0xfff), p[:n])
		off, p = off+uint64(n), p[n:]
	}
}

func (e ecam) Write(off uint64, p []byte) {
	for len(p) > 0 {
		n := inDword(off, p)
		e.root.write(BDF(off>>12), int(off&0xfff), p[:n])
		off, p = off+uint64(n), p[n:]
	}
}

// inDword is how many bytes of p, which begins at off, are in its first dword.
func inDword(off uint64, p []byte) int { return min(len(p), 4-int(off&3)) }

func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}
