package pci_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices"
	"vmm/devices/pci"
)

var update = flag.Bool("update", false, "write the golden files")

// Registers and bits, as a driver writes them.
const (
	command = 0x04
	bar0    = 0x10

	decodeIO  = 1
	decodeMem = 2

	hostBridge = 0x060000
)

func bar(i int) uint64 { return bar0 + 4*uint64(i) }

// The places of the test functions, and of the ECAM's bytes for them.
var (
	bridgeAt = pci.NewBDF(0, 0, 0)
	sampleAt = pci.NewBDF(0, 3, 0)
)

func ecamAt(at pci.BDF) uint64 { return uint64(at) << 12 }

// machine is a root bus on a port and a memory bus, with the windows of a small machine.
type machine struct {
	pio, mmio devices.Bus
	root      *pci.Root
	ecam      devices.Device
	address   devices.Device
	data      devices.Device
}

var (
	pioWindows  = []pci.Window{{Start: 0x1000, Size: 0xf000}}
	mmioWindows = []pci.Window{
		{Start: 0xc000_0000, Size: 0x2000_0000},
		{Start: 0x40_0000_0000, Size: 0x40_0000_0000},
	}
)

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{}
	root, err := pci.NewRoot(pci.Config{PIO: &m.pio, MMIO: &m.mmio, PIOWindows: pioWindows, MMIOWindows: mmioWindows})
	require.NoError(t, err)
	m.root, m.ecam, m.address, m.data = root, root.ECAM(), root.ConfigAddress(), root.ConfigData()
	return m
}

func load(d devices.Device, off uint64, n int) uint64 {
	var b [8]byte
	d.Read(off, b[:n])
	return binary.LittleEndian.Uint64(b[:])
}

func store(d devices.Device, off uint64, n int, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	d.Write(off, b[:n])
}

// r16, r32, w16 and w32 reach a function through the ECAM.
func (m *machine) r16(at pci.BDF, reg uint64) uint16 { return uint16(load(m.ecam, ecamAt(at)+reg, 2)) }
func (m *machine) r32(at pci.BDF, reg uint64) uint32 { return uint32(load(m.ecam, ecamAt(at)+reg, 4)) }
func (m *machine) w16(at pci.BDF, reg uint64, v uint16) {
	store(m.ecam, ecamAt(at)+reg, 2, uint64(v))
}
func (m *machine) w32(at pci.BDF, reg uint64, v uint32) {
	store(m.ecam, ecamAt(at)+reg, 4, uint64(v))
}

// space reads all of a function's configuration space.
func (m *machine) space(at pci.BDF) []byte {
	p := make([]byte, 4096)
	for off := 0; off < len(p); off += 4 {
		m.ecam.Read(ecamAt(at)+uint64(off), p[off:off+4])
	}
	return p
}

// tagged is a device whose every byte reads as its tag.
type tagged byte

func (t tagged) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = byte(t)
	}
}
func (tagged) Write(uint64, []byte) {}

// The sample function has each kind of BAR and two capabilities.
const (
	ioBAR, mem32BAR, mem64BAR, prefetchBAR = 0, 1, 2, 4

	ioTag, mem32Tag, mem64Tag, prefetchTag = 0xa0, 0xa1, 0xa2, 0xa4
)

func newSample(t testing.TB) *pci.Function {
	t.Helper()
	f, err := pci.NewFunction(pci.FunctionConfig{
		VendorID: 0x1b36, DeviceID: 0x0005,
		Class: 0x00ff00, Revision: 7,
		SubsystemVendorID: 0x1af4, SubsystemID: 0x1100,
		InterruptPin: 1, InterruptLine: 11,
	})
	require.NoError(t, err)
	for _, b := range []pci.BAR{
		{Index: ioBAR, Kind: pci.IO, Size: 32, Device: tagged(ioTag)},
		{Index: mem32BAR, Kind: pci.Mem32, Size: 0x1000, Device: tagged(mem32Tag)},
		{Index: mem64BAR, Kind: pci.Mem64, Size: 0x4000, Device: tagged(mem64Tag)},
		{Index: prefetchBAR, Kind: pci.Mem64, Prefetchable: true, Size: 8 << 30, Device: tagged(prefetchTag)},
	} {
		require.NoError(t, f.AddBAR(b))
	}
	// Vendor-specific (PCI 3.0 appendix H), of a length that leaves a gap before the next capability.
	off, err := f.AddCapability(pci.Capability{ID: 0x09, Body: []byte{7, 0x11, 0x22, 0x33, 0x44}, Writable: []byte{0, 0, 0xf0}})
	require.NoError(t, err)
	require.Equal(t, 0x40, off)
	// Power management: PMCSR has writable bits (power state, PME enable) and one to clear (PME status).
	off, err = f.AddCapability(pci.Capability{
		ID: 0x01, Body: []byte{0x03, 0x00, 0x08, 0x80, 0, 0},
		Writable: []byte{0, 0, 0x03, 0x01}, WriteOneToClear: []byte{0, 0, 0, 0x80},
	})
	require.NoError(t, err)
	require.Equal(t, 0x48, off)
	return f
}

