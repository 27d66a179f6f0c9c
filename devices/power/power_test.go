package power

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/devices"
)

// line is an interrupt line that a test looks at.
type line struct{ level bool }

func (l *line) SetLevel(high bool) error { l.level = high; return nil }

// fixture is a controller with its clock, its line, and the count of its callbacks.
type fixture struct {
	*Controller
	now          time.Duration
	sci          line
	offs, resets int
}

func newFixture() *fixture {
	f := &fixture{}
	f.Controller = New(Config{
		SCI:        &f.sci,
		OnPowerOff: func() { f.unlocked(); f.offs++ },
		OnReset:    func() { f.unlocked(); f.resets++ },
		Now:        func() time.Duration { return f.now },
	})
	return f
}

// unlocked panics where a callback runs with the lock held.
func (f *fixture) unlocked() {
	if !f.mu.TryLock() {
		panic("callback with the lock held")
	}
	f.mu.Unlock()
}

func (f *fixture) read(off uint64, n int) uint32 {
	var b [4]byte
	f.Read(off, b[:n])
	return binary.LittleEndian.Uint32(b[:])
}

func (f *fixture) write(off uint64, n int, v uint32) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	f.Write(off, b[:n])
}

func TestWritableBits(t *testing.T) {
	for _, tt := range []struct {
		name        string
		off         uint64
		n           int
		write, want uint32
	}{
		{"status", EventOffset, 2, 0xffff, 0},
		{"enable", enableOffset, 2, 0xffff, 0x0721},
		{"enable, low byte", enableOffset, 1, 0xff, 0x21},
		{"enable, high byte", enableOffset + 1, 1, 0xff, 0x07},
		{"status and enable", EventOffset, 4, 0xffffffff, 0x07210000},
		{"control", ControlOffset, 2, 0xdfff, 0x1c03}, // without SLP_EN
		{"control cleared", ControlOffset, 2, 0, 0x0001},
		{"control, high byte", ControlOffset + 1, 1, 0x14, 0x14},
		{"control and gap", ControlOffset, 4, 0xffffdfff, 0x1c03},
		{"timer", TimerOffset, 4, 0xffffffff, 0},
		{"reset", ResetOffset, 1, 0xff, 0},
		{"after reset", ResetOffset + 1, 2, 0xffff, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			f.write(tt.off, tt.n, tt.write)
			require.Equal(t, tt.want, f.read(tt.off, tt.n))
			require.Zero(t, f.offs)
			require.Zero(t, f.resets)
		})
	}
}

func TestEveryWidthReadsTheSame(t *testing.T) {
	f := newFixture()
	f.now = 1234567 * time.Microsecond
	f.write(enableOffset, 2, eventPowerButton|eventGlobal)
	f.PressPowerButton()
	f.write(ControlOffset, 2, SleepTypeS5<<controlSleepTypeShift)
	var whole [BlockSize]byte
	f.Read(0, whole[:])
	require.Equal(t, [BlockSize]byte{0x00, 0x01, 0x20, 0x01, 0x01, 0x14, 0, 0, 0x74, 0x6e, 0x43, 0x00}, whole)
	for _, n := range []int{1, 2, 4, 8} {
		for off := 0; off+n <= BlockSize; off++ {
			p := make([]byte, n)
			f.Read(uint64(off), p)
			require.Equal(t, whole[off:off+n], p, "%d bytes at %#x", n, off)
		}
	}
}

func TestPowerButton(t *testing.T) {
	f := newFixture()
	f.PressPowerButton()
	require.False(t, f.sci.level, "not enabled")
	require.EqualValues(t, eventPowerButton, f.read(EventOffset, 2))

	f.write(enableOffset, 2, eventPowerButton)
	require.True(t, f.sci.level)
	f.write(EventOffset, 2, 0)
	require.True(t, f.sci.level, "writing zeroes clears nothing")
	f.write(EventOffset, 2, 0xffff&^eventPowerButton)
	require.True(t, f.sci.level, "nor do ones elsewhere")
	f.write(EventOffset+1, 1, eventPowerButton>>8)
	require.False(t, f.sci.level)
	require.Zero(t, f.read(EventOffset, 2))

	f.PressPowerButton()
	require.True(t, f.sci.level)
	f.write(enableOffset, 2, 0)
	require.False(t, f.sci.level)
}

func TestSleep(t *testing.T) {
	for _, tt := range []struct {
		name   string
		off    uint64
		n      int
		write  uint32
		offs   int
		status uint32
	}{
		{"S5", ControlOffset, 2, SleepTypeS5<<10 | controlSleepEnable, 1, 0},
		{"S5 by byte", ControlOffset + 1, 1, SleepTypeS5<<2 | controlSleepEnable>>8, 1, 0},
		{"S5 by four bytes", ControlOffset, 4, SleepTypeS5<<10 | controlSleepEnable | controlSCIEnable, 1, 0},
		{"S5 from two registers on", ControlOffset - 1, 4, (SleepTypeS5<<10 | controlSleepEnable) << 8, 1, 0},
		{"S1", ControlOffset, 2, 1<<10 | controlSleepEnable, 0, statusWake},
		{"no SLP_EN", ControlOffset, 2, SleepTypeS5 << 10, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			f.write(tt.off, tt.n, tt.write)
			require.Equal(t, tt.offs, f.offs)
			require.Zero(t, f.read(ControlOffset, 2)&controlSleepEnable)
			require.Equal(t, tt.status, f.read(EventOffset, 2))
			require.False(t, f.sci.level)
		})
	}
}

