package pci_test

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices/pci"
)

// conf1 selects a register for the data port, as Linux's pci_conf1_read does.
func (m *machine) conf1(at pci.BDF, reg uint64) {
	store(m.address, 0, 4, 1<<31|uint64(at)<<8|reg&0xfc)
}

// TestConfigAddressProbe is what Linux's pci_check_type1 and pci_check_type2 do to find out which mechanism there is.
func TestConfigAddressProbe(t *testing.T) {
	m := newMachine(t)

	store(m.address, 3, 1, 0x01)
	saved := load(m.address, 0, 4)
	store(m.address, 0, 4, 0x80000000)
	require.Equal(t, uint64(0x80000000), load(m.address, 0, 4))
	const class = 0x0a // pci_sanity_check looks for a host bridge
	m.conf1(bridgeAt, class)
	require.Equal(t, uint64(hostBridge>>8), load(m.data, class&3, 2))
	store(m.address, 0, 4, saved)
	require.Equal(t, saved, load(m.address, 0, 4))

	store(m.address, 3, 1, 0)
	store(m.address, 0, 1, 0)
	store(m.address, 2, 1, 0)
	require.False(t, load(m.address, 0, 1) == 0 && load(m.address, 2, 1) == 0, "mechanism 2 seems to be there")
}

func TestConfigAddressLatch(t *testing.T) {
	for _, c := range []struct {
		name     string
		off      uint64
		n        int
		write    uint64
		want     uint64 // of a read of the dword
		wantPart uint64 // of a read like the write
	}{
		{name: "dword", off: 0, n: 4, write: 0x80001804, want: 0x80001804, wantPart: 0x80001804},
		{name: "reserved bits are zero", off: 0, n: 4, write: 0xffffffff, want: 0x80fffffc, wantPart: 0x80fffffc},
		{name: "low byte", off: 0, n: 1, write: 0x04, want: 0x80001800, wantPart: 0xff},
		{name: "low word", off: 0, n: 2, write: 0x0004, want: 0x80001800, wantPart: 0xffff},
		{name: "high word", off: 2, n: 2, write: 0, want: 0x80001800, wantPart: 0xffff},
		{name: "high byte", off: 3, n: 1, write: 0, want: 0x80001800, wantPart: 0xff},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			store(m.address, 0, 4, 0x80001800)
			store(m.address, c.off, c.n, c.write)
			require.Equal(t, c.want, load(m.address, 0, 4))
			require.Equal(t, c.wantPart, load(m.address, c.off, c.n))
		})
	}
}

func TestConfigDataDisabled(t *testing.T) {
	m := newMachine(t)
	require.Zero(t, load(m.address, 0, 4))
	require.Equal(t, uint64(0xffffffff), load(m.data, 0, 4))

	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	store(m.address, 0, 4, uint64(sampleAt)<<8|command)
	require.Equal(t, uint64(0xffff), load(m.data, 0, 2))
	store(m.data, 0, 2, decodeMem)
	require.Equal(t, uint16(0), m.r16(sampleAt, command), "a write without the enable bit")

	m.conf1(sampleAt, command)
	store(m.data, 0, 2, decodeMem)
	require.Equal(t, uint16(decodeMem), m.r16(sampleAt, command))
}

// TestMechanismsAgree reads every byte, word and dword of a function in both ways.
func TestMechanismsAgree(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	whole := m.space(sampleAt)
	for _, n := range []int{1, 2, 4} {
		for reg := uint64(0); reg+uint64(n) <= 256; reg++ {
			var want [8]byte
			copy(want[:], whole[reg:reg+uint64(n)])
			v := binary.LittleEndian.Uint64(want[:])
			require.Equal(t, v, load(m.ecam, ecamAt(sampleAt)+reg, n), "ECAM, %d bytes at %#x", n, reg)
			if reg&3+uint64(n) <= 4 {
				m.conf1(sampleAt, reg)
				require.Equal(t, v, load(m.data, reg&3, n), "ports, %d bytes at %#x", n, reg)
			}
		}
	}
}

// TestPartialWrites writes the interrupt line and its neighbours with each size, in both ways.
func TestPartialWrites(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))

	store(m.ecam, ecamAt(sampleAt)+0x3c, 1, 0x55)
	require.Equal(t, uint32(0x0155), m.r32(sampleAt, 0x3c))
	store(m.ecam, ecamAt(sampleAt)+0x3b, 2, 0x66ff)
	require.Equal(t, uint32(0x0166), m.r32(sampleAt, 0x3c), "an access across dwords")
	store(m.ecam, ecamAt(sampleAt)+0x38, 8, 0x77_ffffffff)
	require.Equal(t, uint32(0x0177), m.r32(sampleAt, 0x3c), "8 bytes")
	require.Equal(t, uint64(0x0177_00000000), load(m.ecam, ecamAt(sampleAt)+0x38, 8))

	m.conf1(sampleAt, bar(mem32BAR))
	store(m.data, 3, 1, 0xc0)
	store(m.data, 1, 2, 0x1234)
	store(m.data, 0, 1, 0xff)
	require.Equal(t, uint32(0xc012_3000), m.r32(sampleAt, bar(mem32BAR)))
}

