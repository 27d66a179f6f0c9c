package pci_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices"
	"vmm/devices/pci"
)

// fuzzBARs are the BARs of each function of the fuzzed machine. The large ones make overlaps likely.
var fuzzBARs = []pci.BAR{
	{Index: 0, Kind: pci.IO, Size: 256},
	{Index: 1, Kind: pci.Mem32, Size: 256 << 20},
	{Index: 2, Kind: pci.Mem32, Size: 4096},
	{Index: 4, Kind: pci.Mem64, Prefetchable: true, Size: 64 << 20},
}

var fuzzPlaces = []pci.BDF{pci.NewBDF(0, 1, 0), pci.NewBDF(0, 1, 3), pci.NewBDF(0, 31, 7)}

// fuzzOp is one access, in the eight bytes of the fuzzer's input that it is made of.
func fuzzOp(write bool, size, place int, reg uint16, v uint32) []byte {
	b := []byte{byte(size << 1), byte(place)}
	if write {
		b[0] |= 1
	}
	b = binary.LittleEndian.AppendUint16(b, reg)
	return binary.LittleEndian.AppendUint32(b, v)
}

// shuffle makes n writes that move BARs about in the windows and at their edges, more purposefully than a fuzzer would.
func shuffle(r *rand.Rand, n int) []byte {
	values := []uint32{
		0, 0x1000, 0x1100, 0xff00, 0xc0000000, 0xc4000000, 0xd0000000, 0xd0001000, 0xe0000000, 0xfee00000, 0xffffffff,
		0x3f, 0x40, 0x7f, 0x80, // upper halves, as well as commands
	}
	registers := []uint64{command, command, bar(0), bar(1), bar(2), bar(4), bar(5)}
	var ops []byte
	for range n {
		reg, v := registers[r.IntN(len(registers))], values[r.IntN(len(values))]
		if reg == command {
			v = r.Uint32() % 8
		}
		op := fuzzOp(true, r.IntN(3), r.IntN(len(fuzzPlaces)), uint16(reg), v)
		op[0] |= byte(r.IntN(2)) << 3 // by which mechanism
		ops = append(ops, op...)
	}
	return ops
}

// FuzzConfig accesses configuration space at random, by both mechanisms, and checks the buses after each access and
// the whole of the space at the end.
func FuzzConfig(f *testing.F) {
	const dword = 2 // log2 of the size
	f.Add([]byte{})
	f.Add(append(fuzzOp(true, dword, 0, uint16(bar(1)), 0xc0000000), fuzzOp(true, 1, 0, command, 7)...))
	overlap := fuzzOp(true, dword, 0, uint16(bar(1)), 0xc0000000)
	overlap = append(overlap, fuzzOp(true, dword, 1, uint16(bar(1)), 0xc0000000)...)
	overlap = append(overlap, fuzzOp(true, dword, 0, command, 7)...)
	overlap = append(overlap, fuzzOp(true, dword, 1, command, 7)...)
	overlap = append(overlap, fuzzOp(true, dword, 0, uint16(bar(1)), 0xffffffff)...)
	f.Add(overlap)
	high := fuzzOp(true, 3, 1, uint16(bar(4)), 0x41)
	high = append(high, fuzzOp(true, 1, 1, command, 2)...)
	f.Add(high)
	f.Add(append(fuzzOp(true, 1, 2, uint16(bar(0)), 0x1000), fuzzOp(true, 0, 2, command, 1)...))
	for seed := range uint64(4) {
		f.Add(shuffle(rand.New(rand.NewPCG(seed, 0)), 500))
	}

	f.Fuzz(func(t *testing.T, ops []byte) {
		m := newFuzzMachine(t)
		for len(ops) >= 8 && !t.Failed() {
			m.do(t, ops[:8])
			m.checkBuses(t)
			ops = ops[8:]
		}
		m.checkSpaces(t)
		for at := range m.initial {
			m.w16(at, command, 0)
		}
		require.Equal(t, m.foreign, m.ranges(), "with all decoding off")
		require.Empty(t, m.hooked)
	})
}

