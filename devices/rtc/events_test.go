package rtc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/devices"
)

func TestUpdateEnded(t *testing.T) {
	r, h, l := newRTC(instant)
	set(r, regB, b24Hour|bUpdate)
	h.advance(99 * time.Millisecond)
	require.Zero(t, get(r, regC)&bUpdate)
	h.advance(time.Millisecond)
	get(r, regD)
	require.True(t, l.level)
	require.Equal(t, byte(cInterrupt|bUpdate), get(r, regC)&(cInterrupt|bUpdate))
	require.False(t, l.level)
	require.Zero(t, get(r, regC))
	h.advance(time.Minute)
	require.NotZero(t, get(r, regC)&bUpdate)
	require.Equal(t, 2, l.rises)
}

func TestFlagsWithoutEnable(t *testing.T) {
	r, h, l := newRTC(instant)
	for _, reg := range []byte{regHoursAlarm, regMinutesAlarm, regSecondsAlarm} {
		set(r, reg, 0xff)
	}
	h.advance(time.Second)
	// Enabling an interrupt whose flag is up raises the line.
	require.False(t, l.level)
	set(r, regB, b24Hour|bAlarm)
	require.True(t, l.level)
	require.Equal(t, byte(cInterrupt|bPeriodic|bAlarm|bUpdate), get(r, regC))
}

func TestNextAlarm(t *testing.T) {
	day := func(h, m, s int) int64 { return time.Date(2026, 3, 31, h, m, s, 0, time.UTC).Unix() }
	for _, tt := range []struct {
		name    string
		b       byte
		h, m, s byte
		from    int64
		want    int64 // zero for never
	}{
		{"exact", b24Hour, 0x12, 0x30, 0x45, day(0, 0, 0), day(12, 30, 45)},
		{"now", b24Hour, 0x12, 0x30, 0x45, day(12, 30, 45), day(12, 30, 45)},
		{"tomorrow", b24Hour, 0x12, 0x30, 0x45, day(12, 30, 46), day(36, 30, 45)},
		{"every second", b24Hour, 0xff, 0xc0, 0xff, day(23, 59, 59), day(23, 59, 59)},
		{"every minute", b24Hour, 0xff, 0xff, 0x00, day(23, 59, 59), day(24, 0, 0)},
		{"every hour", b24Hour, 0xff, 0x10, 0x00, day(5, 10, 1), day(6, 10, 0)},
		{"each second of a minute", b24Hour, 0x05, 0x10, 0xff, day(5, 11, 0), day(29, 10, 0)},
		{"each minute of an hour", b24Hour, 0x05, 0xff, 0x07, day(5, 59, 8), day(29, 0, 7)},
		{"binary", b24Hour | bBinary, 23, 59, 58, day(0, 0, 0), day(23, 59, 58)},
		{"noon", 0, 0x92, 0x00, 0x00, day(0, 0, 0), day(12, 0, 0)},
		{"midnight", 0, 0x12, 0x00, 0x00, day(0, 0, 1), day(24, 0, 0)},
		{"11 PM binary", bBinary, 0x8b, 0, 0, day(0, 0, 0), day(23, 0, 0)},
		{"no such second", b24Hour, 0xff, 0xff, 0x60, day(0, 0, 0), 0},
		{"no such minute", b24Hour, 0xff, 0x7f, 0xff, day(0, 0, 0), 0},
		{"no such hour", b24Hour, 0x24, 0x00, 0x00, day(0, 0, 0), 0},
		{"no BCD", b24Hour, 0x0a, 0x00, 0x00, day(0, 0, 0), 0},
		{"before 1970", b24Hour, 0x12, 0x30, 0x45, -1, 12*3600 + 30*60 + 45},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := state{}
			s.ram[regB], s.ram[regHoursAlarm], s.ram[regMinutesAlarm], s.ram[regSecondsAlarm] = tt.b, tt.h, tt.m, tt.s
			got, ok := s.nextAlarm(tt.from)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.want != 0, ok)
		})
	}
}

func TestAlarmFlag(t *testing.T) {
	r, h, l := newRTC(instant)
	set(r, regHoursAlarm, 0x21)
	set(r, regMinutesAlarm, 0x17)
	set(r, regSecondsAlarm, 0x12)
	set(r, regB, b24Hour|bAlarm)
	h.advance(2 * time.Second) // 21:17:11.9
	require.Zero(t, get(r, regC)&bAlarm)
	h.advance(100 * time.Millisecond)
	require.Equal(t, byte(cInterrupt|bAlarm), get(r, regC)&(cInterrupt|bAlarm))
	h.advance(time.Second)
	require.Zero(t, get(r, regC)&bAlarm)
	// The alarm comes each day, and a long absence does not lose it.
	h.advance(100 * 24 * time.Hour)
	require.Equal(t, byte(cInterrupt|bAlarm), get(r, regC)&(cInterrupt|bAlarm))
	require.False(t, l.level)
}

func TestPeriods(t *testing.T) {
	for rate, want := range []time.Duration{
		0, 3906250, 7812500, 122070, 244140, 488281, 976562, 1953125, 3906250, 7812500, 15625000, 31250000, 62500000,
		125000000, 250000000, 500000000,
	} {
		s := state{}
		s.ram[regA] = 0x20 | byte(rate)
		require.Equal(t, want, time.Duration(s.period())*time.Second/crystal, "rate %d", rate)
		s.ram[regA] = 0x60 | byte(rate)
		require.Zero(t, s.period(), "rate %d, divider in reset", rate)
	}
}