func TestResetRegister(t *testing.T) {
	f := newFixture()
	f.write(ResetOffset, 1, ResetValue+1)
	f.write(ResetOffset+1, 1, ResetValue)
	require.Zero(t, f.resets)
	f.write(ResetOffset, 1, ResetValue)
	require.Equal(t, 1, f.resets)
	f.write(ResetOffset, 4, ResetValue)
	require.Equal(t, 2, f.resets)
	require.Zero(t, f.offs)
}

func TestInitialState(t *testing.T) {
	f := newFixture()
	require.False(t, f.sci.level)
	require.Zero(t, f.read(EventOffset, 4))
	require.Equal(t, uint32(controlSCIEnable), f.read(ControlOffset, 2))
	require.Zero(t, f.read(TimerOffset, 4))
}

func TestTimer(t *testing.T) {
	for _, tt := range []struct {
		now  time.Duration
		want uint32
	}{
		{0, 0},
		{279, 0},
		{280, 1},
		{time.Second - 1, 3579544},
		{time.Second, 3579545},
		{time.Minute + 500*time.Millisecond, 216562472},
		{1200 * time.Second, 486704},             // after 2^32 ticks
		{100 * 365 * 24 * time.Hour, 0xcdcdee00}, // far beyond any overflow
		{1<<63 - 1, 0x5ad2df60},                  // the longest Duration
	} {
		f := newFixture()
		f.now = tt.now
		require.Equal(t, tt.want, f.read(TimerOffset, 4), "%d ns", tt.now)
	}
}

func TestTimerCarry(t *testing.T) {
	// The first tick after the change of the top bit, and the nanosecond before it.
	carry := time.Duration(599932015941)
	f := newFixture()
	f.write(enableOffset, 2, eventTimer)
	f.now = carry - 1
	require.Zero(t, f.read(EventOffset, 2))
	require.Equal(t, uint32(0x7fffffff), f.read(TimerOffset, 4))
	f.now = carry
	require.Equal(t, uint32(0x80000000), f.read(TimerOffset, 4))
	require.EqualValues(t, eventTimer, f.read(EventOffset, 2))
	require.True(t, f.sci.level)
	f.write(EventOffset, 2, eventTimer)
	require.False(t, f.sci.level)
	require.Zero(t, f.read(EventOffset, 2))
	f.now = 2*carry + 1 // the bit changes back
	require.EqualValues(t, eventTimer, f.read(EventOffset, 2))
}

func TestTimerStartsAfterOldCarries(t *testing.T) {
	c := New(Config{Now: func() time.Duration { return time.Hour }})
	p := make([]byte, 2)
	c.Read(EventOffset, p)
	require.Zero(t, p[0])
}

// guestLine hands each rise of the SCI to the test.
type guestLine chan time.Time

func (l guestLine) SetLevel(high bool) error {
	if high {
		l <- time.Now()
	}
	return nil
}

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rises := make(guestLine, 1)
		c := New(Config{SCI: rises})
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Serve(ctx); close(done) }()

		c.Write(enableOffset, []byte{eventTimer, 0})
		for n := range 3 {
			// Serve may be late by a tick, and by the rounding.
			require.InDelta(t, float64(n+1)*599932015941, float64((<-rises).Sub(start)), 2*280)
			c.Write(EventOffset, []byte{eventTimer, 0})
		}
		c.Write(enableOffset, []byte{0, 0})
		time.Sleep(time.Hour)
		require.Empty(t, rises)

		cancel()
		<-done
	})
}

// TestConcurrent has meaning under the race detector.
func TestConcurrent(t *testing.T) {
	f := newFixture()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				f.write(EventOffset, 4, 0xffffffff)
				f.PressPowerButton()
				f.read(EventOffset, 4)
				f.read(TimerOffset, 4)
			}
		})
	}
	wg.Wait()
	require.True(t, f.sci.level)
}

func TestNoCallbacks(t *testing.T) {
	c := New(Config{})
	require.NotPanics(t, func() {
		c.PressPowerButton()
		c.Write(enableOffset, []byte{0xff, 0xff})
		c.Write(ControlOffset, []byte{0, 0xff})
		c.Write(ControlOffset, []byte{0, SleepTypeS5<<2 | controlSleepEnable>>8})
		c.Write(ResetOffset, []byte{ResetValue})
	})
}

func FuzzPower(f *testing.F) {
	f.Add([]byte{0, 2, 0xff, 3, 0, 1, 4, 0, 5, 0x34, 1, 0, 2, 12, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		f := newFixture()
		var bus devices.Bus
		require.NoError(t, bus.Add("power", 0x600, BlockSize, f.Controller))
		for len(ops) >= 3 {
			op, off, v := ops[0], uint64(ops[1]%BlockSize), ops[2]
			ops = ops[3:]
			p := []byte{v, v + 1, v >> 1, ^v}[:1<<(op>>4%3)]
			switch op % 4 {
			case 0:
				bus.Write(0x600+off, p)
			case 1:
				bus.Read(0x600+off, p)
			case 2:
				f.PressPowerButton()
			case 3:
				f.now += time.Duration(v) << (off * 2)
			}
			status, enable := f.read(EventOffset, 2), f.read(enableOffset, 2)
			require.Equal(t, status&enable&enableWritable != 0, f.sci.level)
			require.Zero(t, status&^(eventTimer|eventPowerButton|statusWake))
			require.Zero(t, enable&^enableWritable)
			require.Equal(t, uint32(controlSCIEnable), f.read(ControlOffset, 2)&^controlWritable)
			if f.offs+f.resets > 0 {
				return // the machine is no more
			}
		}
	})
}
