package pci_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices"
	"vmm/devices/pci"
)

// TestSizing is the protocol by which a guest learns the sizes: save, write ones, read, restore.
func TestSizing(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	for i, want := range []uint32{
		ioBAR:           0xffffffe1, // 32 ports
		mem32BAR:        0xfffff000, // 4 KiB
		mem64BAR:        0xffffc004, // 16 KiB
		mem64BAR + 1:    0xffffffff,
		prefetchBAR:     0x0000000c, // 8 GiB
		prefetchBAR + 1: 0xfffffffe,
	} {
		initial := m.r32(sampleAt, bar(i))
		m.w32(sampleAt, bar(i), 0xffffffff)
		require.Equal(t, want, m.r32(sampleAt, bar(i)), "BAR %d", i)
		m.w32(sampleAt, bar(i), initial)
		require.Equal(t, initial, m.r32(sampleAt, bar(i)), "BAR %d, restored", i)
	}
	for _, reg := range []uint64{bar(0), 0x30} {
		m.w32(bridgeAt, reg, 0xffffffff)
		require.Zero(t, m.r32(bridgeAt, reg), "a register that is not there, at %#x", reg)
	}
}

// place writes the address of a memory BAR of 64 bits.
func (m *machine) place(at pci.BDF, i int, addr uint64) {
	m.w32(at, bar(i), uint32(addr))
	m.w32(at, bar(i+1), uint32(addr>>32))
}

func probe(b *devices.Bus, addr uint64) byte {
	p := make([]byte, 1)
	b.Read(addr, p)
	return p[0]
}

func TestRelocation(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))

	// Programmed, and not enabled.
	m.w32(sampleAt, bar(ioBAR), 0x2000)
	m.w32(sampleAt, bar(mem32BAR), 0xc0001000)
	m.place(sampleAt, mem64BAR, 0x40_0000_4000)
	m.place(sampleAt, prefetchBAR, 0x42_0000_0000)
	require.Empty(t, m.pio.Ranges())
	require.Empty(t, m.mmio.Ranges())

	// Each kind of space has an enable bit of its own.
	m.w16(sampleAt, command, decodeIO)
	require.Equal(t, []devices.Range{{Name: "pci 00:03.0 BAR 0", Start: 0x2000, Size: 32}}, m.pio.Ranges())
	require.Empty(t, m.mmio.Ranges())
	m.w16(sampleAt, command, decodeMem)
	require.Empty(t, m.pio.Ranges())
	require.Equal(t, []devices.Range{
		{Name: "pci 00:03.0 BAR 1", Start: 0xc0001000, Size: 0x1000},
		{Name: "pci 00:03.0 BAR 2", Start: 0x40_0000_4000, Size: 0x4000},
		{Name: "pci 00:03.0 BAR 4", Start: 0x42_0000_0000, Size: 8 << 30},
	}, m.mmio.Ranges())
	require.Equal(t, byte(mem32Tag), probe(&m.mmio, 0xc0001fff))
	require.Equal(t, byte(prefetchTag), probe(&m.mmio, 0x42_0000_0000))

	// Moved while enabled: gone from the old place.
	m.w32(sampleAt, bar(mem32BAR), 0xc0005000)
	require.Equal(t, byte(0xff), probe(&m.mmio, 0xc0001000))
	require.Equal(t, byte(mem32Tag), probe(&m.mmio, 0xc0005000))
	m.place(sampleAt, mem64BAR, 0xc0008000) // a 64-bit BAR may be below 4 GiB
	require.Equal(t, byte(0xff), probe(&m.mmio, 0x40_0000_4000))
	require.Equal(t, byte(mem64Tag), probe(&m.mmio, 0xc000bfff))

	// Moved by a write that begins in another register.
	store(m.ecam, ecamAt(sampleAt)+bar(mem32BAR)-2, 4, 0x2000_0000)
	require.Equal(t, byte(mem32Tag), probe(&m.mmio, 0xc0002000))

	m.w16(sampleAt, command, 0)
	require.Empty(t, m.mmio.Ranges())
}

// TestSizingWhileEnabled writes ones without disabling the decoding, as a careless guest does.
func TestSizingWhileEnabled(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	m.w32(sampleAt, bar(mem32BAR), 0xc0001000)
	m.w16(sampleAt, command, decodeMem)
	require.Len(t, m.mmio.Ranges(), 1)

	m.w32(sampleAt, bar(mem32BAR), 0xffffffff)
	require.Empty(t, m.mmio.Ranges(), "a stale mapping, or one outside the windows")
	require.Equal(t, uint32(0xfffff000), m.r32(sampleAt, bar(mem32BAR)))
	m.w32(sampleAt, bar(mem32BAR), 0xc0001000)
	require.Equal(t, byte(mem32Tag), probe(&m.mmio, 0xc0001000))
}

