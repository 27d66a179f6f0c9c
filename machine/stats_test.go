package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/kvm"
)

func TestStatsAdd(t *testing.T) {
	var s Stats
	s.add(Stats{Exits: map[string]uint64{"a": 1, "b": 2}, Unclaimed: 3})
	s.add(Stats{Exits: map[string]uint64{"b": 4, "c": 5}, Unclaimed: 6})
	require.Equal(t, Stats{Exits: map[string]uint64{"a": 1, "b": 6, "c": 5}, Unclaimed: 9}, s)
}

// A snapshot is the caller's: neither does it change, nor does a change of it reach the machine.
func TestStatsIsACopy(t *testing.T) {
	m := &Machine{board: &board{vcpus: []*vcpu{{}}}}
	m.stats.add(Stats{Exits: map[string]uint64{"KVM_EXIT_IO": 1}})
	m.board.vcpus[0].exits.count(kvm.ExitIO)
	m.board.vcpus[0].exits.count(kvm.ExitReason(1 << 30)) // a kernel's of the future, which ends the machine
	for range 2 {
		s := m.Stats()
		require.Equal(t, map[string]uint64{"KVM_EXIT_IO": 2}, s.Exits)
		s.Exits["KVM_EXIT_IO"] = 99
	}
}

func TestTrace(t *testing.T) {
	tr := newTrace()
	tr.port(0x80, 1)
	tr.port(0x3f8, 13)
	tr.port(0x70, 1)
	tr.mmio(0xe000_0000)
	tr.unclaimedMMIO(0x10, 4, false)
	tr.unclaimedPort(0x10, 1, true)
	ports, mmio, holes := tr.counts()
	require.Equal(t, []AccessCount{
		{Addr: 0x3f8, Port: true, Count: 13},
		{Addr: 0x70, Port: true, Count: 1},
		{Addr: 0x80, Port: true, Count: 1},
	}, ports)
	require.Equal(t, []AccessCount{{Addr: 0xe000_0000, Count: 1}}, mmio)
	require.Equal(t, []AccessCount{{Addr: 0x10, Port: true, Count: 1}, {Addr: 0x10, Count: 1}}, holes)
}

// The guest chooses the addresses, and may choose many.
func TestTraceIsBounded(t *testing.T) {
	tr := newTrace()
	for addr := range uint64(2 * maxTraced) {
		tr.mmio(addr)
		tr.unclaimedMMIO(addr, 1, false)
	}
	tr.mmio(0)
	_, mmio, holes := tr.counts()
	require.Len(t, mmio, maxTraced)
	require.Len(t, holes, maxTraced)
	require.Equal(t, AccessCount{Addr: 0, Count: 2}, mmio[0], "a known address still counts")
}
