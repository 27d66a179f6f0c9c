package measure

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseEvent(t *testing.T) {
	for line, want := range map[string]event{
		"            vmm-2289    [001] .....  5778.989069: sys_ioctl(fd: 0xc, cmd: 0xae80, arg: 0)": {
			2289, 5778.989069, "sys_ioctl", "fd: 0xc, cmd: 0xae80, arg: 0)",
		},
		"     CPU 0/KVM-17      [000] d..2.     1.000001: kvm_userspace_exit: reason KVM_EXIT_IO (2)": {
			17, 1.000001, "kvm_userspace_exit", " reason KVM_EXIT_IO (2)",
		},
		"           <...>-4711  [000] ..... 12.5: tracing_mark_write: end": {4711, 12.5, marker, " end"},
	} {
		got, err := parseEvent(line)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestParseEventLost(t *testing.T) {
	for _, line := range []string{"CPU:1 [LOST 77 EVENTS]", "", "vmm-1 [000] ..... x: a: b", "vmm-1 [000] ..... 1.0: "} {
		_, err := parseEvent(line)
		require.ErrorContains(t, err, "line of the trace")
	}
}

// TestExitCounter has two vCPUs whose events are mixed, and accesses that KVM itself answers.
func TestExitCounter(t *testing.T) {
	const (
		out3f8 = " vcpu 0 reason io rip 0x1 info1 0x0000000003f80210 info2 0x0 intr_info 0x0 error_code 0x0"
		in40   = " vcpu 0 reason io rip 0x1 info1 0x0000000000400211 info2 0x0 intr_info 0x0 error_code 0x0"
	)
	c := newExitCounter()
	for _, e := range []event{
		{thread: 1, name: "kvm_exit", args: in40}, // the PIT is KVM's
		{thread: 1, name: "kvm_exit", args: out3f8},
		{thread: 2, name: "kvm_mmio", args: " mmio unsatisfied-read len 4 gpa 0xb0000010 val 0x0"},
		{thread: 1, name: "kvm_userspace_exit", args: " reason KVM_EXIT_IO (2)"},
		{thread: 2, name: "kvm_userspace_exit", args: " reason KVM_EXIT_MMIO (6)"},
		{thread: 2, name: "kvm_userspace_exit", args: " reason restart (4)"},
	} {
		require.NoError(t, c.count(e))
	}
	require.Equal(t, Exits{
		Total:   3,
		Reasons: map[string]int{"IO": 1, "MMIO": 1, "restart": 1},
		Places:  map[string]int{"port 0x3f8": 1, "page 0xb0000000": 1},
	}, c.exits)
	require.Error(t, c.count(event{name: "kvm_exit", args: " vcpu 0 reason io"}))
	require.Error(t, c.count(event{name: "kvm_mmio", args: " mmio write"}))
}

func TestSize(t *testing.T) {
	const smaps = `00400000-00500000 r-xp 00000000 00:1f 1 /usr/local/bin/vmm
Size:               1024 kB
Rss:                 800 kB
Pss:                 400 kB
VmFlags: rd ex mr
40000000-80000000 rw-p 00000000 00:00 0
Size:            1048576 kB
Rss:               20000 kB
Pss:               20000 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                 300 kB
Pss:                 300 kB
c000400000-c004000000 ---p 00000000 00:00 0
Rss:                   0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Rss:                  12 kB
Pss:                  12 kB
`
	s := Size{Parts: map[string]uint64{}}
	require.NoError(t, s.add(strings.NewReader(smaps), 1<<30))
	require.Equal(t, Size{
		RSS: 1112 << 10, PSS: 712 << 10, Guest: 20000 << 10,
		Parts: map[string]uint64{"vmm": 800 << 10, "anonymous": 300 << 10, "[stack]": 12 << 10},
	}, s)
}