func TestUnreachable(t *testing.T) {
	for _, c := range []struct {
		name string
		addr uint64
		want int // ranges on the bus
	}{
		{"inside", 0x40_0000_0000, 1},
		{"first of the window below 4 GiB", 0xc000_0000, 1},
		{"last of the window below 4 GiB", 0xdfff_c000, 1},
		{"zero", 0, 0},
		{"RAM", 0x10_0000, 0},
		{"just below a window", 0xbfff_c000, 0},
		{"just above a window", 0xe000_0000, 0},
		{"IOAPIC", 0xfec0_0000, 0},
		{"local APIC", 0xfee0_0000, 0},
		{"last of 4 GiB", 0xffff_c000, 0},
		{"between the windows", 0x1_0000_0000, 0},
		{"last of all", 0xffff_ffff_ffff_c000, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			require.NoError(t, m.root.Add(sampleAt, newSample(t)))
			m.place(sampleAt, mem64BAR, c.addr)
			m.w16(sampleAt, command, decodeMem)
			require.Len(t, m.mmio.Ranges(), c.want)
			require.Equal(t, uint32(c.addr)|4, m.r32(sampleAt, bar(mem64BAR)), "the register holds it all the same")
		})
	}
}

// TestWindowEnd has a BAR that begins in a window and ends beyond it.
func TestWindowEnd(t *testing.T) {
	var pio, mmio devices.Bus
	root, err := pci.NewRoot(pci.Config{PIO: &pio, MMIO: &mmio, MMIOWindows: []pci.Window{{Start: 0xc0000800, Size: 0x1000}}})
	require.NoError(t, err)
	f, err := pci.NewFunction(pci.FunctionConfig{})
	require.NoError(t, err)
	require.NoError(t, f.AddBAR(pci.BAR{Kind: pci.Mem32, Size: 0x1000, Device: tagged(1)}))
	require.NoError(t, root.Add(sampleAt, f))
	store(root.ECAM(), ecamAt(sampleAt)+command, 2, decodeMem)
	for _, addr := range []uint64{0xc0000000, 0xc0001000} {
		store(root.ECAM(), ecamAt(sampleAt)+bar0, 4, addr)
		require.Empty(t, mmio.Ranges(), "%#x", addr)
	}
}

func TestOverlap(t *testing.T) {
	m := newMachine(t)
	// Another device in the window, which a machine should not have, but which no BAR may take the place of.
	require.NoError(t, m.mmio.Add("other", 0xc0000000, 0x1000, tagged(1)))
	first, second := pci.NewBDF(0, 5, 0), pci.NewBDF(0, 4, 0)
	for i, at := range []pci.BDF{first, second} {
		f, err := pci.NewFunction(pci.FunctionConfig{})
		require.NoError(t, err)
		require.NoError(t, f.AddBAR(pci.BAR{Kind: pci.Mem32, Size: 0x1000, Device: tagged(0x50 + i)}))
		require.NoError(t, m.root.Add(at, f))
		m.w16(at, command, decodeMem)
	}

	m.w32(first, bar0, 0xc0000000)
	require.Equal(t, byte(1), probe(&m.mmio, 0xc0000000), "the other device")

	m.w32(first, bar0, 0xc0001000)
	m.w32(second, bar0, 0xc0001000)
	require.Equal(t, byte(0x50), probe(&m.mmio, 0xc0001000), "the first that came")
	m.w32(first, bar0, 0xc0002000)
	require.Equal(t, byte(0x51), probe(&m.mmio, 0xc0001000), "the one that waited")
	require.Equal(t, byte(0x50), probe(&m.mmio, 0xc0002000))

	m.w32(second, bar0, 0xc0002000)
	m.w16(first, command, 0)
	require.Equal(t, byte(0x51), probe(&m.mmio, 0xc0002000), "the one that waited")
}

// TestHooks checks that a transport learns of each place, in order, while the BAR is not on the bus before or after.
func TestHooks(t *testing.T) {
	m := newMachine(t)
	var events []string
	f, err := pci.NewFunction(pci.FunctionConfig{})
	require.NoError(t, err)
	require.NoError(t, f.AddBAR(pci.BAR{
		Index: 2, Kind: pci.Mem64, Size: 0x1000, Device: tagged(0x77),
		OnMap: func(addr uint64) {
			events = append(events, fmt.Sprintf("map %#x %#x", addr, probe(&m.mmio, addr)))
		},
		OnUnmap: func(addr uint64) {
			events = append(events, fmt.Sprintf("unmap %#x %#x", addr, probe(&m.mmio, addr)))
		},
	}))
	require.NoError(t, m.root.Add(sampleAt, f))

	m.w32(sampleAt, bar(2), 0xc0000000)
	m.w16(sampleAt, command, decodeMem)
	m.w16(sampleAt, command, decodeMem|4) // nothing moves
	m.w32(sampleAt, bar(2), 0xc0001000)
	m.w32(sampleAt, bar(2), 0xfee00000) // unreachable
	m.w32(sampleAt, bar(2), 0xc0002000)
	m.w16(sampleAt, command, 0)
	require.Equal(t, []string{
		"map 0xc0000000 0x77", "unmap 0xc0000000 0x77",
		"map 0xc0001000 0x77", "unmap 0xc0001000 0x77",
		"map 0xc0002000 0x77", "unmap 0xc0002000 0x77",
	}, events)
	require.Empty(t, m.mmio.Ranges())
}