type fuzzMachine struct {
	*machine
	initial map[pci.BDF][]byte
	foreign map[string]devices.Range // what is not a BAR
	hooked  map[string]uint64        // the BARs that are mapped, as the hooks tell
}

func newFuzzMachine(t *testing.T) *fuzzMachine {
	m := &fuzzMachine{machine: newMachine(t), initial: map[pci.BDF][]byte{}, hooked: map[string]uint64{}}
	require.NoError(t, m.mmio.Add("foreign memory", 0xd0001000, 0x1000, tagged(0)))
	require.NoError(t, m.pio.Add("foreign port", 0x1010, 1, tagged(0)))
	m.foreign = m.ranges()
	bridge, err := pci.NewFunction(pci.FunctionConfig{})
	require.NoError(t, err)
	require.NoError(t, m.root.Add(pci.NewBDF(0, 31, 0), bridge)) // a function 0 for the one that is number 7
	for _, at := range fuzzPlaces {
		fn, err := pci.NewFunction(pci.FunctionConfig{VendorID: 0x1b36, DeviceID: 5, InterruptPin: 2})
		require.NoError(t, err)
		for _, b := range fuzzBARs {
			name := barName(at, b)
			b.Device = tagged(b.Index)
			b.OnMap = func(addr uint64) {
				require.NotContains(t, m.hooked, name)
				m.hooked[name] = addr
			}
			b.OnUnmap = func(addr uint64) {
				require.Equal(t, m.hooked[name], addr)
				delete(m.hooked, name)
			}
			require.NoError(t, fn.AddBAR(b))
		}
		_, err = fn.AddCapability(pci.Capability{ID: 9, Body: []byte{4, 0x0f}, Writable: []byte{0, 0xaa}, WriteOneToClear: []byte{0, 0x05}})
		require.NoError(t, err)
		require.NoError(t, m.root.Add(at, fn))
	}
	for _, at := range fuzzPlaces {
		m.initial[at] = m.space(at)
	}
	return m
}

func barName(at pci.BDF, b pci.BAR) string { return fmt.Sprintf("pci %v BAR %d", at, b.Index) }

// ranges are the devices on both buses, by name.
func (m *fuzzMachine) ranges() map[string]devices.Range {
	all := map[string]devices.Range{}
	for _, r := range append(m.pio.Ranges(), m.mmio.Ranges()...) {
		all[r.Name] = r
	}
	return all
}

// do makes one access. Bit 0 of the first byte is set for a write, bits 1 and 2 are the size, bit 3 chooses the ports
// rather than the ECAM; the second byte is the place, which may be empty.
func (m *fuzzMachine) do(t *testing.T, op []byte) {
	write, n := op[0]&1 != 0, 1<<(op[0]>>1&3)
	at := pci.BDF(op[1]) << 1
	if i := int(op[1]); i < len(fuzzPlaces) {
		at = fuzzPlaces[i]
	}
	reg := uint64(binary.LittleEndian.Uint16(op[2:]))
	v := uint64(binary.LittleEndian.Uint32(op[4:])) * 0x1_0000_0001

	dev, off := m.ecam, ecamAt(at)+reg%4096
	if op[0]&8 != 0 {
		dev, off, n = m.data, reg%4&^uint64(min(n, 4)-1), min(n, 4)
		store(m.address, 0, 4, 1<<31|uint64(at)<<8|reg&0xfc)
	}
	if write {
		store(dev, off, n, v)
		return
	}
	got := load(dev, off, n)
	if dev == m.data {
		require.Equal(t, load(m.ecam, ecamAt(at)+reg&0xfc+off, n), got, "the mechanisms disagree")
	}
}

