package machine

import (
	"errors"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/internal/timeslice"
	"vmm/kvm"
)

// vcpu is one virtual CPU and the thread that runs it.
type vcpu struct {
	*kvm.VCPU
	board *board
	tid   atomic.Int32 // the thread, once it has started
	exits exitCounters
}

// loop runs the guest until the board stops. The thread is locked and never unlocked, so that it ends with the
// goroutine: KVM ties a vCPU to the thread that ran it last, and moving is slow.
func (v *vcpu) loop() {
	runtime.LockOSThread()
	v.tid.Store(int32(unix.Gettid()))
	var slice timeslice.Slice
	for !v.board.stopping.Load() {
		slice.Renew()
		switch err := v.Run(); {
		case err == nil:
			v.exits.count(v.ExitReason())
			v.handle()
		case errors.Is(err, unix.EINTR):
			// A kick, or a signal of somebody else's. The flag is cleared only here: cleared before KVM_RUN it could
			// wipe out a kick that has just come. Then the loop looks at stopping.
			v.SetImmediateExit(false)
		case errors.Is(err, unix.EAGAIN): // an AP that was woken before its SIPI
		default:
			v.crash(err)
		}
	}
}

// kick makes the vCPU leave the guest and look at the board's stopping flag, which the caller has set.
func (v *vcpu) kick() {
	// The flag stops an entry that is about to happen, the signal ends one that has.
	v.SetImmediateExit(true)
	if tid := v.tid.Load(); tid != 0 {
		// SIGURG is the signal that Go's runtime sends its own threads and ignores. ESRCH: the thread has ended.
		_ = unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// handle does what the guest left KVM for.
func (v *vcpu) handle() {
	b := v.board
	b.com1.drain()
	switch v.ExitReason() {
	case kvm.ExitIO:
		io := v.IO()
		if b.m.trace != nil {
			b.m.trace.port(io.Port, io.Count)
		}
		// A string instruction (rep outsb) comes as one exit with the elements side by side.
		for p := io.Data; len(p) >= io.Size && io.Size > 0; p = p[io.Size:] {
			if io.Write {
				b.pio.Write(uint64(io.Port), p[:io.Size])
			} else {
				b.pio.Read(uint64(io.Port), p[:io.Size])
			}
		}
	case kvm.ExitMMIO:
		mmio := v.MMIO()
		if b.m.trace != nil {
			b.m.trace.mmio(mmio.Addr)
		}
		if mmio.Write {
			b.mmio.Write(mmio.Addr, mmio.Data)
		} else {
			b.mmio.Read(mmio.Addr, mmio.Data)
		}
	case kvm.ExitShutdown:
		b.end(Exit{Reason: Reset, Source: "triple fault"}, nil)
	case kvm.ExitIntr: // a signal came while KVM was on its way out: as EINTR
	default:
		v.crash(nil)
	}
}
