// Package rtc is the real-time clock of a PC: a Motorola MC146818, with its battery-backed RAM (MC146818 data sheet;
// Linux include/linux/mc146818rtc.h). Port 0x70 takes the index of a register, port 0x71 is that register:
//
//	index      register
//	0x00       seconds                0x01  seconds alarm
//	0x02       minutes                0x03  minutes alarm
//	0x04       hours                  0x05  hours alarm
//	0x06       day of the week, 1 is Sunday
//	0x07       day of the month
//	0x08       month
//	0x09       year of the century    0x32  century
//	0x0A       A: 7 UIP (read-only), 6:4 divider, 3:0 periodic rate
//	0x0B       B: 7 SET, 6 PIE, 5 AIE, 4 UIE, 3 SQWE, 2 DM (1 is binary, 0 BCD), 1 24/12, 0 DSE
//	0x0C       C (read-only, and cleared by it): 7 IRQF, 6 PF, 5 AF, 4 UF
//	0x0D       D (read-only): 7 VRT
//	0x0E-0x7F  RAM, but for the century
//
// The time is the host's, in UTC, until the guest sets it; then the guest's clock keeps its distance from the host's,
// which is never touched. The registers change at the end of the update cycle, at the full second, and UIP is set for the
// 2228 µs before. So a guest that found UIP clear has nine times the 244 µs that the data sheet promises: enough to read all
// of the date, though each access is an exit to the monitor.
//
// Deviations:
//   - The day of the week follows from the date; setting it does nothing.
//   - DSE, SQWE and the NMI mask (bit 7 of port 0x70) have no effect: there is no daylight saving time in UTC, and neither a
//     square-wave pin nor a source of NMIs. Of the divider's settings only the two that reset it are told apart.
//   - Periodic interrupts that come before the guest has read register C are lost, as on the chip; at the fast rates a
//     busy host may lose some more.
//   - The RAM starts with zeroes. In particular the firmware's memory sizes and boot order are not in it.
package rtc

import (
	"context"
	"sync"
	"time"

	"vmm/devices"
)

// Where a PC has the clock, and its interrupt.
const (
	Port = 0x70
	Size = 2 // bytes
	IRQ  = 8
	// Century is the index of the century's register, for the FADT's CENTURY.
	Century = 0x32
)

// Config describes an [RTC].
type Config struct {
	// Now is the host's clock. Nil for time.Now.
	Now func() time.Time
	// IRQ is the clock's interrupt line; nil for none.
	IRQ devices.IRQLine
}

// RTC is the clock, a devices.Device of [Size] bytes.
type RTC struct {
	cfg  Config
	wake chan struct{} // tells Serve that its next wake-up may have changed

	// mu guards state. It is held while the interrupt line is driven, so that its levels come in the order of their
	// causes: it is taken before any lock of the interrupt controller.
	mu    sync.Mutex
	state state
}

// New returns a clock that shows the time of cfg.Now in 24-hour BCD form, with no interrupt enabled.
func New(cfg Config) *RTC {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &RTC{cfg: cfg, wake: make(chan struct{}, 1)}
	r.state.ram[regA] = divider32768 | rate1024
	r.state.ram[regB] = b24Hour
	r.state.ram[regD] = dValid
	r.state.seen = r.host()
	return r
}

// Read implements devices.Device. The index at the first port cannot be read back: it gives all ones.
func (r *RTC) Read(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.host()
	r.state.update(now)
	for i := range p {
		p[i] = 0xff
		if off+uint64(i) == 1 {
			p[i] = r.state.read(now)
		}
	}
	r.drive()
}

// Write implements devices.Device. A write of both ports at once selects the register and stores to it.
func (r *RTC) Write(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.host()
	r.state.update(now)
	for i, v := range p {
		if off+uint64(i) == 0 {
			r.state.index = v & 0x7f
		} else {
			r.state.write(now, v)
		}
	}
	r.drive()
	r.kick()
}

// longestWait bounds Serve's sleep, because the host's clock may be set, or stand still with the host asleep, in the
// meantime.
const longestWait = time.Minute

// Serve raises the interrupts that the guest has enabled, until ctx ends. Without it they come at the guest's next access.
func (r *RTC) Serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		if wait, ok := r.poll(); ok {
			timer.Reset(min(wait, longestWait))
		} else {
			timer.Stop()
		}
	}
}

// poll brings the flags up to date, and returns the time until the next interrupt that the guest has enabled.
func (r *RTC) poll() (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.host()
	r.state.update(now)
	r.drive()
	next, ok := r.state.next(now)
	if !ok {
		return 0, false
	}
	// A day's microseconds are the most there can be, so this does not overflow.
	return time.Duration(next-r.state.guest(now)) * time.Microsecond, true
}

// drive sets the interrupt line to what the flags ask for.
func (r *RTC) drive() {
	level := r.state.flags()&cInterrupt != 0
	if level == r.state.line || r.cfg.IRQ == nil {
		return
	}
	r.state.line = level
	// A line fails only once the machine is being torn down, when no guest is left to miss it.
	_ = r.cfg.IRQ.SetLevel(level)
	if !level {
		r.kick() // the next interrupt can come
	}
}

// kick has Serve look again.
func (r *RTC) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// host returns the host's time in microseconds since 1970.
func (r *RTC) host() int64 { return r.cfg.Now().UnixMicro() }
