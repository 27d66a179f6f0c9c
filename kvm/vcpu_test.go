package kvm

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// patience is for what should happen at once.
const patience = time.Minute

// A thread runs a vCPU to its first exit, and can be kicked out of the guest before.
type thread struct {
	cpu    *VCPU
	tid    int
	kicked atomic.Bool
	kicks  chan bool  // the thread receives from it at each kick: whether to run on
	done   chan error // how the thread ended
}

func start(c *VCPU) *thread {
	th := &thread{cpu: c, kicks: make(chan bool), done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		th.tid = unix.Gettid()
		close(ready)
		th.done <- th.loop()
	}()
	<-ready
	return th
}

func (th *thread) loop() error {
	for {
		switch err := th.cpu.Run(); {
		case errors.Is(err, unix.EINTR):
			th.cpu.SetImmediateExit(false)
			if th.kicked.Swap(false) && !<-th.kicks {
				return nil
			}
		case errors.Is(err, unix.EAGAIN):
		default:
			return err
		}
	}
}

// kick makes the vCPU leave the guest, and then run on or end.
func (th *thread) kick(t *testing.T, runOn bool) {
	t.Helper()
	th.kicked.Store(true)
	th.cpu.SetImmediateExit(true)
	require.NoError(t, unix.Tgkill(unix.Getpid(), th.tid, unix.SIGURG))
	select {
	case th.kicks <- runOn:
	case err := <-th.done:
		require.Fail(t, "the guest ended", "%v, %v", err, th.cpu.ExitReason())
	case <-time.After(patience):
		require.Fail(t, "the kick is lost")
	}
}

// wait waits for the end of the thread.
func (th *thread) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-th.done:
		require.NoError(t, err)
	case <-time.After(patience):
		require.Fail(t, "the vcpu does not exit")
	}
}

// TestKick stops a guest that never exits by itself, at whatever point its thread is: in the guest, before KVM_RUN, or
// after it.
func TestKick(t *testing.T) {
	g := boot(t, []byte{
		0xEB, 0xFE, // jmp to itself
	})
	th := start(g.cpu)
	for range 2000 {
		th.kick(t, true)
	}
	th.kick(t, false)
	th.wait(t)
	r, err := g.cpu.GetRegs()
	require.NoError(t, err)
	require.EqualValues(t, codeAddr, r.RIP)
}

// TestKickWaiting kicks a vCPU that waits for its start-up, as all but the first do until the guest starts them.
func TestKickWaiting(t *testing.T) {
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	g.createVCPU(t, 0)
	th := start(g.createVCPU(t, 1))
	for range 100 {
		th.kick(t, true)
	}
	th.kick(t, false)
	th.wait(t)
}

// TestImmediateExit shows that it does complete the access of the exit before.
func TestImmediateExit(t *testing.T) {
	g := boot(t, []byte{
		0xE4, 0x80, // in al, 0x80
		0xF4, //       hlt
	})
	g.run(t, ExitIO)
	g.cpu.IO().Data[0] = 0x42
	g.cpu.SetImmediateExit(true)
	require.Equal(t, unix.EINTR, g.cpu.Run())
	require.Equal(t, unix.EINTR, g.cpu.Run(), "it holds until it is reset")
	r, err := g.cpu.GetRegs()
	require.NoError(t, err)
	require.EqualValues(t, 0x42, r.RAX&0xFF)
	require.EqualValues(t, codeAddr+2, r.RIP)
	g.cpu.SetImmediateExit(false)
	g.run(t, ExitHLT)
}

// TestSMP starts a second vCPU as an operating system does: INIT, then a start-up message with its page.
func TestSMP(t *testing.T) {
	const page = 8 // the start-up vector: the code is at page<<12, in real mode
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	g.load(t, []byte{
		0xC7, 0x05, 0xF0, 0x00, 0xE0, 0xFE, 0xFF, 0x01, 0x00, 0x00, // mov dword [0xfee000f0], 0x1ff: APIC on
		0xC7, 0x05, 0x10, 0x03, 0xE0, 0xFE, 0x00, 0x00, 0x00, 0x01, // mov dword [0xfee00310], 1<<24: to APIC 1
		0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, 0x00, 0x45, 0x00, 0x00, // mov dword [0xfee00300], INIT
		0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, page, 0x46, 0x00, 0x00, // mov dword [0xfee00300], SIPI | page
		0xE6, 0x10, //                                                 out 0x10, al
	})
	g.protect(t)
	copy(g.ram[page<<12:], []byte{
		0xB0, 0x77, // mov al, 0x77
		0xE6, 0x11, // out 0x11, al
	})
	ap := g.createVCPU(t, 1)
	require.Equal(t, 1, ap.ID())
	state, err := ap.GetMPState()
	require.NoError(t, err)
	require.Equal(t, MPUninitialized, state)

	started := start(ap)
	g.run(t, ExitIO)
	require.EqualValues(t, 0x10, g.cpu.IO().Port)
	started.wait(t)
	require.Equal(t, ExitIO, ap.ExitReason())
	require.Equal(t, IO{Write: true, Size: 1, Port: 0x11, Count: 1, Data: []byte{0x77}}, ap.IO())
	s, err := ap.GetSregs()
	require.NoError(t, err)
	require.EqualValues(t, page<<8, s.CS.Selector)
}

