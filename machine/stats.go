package machine

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"vmm/kvm"
)

// Stats counts what the guest made the monitor do.
type Stats struct {
	Exits     map[string]uint64 // exits to user space by KVM's reason
	Unclaimed uint64            // accesses to ports and addresses where there is nothing

	// The rest only with Config.Trace, the most frequent first; of a guest that tries them all, the first 4096.
	Ports []AccessCount // accesses to each port
	MMIO  []AccessCount // accesses to each address
	Holes []AccessCount // those of them that no device claimed
}

// AccessCount is how often the guest accessed a port or an address.
type AccessCount struct {
	Addr  uint64
	Port  bool // in I/O space
	Count uint64
}

// Stats returns the counts up to now, over all resets. It may be called at any time.
func (m *Machine) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stats
	s.Exits = maps.Clone(s.Exits)
	if m.board != nil {
		s.add(m.board.stats())
	}
	if m.trace != nil {
		s.Ports, s.MMIO, s.Holes = m.trace.counts()
	}
	return s
}

// add adds another board's counts.
func (s *Stats) add(o Stats) {
	if s.Exits == nil {
		s.Exits = make(map[string]uint64)
	}
	for reason, n := range o.Exits {
		s.Exits[reason] += n
	}
	s.Unclaimed += o.Unclaimed
}

// sortCounts lists sum's entries, whose keys have no Count, by how often, then by address, ports before memory.
func sortCounts(sum map[AccessCount]uint64) []AccessCount {
	var out []AccessCount
	for c, n := range sum {
		c.Count = n
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b AccessCount) int {
		if c := cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Addr, b.Addr)); c != 0 || a.Port == b.Port {
			return c
		}
		if a.Port {
			return -1
		}
		return 1
	})
	return out
}

// exitCounters counts a vCPU's exits by reason; its thread writes, anyone reads.
type exitCounters [kvm.ExitNotify + 1]atomic.Uint64

func (c *exitCounters) count(r kvm.ExitReason) {
	if int(r) < len(c) {
		c[r].Add(1)
	}
}

// stats returns the board's own counts: all but the trace's.
func (b *board) stats() Stats {
	s := Stats{Exits: make(map[string]uint64), Unclaimed: b.pio.Unclaimed() + b.mmio.Unclaimed()}
	for _, v := range b.vcpus {
		for r := range v.exits {
			if n := v.exits[r].Load(); n > 0 {
				s.Exits[kvm.ExitReason(r).String()] += n
			}
		}
	}
	return s
}

// maxTraced bounds the addresses that a trace counts one by one: the guest chooses them.
const maxTraced = 4096

// trace counts accesses by address. It outlives the boards, so that its bound holds over all resets.
type trace struct {
	mu       sync.Mutex // guards the maps
	accesses map[AccessCount]uint64
	holes    map[AccessCount]uint64
}

func newTrace() *trace {
	return &trace{accesses: make(map[AccessCount]uint64), holes: make(map[AccessCount]uint64)}
}

func (t *trace) add(to map[AccessCount]uint64, c AccessCount, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := to[c]; known || len(to) < maxTraced {
		to[c] += n
	}
}

func (t *trace) port(port uint16, n int) {
	t.add(t.accesses, AccessCount{Addr: uint64(port), Port: true}, uint64(n))
}

func (t *trace) mmio(addr uint64) { t.add(t.accesses, AccessCount{Addr: addr}, 1) }

func (t *trace) unclaimedPort(addr uint64, _ int, _ bool) {
	t.add(t.holes, AccessCount{Addr: addr, Port: true}, 1)
}

func (t *trace) unclaimedMMIO(addr uint64, _ int, _ bool) {
	t.add(t.holes, AccessCount{Addr: addr}, 1)
}

func (t *trace) counts() (ports, mmio, holes []AccessCount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range sortCounts(t.accesses) {
		if c.Port {
			ports = append(ports, c)
		} else {
			mmio = append(mmio, c)
		}
	}
	return ports, mmio, sortCounts(t.holes)
}