// checkBuses holds the buses against the registers: a BAR is mapped exactly where its register says, if it is enabled,
// inside a window and free of other devices.
func (m *fuzzMachine) checkBuses(t *testing.T) {
	for _, b := range []*devices.Bus{&m.pio, &m.mmio} {
		rs := b.Ranges()
		for i := 1; i < len(rs); i++ {
			require.LessOrEqual(t, rs[i-1].Start+rs[i-1].Size, rs[i].Start, "%v overlaps %v", rs[i-1], rs[i])
		}
	}
	ranges := m.ranges()
	mapped := len(m.foreign)
	for _, at := range fuzzPlaces {
		for _, b := range fuzzBARs {
			bus, windows, enable, flags := &m.mmio, mmioWindows, uint16(decodeMem), uint64(0xf)
			if b.Kind == pci.IO {
				bus, windows, enable, flags = &m.pio, pioWindows, decodeIO, 3
			}
			addr := uint64(m.r32(at, bar(b.Index)))
			if b.Kind == pci.Mem64 {
				addr |= uint64(m.r32(at, bar(b.Index+1))) << 32
			}
			addr &^= flags
			require.Zero(t, addr%b.Size, "%s: a bit below the size", barName(at, b))

			wanted := m.r16(at, command)&enable != 0 && insideOne(windows, addr, b.Size)
			r, ok := ranges[barName(at, b)]
			hooked, hookedOK := m.hooked[barName(at, b)]
			require.Equal(t, ok, hookedOK, "%s: bus and hooks", barName(at, b))
			if ok {
				mapped++
				require.True(t, wanted, "%s: mapped at %#x", barName(at, b), r.Start)
				require.Equal(t, devices.Range{Name: r.Name, Start: addr, Size: b.Size}, r)
				require.Equal(t, addr, hooked)
			} else if wanted {
				require.True(t, taken(bus, addr, b.Size), "%s: not mapped at %#x", barName(at, b), addr)
			}
		}
	}
	require.Len(t, ranges, mapped, "a mapping of no BAR")
}

func insideOne(windows []pci.Window, addr, size uint64) bool {
	for _, w := range windows {
		if addr >= w.Start && addr+size <= w.Start+w.Size && addr+size > addr {
			return true
		}
	}
	return false
}

func taken(b *devices.Bus, addr, size uint64) bool {
	for _, r := range b.Ranges() {
		if r.Start < addr+size && addr < r.Start+r.Size {
			return true
		}
	}
	return false
}

// checkSpaces looks for bits that have changed and are not for the guest to change, and then sizes each BAR.
func (m *fuzzMachine) checkSpaces(t *testing.T) {
	for _, at := range fuzzPlaces {
		may := make([]byte, 4096)
		binary.LittleEndian.PutUint16(may[command:], 0x0407)
		may[0x0c], may[0x3c], may[0x43] = 0xff, 0xff, 0xaf
		for _, b := range fuzzBARs {
			binary.LittleEndian.PutUint32(may[bar(b.Index):], uint32(-b.Size))
			if b.Kind == pci.Mem64 {
				binary.LittleEndian.PutUint32(may[bar(b.Index+1):], uint32(-b.Size>>32))
			}
		}
		now, initial := m.space(at), m.initial[at]
		for i, b := range now {
			if was := initial[i]; (b^was)&^may[i] != 0 { // not by require, which is slow for so many
				t.Fatalf("%v: read-only bits at %#x: %#02x, then %#02x", at, i, was, b)
			}
		}
		require.Zero(t, now[0x43]&0x05&^initial[0x43], "a bit that only clears")

		for _, b := range fuzzBARs {
			m.w32(at, bar(b.Index), 0xffffffff)
			want := uint32(-b.Size) | binary.LittleEndian.Uint32(initial[bar(b.Index):])
			require.Equal(t, want, m.r32(at, bar(b.Index)), "size of %s", barName(at, b))
		}
		m.checkBuses(t)
	}
}