// dump writes the conventional part of a configuration space as lspci -xxx does, so that lspci -vvF can decode it.
func dump(at pci.BDF, p []byte) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%v golden\n", at)
	for off := 0; off < 256; off += 16 {
		fmt.Fprintf(&s, "%02x: % x\n", off, p[off:off+16])
	}
	return s.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// TestGolden compares each function as the guest finds it, and the bits of it that a guest can change.
func TestGolden(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	for name, at := range map[string]pci.BDF{"hostbridge": bridgeAt, "sample": sampleAt} {
		t.Run(name, func(t *testing.T) {
			initial := m.space(at)
			require.Equal(t, make([]byte, 4096-256), initial[256:], "extended space")
			golden(t, name+".txt", dump(at, initial))

			changed := make([]byte, 4096)
			for _, v := range []uint32{0xffffffff, 0} {
				for reg := uint64(0); reg < 4096; reg += 4 {
					m.w32(at, reg, v)
				}
				for i, b := range m.space(at) {
					changed[i] |= b ^ initial[i]
				}
			}
			require.Equal(t, make([]byte, 4096-256), changed[256:], "extended space")
			golden(t, name+"_writable.txt", dump(at, changed))
		})
	}
}

func TestBDF(t *testing.T) {
	b := pci.NewBDF(1, 0x1f, 2)
	require.Equal(t, pci.BDF(0x01fa), b)
	require.Equal(t, "01:1f.2", b.String())
	require.Equal(t, []uint8{1, 0x1f, 2}, []uint8{b.Bus(), b.Device(), b.Function()})
}

func TestMultiFunction(t *testing.T) {
	m := newMachine(t)
	headerType := func(at pci.BDF) byte { return m.space(at)[0x0e] }

	require.ErrorContains(t, m.root.Add(pci.NewBDF(0, 3, 1), newSample(t)), "has no function 0")
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	require.Equal(t, byte(0), headerType(sampleAt))

	second := pci.NewBDF(0, 3, 5)
	require.NoError(t, m.root.Add(second, newSample(t)))
	require.Equal(t, byte(0x80), headerType(sampleAt))
	require.Equal(t, byte(0x80), headerType(second))
	require.Equal(t, byte(0), headerType(bridgeAt))
}

func TestAddErrors(t *testing.T) {
	m := newMachine(t)
	f := newSample(t)
	require.ErrorContains(t, m.root.Add(pci.NewBDF(1, 0, 0), f), "no bus 1")
	require.ErrorContains(t, m.root.Add(bridgeAt, f), "the place is taken")
	require.NoError(t, m.root.Add(sampleAt, f))
	require.ErrorContains(t, m.root.Add(pci.NewBDF(0, 4, 0), f), "is on a bus already")
	require.ErrorContains(t, f.AddBAR(pci.BAR{Index: 5, Kind: pci.IO, Size: 4, Device: tagged(0)}), "on its bus already")
	_, err := f.AddCapability(pci.Capability{ID: 9})
	require.ErrorContains(t, err, "on its bus already")
}

func TestNewRootErrors(t *testing.T) {
	var bus devices.Bus
	for name, c := range map[string]struct {
		cfg  pci.Config
		want string
	}{
		"no port bus":         {pci.Config{MMIO: &bus}, "a bus is missing"},
		"no memory bus":       {pci.Config{PIO: &bus}, "a bus is missing"},
		"empty window":        {pci.Config{PIO: &bus, MMIO: &bus, PIOWindows: []pci.Window{{Start: 1}}}, "[0x1, +0x0): not a range"},
		"window wraps around": {pci.Config{PIO: &bus, MMIO: &bus, MMIOWindows: []pci.Window{{Start: 2, Size: 1<<64 - 1}}}, "not a range"},
	} {
		_, err := pci.NewRoot(c.cfg)
		require.ErrorContains(t, err, c.want, name)
	}
}