// TestNothingThere reads ones where there is no function, and writes go nowhere.
func TestNothingThere(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	for _, at := range []pci.BDF{
		pci.NewBDF(0, 3, 1), pci.NewBDF(0, 4, 0), pci.NewBDF(0, 31, 7),
		pci.NewBDF(1, 0, 0), pci.NewBDF(1, 3, 0), pci.NewBDF(255, 31, 7),
	} {
		m.w32(at, command, 0xffffffff)
		require.Equal(t, uint32(0xffffffff), m.r32(at, 0), "ECAM %v", at)
		require.Equal(t, ^uint64(0), load(m.ecam, ecamAt(at)+0xff8, 8), "ECAM %v", at)
		m.conf1(at, 0)
		require.Equal(t, uint64(0xffffffff), load(m.data, 0, 4), "ports %v", at)
		require.Equal(t, uint64(0xff), load(m.data, 3, 1), "ports %v", at)
	}
	// From the last bytes of one function to the first of a place without one.
	end := ecamAt(sampleAt) + 0x1000
	require.Equal(t, uint64(0xffffffff_00000000), load(m.ecam, end-4, 8))
	require.Equal(t, uint64(0xffff_0000), load(m.ecam, end-2, 4))
	store(m.ecam, end-2, 4, 0)
}

// TestScan finds the functions as an operating system does, and no other.
func TestScan(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	found := map[pci.BDF]uint32{}
	for at := pci.BDF(0); at < pci.ECAMBusSize>>12; at++ {
		if id := m.r32(at, 0); id != 0xffffffff {
			found[at] = id
		}
	}
	require.Equal(t, map[pci.BDF]uint32{bridgeAt: 0x0008_1b36, sampleAt: 0x0005_1b36}, found)
}

func TestCapabilities(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))

	var list []uint8
	for off := m.space(sampleAt)[0x34]; off != 0; off = m.space(sampleAt)[off+1] {
		list = append(list, m.space(sampleAt)[off])
	}
	require.Equal(t, []uint8{0x09, 0x01}, list)

	const pmcsr = 0x4c
	require.Equal(t, uint16(0x8008), m.r16(sampleAt, pmcsr))
	m.w16(sampleAt, pmcsr, 0x0103)
	require.Equal(t, uint16(0x810b), m.r16(sampleAt, pmcsr), "a zero leaves the bit that is written to clear")
	m.w16(sampleAt, pmcsr, 0x8103)
	require.Equal(t, uint16(0x010b), m.r16(sampleAt, pmcsr))
	m.w16(sampleAt, pmcsr, 0x8103)
	require.Equal(t, uint16(0x010b), m.r16(sampleAt, pmcsr), "a one doesn't set it")
}

func TestCommandBits(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	plain, err := pci.NewFunction(pci.FunctionConfig{Class: 0xff0000})
	require.NoError(t, err)
	plainAt := pci.NewBDF(0, 4, 0)
	require.NoError(t, m.root.Add(plainAt, plain))

	for at, want := range map[pci.BDF]uint16{sampleAt: 0x0407, plainAt: 0x0004, bridgeAt: 0x0004} {
		m.w16(at, command, 0xffff)
		require.Equal(t, want, m.r16(at, command), "%v", at)
		m.w16(at, command, 0)
		require.Zero(t, m.r16(at, command), "%v", at)
	}
	m.w32(plainAt, 0x3c, 0xffffffff)
	require.Zero(t, m.r32(plainAt, 0x3c), "interrupt line without a pin")
}

func TestReadsDoNotAllocate(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	m.conf1(sampleAt, 0)
	p := make([]byte, 4)
	at := ecamAt(sampleAt)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		m.ecam.Read(at, p)
		m.ecam.Read(at+pci.ECAMBusSize, p)
		m.data.Read(0, p)
		m.address.Read(0, p)
	}))
}

// TestConcurrentAccess is for the race detector: vCPUs that don't lock, moving the same BARs.
func TestConcurrentAccess(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.root.Add(sampleAt, newSample(t)))
	var vcpus sync.WaitGroup
	for vcpu := range uint32(4) {
		vcpus.Go(func() {
			p := make([]byte, 4)
			for i := range uint32(200) {
				base := 0xc000_0000 + (i+vcpu)<<12
				m.w32(sampleAt, bar(mem32BAR), base)
				m.w16(sampleAt, command, uint16(i%4))
				m.mmio.Read(uint64(base), p)
				m.conf1(sampleAt, bar(ioBAR))
				store(m.data, 0, 2, uint64(0x1000+i<<5))
				load(m.data, 0, 4)
			}
		})
	}
	vcpus.Wait()

	m.w16(sampleAt, command, 0)
	require.Empty(t, m.mmio.Ranges())
	require.Empty(t, m.pio.Ranges())
}