func TestRegisters(t *testing.T) {
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	c := g.createVCPU(t, 0)

	regs := Regs{RAX: 1, RBX: 2, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RSP: 7, RBP: 8, R8: 9, R9: 10, R10: 11, R11: 12, R12: 13,
		R13: 14, R14: 15, R15: 16, RIP: 17, RFLAGS: 2}
	require.NoError(t, c.SetRegs(&regs))
	gotRegs, err := c.GetRegs()
	require.NoError(t, err)
	require.Equal(t, regs, gotRegs)

	sregs, err := c.GetSregs()
	require.NoError(t, err)
	require.EqualValues(t, 0xFFFF_0000, sregs.CS.Base, "the reset vector")
	sregs.GDT = DTable{Base: 0x1234_5000, Limit: 0x67}
	sregs.CR2 = 0x89AB
	require.NoError(t, c.SetSregs(&sregs))
	gotSregs, err := c.GetSregs()
	require.NoError(t, err)
	require.Equal(t, sregs, gotSregs)

	fpu, err := c.GetFPU()
	require.NoError(t, err)
	fpu.FCW, fpu.XMM[15][15] = 0x27F, 0xA5
	require.NoError(t, c.SetFPU(&fpu))
	gotFPU, err := c.GetFPU()
	require.NoError(t, err)
	require.Equal(t, fpu, gotFPU)

	events, err := c.GetVCPUEvents()
	require.NoError(t, err)
	require.Zero(t, events.Exception.Injected)

	require.NoError(t, c.SetMPState(MPHalted))
	state, err := c.GetMPState()
	require.NoError(t, err)
	require.Equal(t, MPHalted, state)

	khz, err := c.TSCKHz()
	require.NoError(t, err)
	require.Positive(t, khz)
	require.NoError(t, c.SetTSCKHz(khz))

	require.ErrorIs(t, c.KVMClockCtrl(), unix.EINVAL, "the guest has no kvmclock")
}

func TestMSRs(t *testing.T) {
	const (
		sysenterCS  = 0x174
		sysenterESP = 0x175
		efer        = 0xC000_0080
	)
	g := setup(t)
	c := g.createVCPU(t, 0)
	n, err := c.SetMSRs([]MSREntry{
		{Index: sysenterCS, Data: 0x10},
		{Index: efer, Data: ^uint64(0)}, // reserved bits
		{Index: sysenterESP, Data: 0x20},
	})
	require.NoError(t, err)
	require.Equal(t, 1, n, "KVM stops at the refused one")

	got, err := c.GetMSRs(sysenterCS, sysenterESP)
	require.NoError(t, err)
	require.Equal(t, []MSREntry{{Index: sysenterCS, Data: 0x10}, {Index: sysenterESP}}, got)

	n, err = c.SetMSRs(nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestCPUID(t *testing.T) {
	sys := openSystem(t)
	supported, err := sys.SupportedCPUID()
	require.NoError(t, err)
	require.EqualValues(t, 0, supported[0].Function)
	require.NotZero(t, supported[0].EBX, "the vendor")

	g := boot(t, []byte{
		0x66, 0x31, 0xC0, //                         xor eax, eax
		0x0F, 0xA2, //                               cpuid
		0xF4, //                                     hlt
	})
	vendor := CPUIDEntry{Function: 0, EAX: 1, EBX: 0x1111, ECX: 0x2222, EDX: 0x3333}
	require.NoError(t, g.cpu.SetCPUID2(append([]CPUIDEntry{vendor}, supported[1:]...)))
	g.run(t, ExitHLT)
	r, err := g.cpu.GetRegs()
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 0x1111, 0x2222, 0x3333}, []uint64{r.RAX, r.RBX, r.RCX, r.RDX})

	require.ErrorIs(t, g.cpu.SetCPUID2(make([]CPUIDEntry, 1<<16)), unix.E2BIG)
}