func TestNewFunctionErrors(t *testing.T) {
	for want, cfg := range map[string]pci.FunctionConfig{
		"vendor ID 0xffff":                   {VendorID: 0xffff},
		"class 0x1000000: more than 24 bits": {Class: 0x1000000},
		"interrupt pin 5: not 0 to 4":        {InterruptPin: 5},
	} {
		_, err := pci.NewFunction(cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestAddBARErrors(t *testing.T) {
	dev := tagged(0)
	for _, c := range []struct {
		bar  pci.BAR
		want string
	}{
		{pci.BAR{Index: -1, Kind: pci.IO, Size: 4, Device: dev}, "needs 1 of the registers 0 to 5"},
		{pci.BAR{Index: 6, Kind: pci.IO, Size: 4, Device: dev}, "needs 1 of the registers"},
		{pci.BAR{Index: 5, Kind: pci.Mem64, Size: 4096, Device: dev}, "pci BAR 5: needs 2 of the registers"},
		{pci.BAR{Index: 0, Kind: pci.IO, Size: 2, Device: dev}, "size 0x2: not a power of two from 0x4 to 0x100"},
		{pci.BAR{Index: 0, Kind: pci.IO, Size: 512, Device: dev}, "size 0x200"},
		{pci.BAR{Index: 0, Kind: pci.IO, Size: 4, Prefetchable: true, Device: dev}, "never prefetchable"},
		{pci.BAR{Index: 0, Kind: pci.Mem32, Size: 64, Device: dev}, "size 0x40: not a power of two from 0x80 to 0x80000000"},
		{pci.BAR{Index: 0, Kind: pci.Mem32, Size: 4095, Device: dev}, "size 0xfff"},
		{pci.BAR{Index: 0, Kind: pci.Mem32, Size: 1 << 32, Device: dev}, "size 0x100000000"},
		{pci.BAR{Index: 0, Kind: pci.Mem64, Size: 1 << 63, Device: dev}, "size 0x8000000000000000"},
		{pci.BAR{Index: 0, Kind: 3, Size: 4096, Device: dev}, "kind 3: unknown"},
		{pci.BAR{Index: 0, Kind: pci.Mem32, Size: 4096}, "no device"},
		{pci.BAR{Index: 3, Kind: pci.Mem32, Size: 4096, Device: dev}, "register 3 is taken"},
		{pci.BAR{Index: 2, Kind: pci.Mem64, Size: 4096, Device: dev}, "register 2 is taken"},
		{pci.BAR{Index: 1, Kind: pci.Mem64, Size: 4096, Device: dev}, "register 2 is taken"},
	} {
		f, err := pci.NewFunction(pci.FunctionConfig{})
		require.NoError(t, err)
		require.NoError(t, f.AddBAR(pci.BAR{Index: 2, Kind: pci.Mem64, Size: 8 << 30, Device: dev}))
		require.ErrorContains(t, f.AddBAR(c.bar), c.want)
	}
}

func TestAddCapabilityErrors(t *testing.T) {
	f, err := pci.NewFunction(pci.FunctionConfig{})
	require.NoError(t, err)
	_, err = f.AddCapability(pci.Capability{ID: 9, Body: make([]byte, 3), Writable: make([]byte, 4)})
	require.ErrorContains(t, err, "a mask is longer than the body of 3 bytes")
	_, err = f.AddCapability(pci.Capability{ID: 9, Body: make([]byte, 3), WriteOneToClear: make([]byte, 4)})
	require.ErrorContains(t, err, "a mask is longer")
	_, err = f.AddCapability(pci.Capability{ID: 9, Body: make([]byte, 191)})
	require.ErrorContains(t, err, "193 bytes at 0x40: beyond 0x100")
	_, err = f.AddCapability(pci.Capability{ID: 9, Body: make([]byte, 190)}) // exactly what there is
	require.NoError(t, err)
	_, err = f.AddCapability(pci.Capability{ID: 9})
	require.ErrorContains(t, err, "2 bytes at 0x100: beyond 0x100")
}