func TestPeriodicFlag(t *testing.T) {
	r, h, _ := newRTC(instant.Truncate(time.Second))
	set(r, regA, 0x2f) // 2 Hz
	set(r, regB, b24Hour|bPeriodic)
	h.advance(499999 * time.Microsecond)
	require.Zero(t, get(r, regC))
	h.advance(time.Microsecond)
	require.Equal(t, byte(cInterrupt|bPeriodic), get(r, regC))
	set(r, regB, b24Hour|bPeriodic|bSet) // halts the time, not the divider
	h.advance(500 * time.Millisecond)
	require.Equal(t, byte(cInterrupt|bPeriodic), get(r, regC))
	set(r, regA, 0x6f)
	h.advance(time.Minute)
	require.Zero(t, get(r, regC))
}

func TestHostClockSetBack(t *testing.T) {
	r, h, _ := newRTC(instant)
	h.advance(-time.Hour)
	require.Zero(t, get(r, regC))
	require.Equal(t, byte(0x20), get(r, regHours))
	h.advance(100 * time.Millisecond)
	require.NotZero(t, get(r, regC)&bUpdate)
}

// guestLine hands each rise of the line to the test, as an interrupt wakes a guest.
type guestLine chan time.Time

func (l guestLine) SetLevel(high bool) error {
	if high {
		l <- time.Now()
	}
	return nil
}

// serve runs r.Serve in a bubble of testing/synctest, where a second is a second of the fake clock.
func serve(t *testing.T, f func(t *testing.T, r *RTC, rises guestLine)) {
	synctest.Test(t, func(t *testing.T) {
		rises := make(guestLine, 1)
		r := New(Config{IRQ: rises})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Serve(ctx); close(done) }()
		f(t, r, rises)
		cancel()
		<-done
	})
}

func TestServeAlarm(t *testing.T) {
	serve(t, func(t *testing.T, r *RTC, rises guestLine) {
		start := time.Now() // midnight
		set(r, regHoursAlarm, 0x07)
		set(r, regMinutesAlarm, 0x30)
		set(r, regSecondsAlarm, 0x15)
		set(r, regB, b24Hour|bAlarm)
		require.Equal(t, 7*time.Hour+30*time.Minute+15*time.Second, (<-rises).Sub(start))
		require.Equal(t, byte(cInterrupt|bAlarm), get(r, regC)&(cInterrupt|bAlarm))
		require.Equal(t, 31*time.Hour+30*time.Minute+15*time.Second, (<-rises).Sub(start))
	})
}

func TestServeUpdate(t *testing.T) {
	serve(t, func(t *testing.T, r *RTC, rises guestLine) {
		start := time.Now()
		set(r, regB, b24Hour|bUpdate)
		for i := range 3 {
			require.Equal(t, time.Duration(i+1)*time.Second, (<-rises).Sub(start))
			require.NotZero(t, get(r, regC)&cInterrupt)
		}
		// Nothing comes until the guest has read register C, and nothing after it has switched the interrupt off.
		require.Equal(t, 4*time.Second, (<-rises).Sub(start))
		time.Sleep(time.Hour)
		require.Empty(t, rises)
		set(r, regB, b24Hour)
		get(r, regC)
		time.Sleep(time.Hour)
		require.Empty(t, rises)
	})
}

func TestServePeriodic(t *testing.T) {
	serve(t, func(t *testing.T, r *RTC, rises guestLine) {
		start := time.Now()
		set(r, regA, 0x23) // 8192 Hz
		set(r, regB, b24Hour|bPeriodic)
		for range 8192 {
			<-rises
			get(r, regC)
		}
		require.Equal(t, time.Second, time.Since(start))
		set(r, regB, b24Hour)
		synctest.Wait()
		require.Empty(t, rises)
	})
}

// FuzzRTC lets a guest do anything, with any delay between two accesses.
func FuzzRTC(f *testing.F) {
	f.Add([]byte{0x00, 0x8b, 0x01, 0x12, 0x00, 0x05, 0x01, 0xff, 0x03, 0x09})
	f.Add([]byte{0x02, 0x0b, 0x02, 0x84, 0x02, 0x32, 0x02, 0xff, 0x02, 0x0a, 0x02, 0x70, 0x0b, 0x20})
	f.Fuzz(func(t *testing.T, ops []byte) {
		h, l := &host{instant}, &line{}
		r := New(Config{Now: h.now, IRQ: l})
		var bus devices.Bus
		require.NoError(t, bus.Add("rtc", Port, Size, r))
		for len(ops) >= 3 {
			op, a, b := ops[0], ops[1], ops[2]
			ops = ops[3:]
			switch op % 5 {
			case 0:
				bus.Write(Port, []byte{a})
				bus.Write(Port+1, []byte{b})
			case 1:
				bus.Write(Port, []byte{a, b})
			case 2:
				bus.Write(Port, []byte{a})
				bus.Read(Port, make([]byte, 1+b%2))
			case 3:
				h.advance(time.Duration(a) << (b % 45))
			case 4:
				h.advance(-time.Duration(a) << (b % 45))
			}
			s := &r.state
			now := r.host()
			if !s.halted() {
				year := time.UnixMicro(s.guest(now)).UTC().Year()
				require.True(t, year > -1000 && year < 30000, "year %d", year)
			}
			require.Equal(t, s.flags()&cInterrupt != 0, l.level)
			s.update(now)
			if at, ok := s.next(now); ok {
				require.Greater(t, at, s.guest(now))
				require.LessOrEqual(t, at, s.guest(now)+24*3600*second)
			}
			r.drive()
			require.Equal(t, byte(dValid), get(r, regD))
			if !s.halted() && s.ram[regB]&(bBinary|b24Hour) == b24Hour {
				require.LessOrEqual(t, get(r, regSeconds), byte(0x59))
				require.LessOrEqual(t, get(r, regHours), byte(0x23))
			}
		}
	})
}
