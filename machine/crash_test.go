package machine

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/kvm"
)

var update = flag.Bool("update", false, "write the golden files")

func TestCrashErrorDetail(t *testing.T) {
	e := &CrashError{
		CPU:         3,
		What:        "KVM internal error: emulation failure",
		Instruction: []byte{0x0f, 0xc7, 0x0f},
		Diagnosis:   "the host cannot run it",
		Regs: &kvm.Regs{
			RAX: 0x01, RBX: 0x02, RCX: 0x03, RDX: 0x04, RSI: 0x05, RDI: 0x06, RBP: 0x07, RSP: 0x08,
			R8: 0x09, R9: 0x0a, R10: 0x0b, R11: 0x0c, R12: 0x0d, R13: 0x0e, R14: 0x0f, R15: 0x10,
			RIP: 0xffff_ffff_8100_0000, RFLAGS: 0x246,
		},
		Sregs: &kvm.Sregs{
			CS:  kvm.Segment{Selector: 0x10, Limit: 0xffff_ffff, Type: 0xb, Present: 1, L: 1},
			DS:  kvm.Segment{Selector: 0x18, Base: 0x1234, Limit: 0xffff, Type: 3, DPL: 3, Present: 1, DB: 1},
			SS:  kvm.Segment{Selector: 0x20, Type: 3, Present: 1},
			TR:  kvm.Segment{Selector: 0x40, Base: 0xffff_fe00_0000_3000, Limit: 0x206f, Type: 0xb},
			GDT: kvm.DTable{Base: 0xffff_fe00_0000_1000, Limit: 0x7f},
			IDT: kvm.DTable{Base: 0xffff_fe00_0000_0000, Limit: 0xfff},
			CR0: 0x8005_0033, CR2: 0xdead, CR3: 0x261_0000, CR4: 0x3506f0, EFER: 0xd01,
		},
	}
	require.Equal(t, "vCPU 3: KVM internal error: emulation failure at RIP 0xffffffff81000000: the host cannot run it", e.Error())
	const golden = "testdata/crash.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(e.Detail()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), e.Detail())
}

func TestCrashErrorWithoutRegisters(t *testing.T) {
	e := &CrashError{CPU: 1, What: "KVM_RUN failed: bad address", Err: unix.EFAULT}
	require.Equal(t, "vCPU 1: KVM_RUN failed: bad address", e.Error())
	require.Empty(t, e.Detail())
	require.ErrorIs(t, e, unix.EFAULT)
}
