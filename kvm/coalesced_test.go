package kvm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// ringCapacity is how many writes the ring holds: one entry stays free, to tell full from empty.
const ringCapacity = len(coalescedRing{}.writes) - 1

// drained returns what was noted since the last call.
func drained(c *VCPU) (ports []uint16, data []byte) {
	c.DrainCoalesced(func(port uint16, p []byte) {
		ports = append(ports, port)
		data = append(data, p...)
	})
	return ports, data
}

// coalescing is a guest in real mode whose byte-wide writes to two ports from 0x3F8 on are noted.
func coalescing(t *testing.T, code []byte) *guest {
	t.Helper()
	g := boot(t, code)
	n, err := g.vm.Extension(CapCoalescedPIO)
	require.NoError(t, err)
	if n == 0 {
		t.Skip("this kernel has no KVM_CAP_COALESCED_PIO: use Linux 4.20 or later")
	}
	require.NoError(t, g.vm.CoalescePorts(0x3F8, 2, true))
	return g
}

func TestCoalescedPorts(t *testing.T) {
	g := coalescing(t, []byte{
		0xBA, 0xF8, 0x03, // mov dx, 0x3f8
		0xB8, 'a', 'z', //   mov ax, 'za'
		0xEE,       //       out dx, al
		0xEF,       //       out dx, ax
		0x42,       //       inc dx
		0x40,       //       inc ax
		0xEE,       //       out dx, al
		0xEF,       //       out dx, ax; beyond the end
		0x4A,       //       dec dx
		0xEE,       //       out dx, al
		0xE6, 0x80, //       out 0x80, al
		0xEE, //             out dx, al
	})
	require.False(t, g.cpu.HasCoalesced())
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 2, Port: 0x3F9, Count: 1, Data: []byte("bz")}, g.cpu.IO())
	require.True(t, g.cpu.HasCoalesced())
	ports, data := drained(g.cpu)
	require.Equal(t, []uint16{0x3F8, 0x3F8, 0x3F9}, ports)
	require.Equal(t, "aazb", string(data))
	require.False(t, g.cpu.HasCoalesced())

	g.run(t, ExitIO)
	require.Equal(t, uint16(0x80), g.cpu.IO().Port)
	other := g.createVCPU(t, 1)
	require.True(t, other.HasCoalesced(), "the ring is the VM's")
	ports, data = drained(other)
	require.Equal(t, []uint16{0x3F8}, ports)
	require.Equal(t, "b", string(data))
	require.False(t, g.cpu.HasCoalesced())

	require.NoError(t, g.vm.CoalescePorts(0x3F8, 2, false))
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 1, Port: 0x3F8, Count: 1, Data: []byte("b")}, g.cpu.IO())
	require.False(t, g.cpu.HasCoalesced())
}

// A write that finds the ring full is an exit. Who drains the ring before each exit gets all writes in their order.
func TestCoalescedRingFull(t *testing.T) {
	g := coalescing(t, []byte{
		0xBA, 0xF8, 0x03, // mov dx, 0x3f8
		0x30, 0xC0, //       xor al, al
		0xEE,       //       out dx, al
		0xFE, 0xC0, //       inc al
		0xEB, 0xFB, //       jmp to the out
	})
	var got []byte
	for range 5 {
		g.run(t, ExitIO)
		_, data := drained(g.cpu)
		// Some kernels reckon the room modulo a size that is no power of two, and leave before the ring is full.
		require.NotEmpty(t, data)
		require.LessOrEqual(t, len(data), ringCapacity)
		got = append(append(got, data...), g.cpu.IO().Data...)
	}
	for i := range got {
		require.Equal(t, byte(i), got[i], "write %d", i)
	}
}

func TestCoalescePortsError(t *testing.T) {
	g := setup(t)
	require.NoError(t, g.vm.Close())
	require.ErrorContains(t, g.vm.CoalescePorts(0x3F8, 8, true), "coalesce ports [0x3f8, +8), true: ")
}
