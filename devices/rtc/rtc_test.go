package rtc

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// host is a clock in the hands of a test.
type host struct{ t time.Time }

func (h *host) now() time.Time          { return h.t }
func (h *host) advance(d time.Duration) { h.t = h.t.Add(d) }

// line counts the edges of an interrupt line.
type line struct {
	level bool
	rises int
}

func (l *line) SetLevel(high bool) error {
	if high && !l.level {
		l.rises++
	}
	l.level = high
	return nil
}

// get and set are what a guest does to get at a register.
func get(r *RTC, reg byte) byte {
	r.Write(0, []byte{reg})
	p := []byte{0}
	r.Read(1, p)
	return p[0]
}

func set(r *RTC, reg, v byte) {
	r.Write(0, []byte{reg})
	r.Write(1, []byte{v})
}

var date = []byte{regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, Century}

func getDate(r *RTC) []byte {
	var out []byte
	for _, reg := range date {
		out = append(out, get(r, reg))
	}
	return out
}

// instant is the moment that tests start from: the last tenth of the second before 2026-11-23 21:17:10 UTC, a Monday.
var instant = time.Date(2026, 11, 23, 21, 17, 9, 900_000_000, time.UTC)

func newRTC(t time.Time) (*RTC, *host, *line) {
	h, l := &host{t}, &line{}
	return New(Config{Now: h.now, IRQ: l}), h, l
}

func TestInitialRegisters(t *testing.T) {
	r, _, l := newRTC(instant)
	for reg, want := range map[byte]byte{
		regSeconds: 0x09, regMinutes: 0x17, regHours: 0x21, regWeekday: 0x02, regDay: 0x23, regMonth: 0x11, regYear: 0x26,
		Century: 0x20, regA: 0x26, regB: 0x02, regC: 0x00, regD: 0x80, 0x0e: 0x00, 0x7f: 0x00,
	} {
		require.Equal(t, want, get(r, reg), "register %#x", reg)
	}
	require.False(t, l.level)
}

func TestDateForms(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2000, 2, 29, hour, 59, 58, 0, time.UTC) }
	for _, tt := range []struct {
		name string
		b    byte
		hour int
		want []byte // in the order of date; a Tuesday
	}{
		{"BCD, 24 hours", b24Hour, 21, []byte{0x58, 0x59, 0x21, 3, 0x29, 0x02, 0x00, 0x20}},
		{"binary, 24 hours", b24Hour | bBinary, 21, []byte{58, 59, 21, 3, 29, 2, 0, 20}},
		{"BCD, midnight", 0, 0, []byte{0x58, 0x59, 0x12, 3, 0x29, 0x02, 0x00, 0x20}},
		{"BCD, 1 AM", 0, 1, []byte{0x58, 0x59, 0x01, 3, 0x29, 0x02, 0x00, 0x20}},
		{"BCD, 11 AM", 0, 11, []byte{0x58, 0x59, 0x11, 3, 0x29, 0x02, 0x00, 0x20}},
		{"BCD, noon", 0, 12, []byte{0x58, 0x59, 0x92, 3, 0x29, 0x02, 0x00, 0x20}},
		{"BCD, 11 PM", 0, 23, []byte{0x58, 0x59, 0x91, 3, 0x29, 0x02, 0x00, 0x20}},
		{"binary, 11 PM", bBinary, 23, []byte{58, 59, 0x8b, 3, 29, 2, 0, 20}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _, _ := newRTC(at(tt.hour))
			set(r, regB, tt.b)
			require.Equal(t, tt.want, getDate(r))

			// The same bytes, written to a clock that shows some other time, set it to this one.
			other, h, _ := newRTC(time.Date(1999, 12, 31, 23, 0, 0, 0, time.UTC))
			before := h.t
			set(other, regB, tt.b|bSet)
			for i, reg := range date {
				set(other, reg, tt.want[i])
			}
			set(other, regB, tt.b)
			require.Equal(t, tt.want, getDate(other))
			require.Equal(t, before, h.t)
			require.Equal(t, at(tt.hour).UnixMicro(), other.state.guest(other.host()))
			h.advance(2 * time.Second)
			require.Equal(t, at(tt.hour).Add(2*time.Second).UnixMicro(), other.state.guest(other.host()))
		})
	}
}

func TestHostZoneDoesNotMatter(t *testing.T) {
	r, h, _ := newRTC(instant)
	want := getDate(r)
	h.t = instant.In(time.FixedZone("", 5*3600))
	require.Equal(t, want, getDate(r))
}

func TestEveryHourRoundTrips(t *testing.T) {
	for _, b := range []byte{0, bBinary, b24Hour, b24Hour | bBinary} {
		s := state{}
		s.ram[regB] = b
		for h := range 24 {
			require.Equal(t, h, s.decodeHour(s.encodeHour(h)), "register B %#x", b)
		}
	}
}

func TestSetStopsTheTime(t *testing.T) {
	r, h, _ := newRTC(instant)
	before := getDate(r)
	set(r, regB, b24Hour|bSet)
	h.advance(time.Hour)
	require.Equal(t, before, getDate(r))
	require.Zero(t, get(r, regA)&aUpdating)
	require.Zero(t, get(r, regC)&(bAlarm|bUpdate))
	set(r, regB, b24Hour)
	require.Equal(t, before, getDate(r))

	// The fraction of the second was kept, though the hour was lost.
	h.advance(99 * time.Millisecond)
	require.Equal(t, byte(0x09), get(r, regSeconds))
	h.advance(time.Millisecond)
	require.Equal(t, byte(0x10), get(r, regSeconds))
}

func TestWriteToRunningClock(t *testing.T) {
	r, h, _ := newRTC(instant)
	set(r, regHours, 0x07)
	require.Equal(t, []byte{0x09, 0x17, 0x07, 0x02, 0x23, 0x11, 0x26, 0x20}, getDate(r))
	h.advance(100 * time.Millisecond)
	require.Equal(t, []byte{0x10, 0x17, 0x07, 0x02, 0x23, 0x11, 0x26, 0x20}, getDate(r))
}

// TestLinuxSetsTime does what Linux's mc146818_set_time does: the next second begins half a second after the divider
// was let go.
func TestLinuxSetsTime(t *testing.T) {
	r, h, _ := newRTC(instant)
	b := get(r, regB)
	set(r, regB, b|bSet)
	a := get(r, regA)
	set(r, regA, a|0x70)
	for i, v := range []byte{0x59, 0x59, 0x23, 0x01, 0x28, 0x02, 0x24, 0x20} {
		set(r, date[i], v)
	}
	set(r, regB, b)
	h.advance(3 * time.Second) // the divider still stands
	require.Equal(t, byte(0x59), get(r, regSeconds))
	set(r, regA, a)

	h.advance(499 * time.Millisecond)
	require.Equal(t, byte(0x59), get(r, regSeconds))
	require.Equal(t, a|aUpdating, get(r, regA))
	h.advance(time.Millisecond)
	require.Equal(t, []byte{0x00, 0x00, 0x00, 0x05, 0x29, 0x02, 0x24, 0x20}, getDate(r))
	require.Equal(t, a, get(r, regA))
}

func TestDividerReleasedUnderSet(t *testing.T) {
	r, h, _ := newRTC(instant)
	set(r, regB, b24Hour|bSet)
	set(r, regA, 0x66)
	set(r, regA, 0x26)
	h.advance(300 * time.Millisecond)
	set(r, regB, b24Hour)
	h.advance(199 * time.Millisecond)
	require.Equal(t, byte(0x09), get(r, regSeconds))
	h.advance(time.Millisecond)
	require.Equal(t, byte(0x10), get(r, regSeconds))
}

func TestUpdateInProgress(t *testing.T) {
	full := time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC)
	for _, tt := range []struct {
		before  time.Duration
		uip     bool
		seconds byte
	}{
		{2229 * time.Microsecond, false, 0x00},
		{2228 * time.Microsecond, true, 0x00},
		{time.Microsecond, true, 0x00},
		{0, false, 0x01},
		{-time.Microsecond, false, 0x01},
	} {
		r, _, _ := newRTC(full.Add(-tt.before))
		require.Equal(t, tt.uip, get(r, regA)&aUpdating != 0, "%v before", tt.before)
		require.Equal(t, tt.seconds, get(r, regSeconds), "%v before", tt.before)
	}
}

// TestReadsAreConsistent reads the date as a simple driver does, after one look at UIP, with an exit of 60 µs for each
// access and from each phase of the second.
func TestReadsAreConsistent(t *testing.T) {
	newYear := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	old := []byte{0x59, 0x59, 0x23, 0x05, 0x31, 0x12, 0x26, 0x20}
	young := []byte{0x00, 0x00, 0x00, 0x06, 0x01, 0x01, 0x27, 0x20}
	seen := map[byte]int{}
	for phase := -5 * time.Millisecond; phase < 500*time.Microsecond; phase += 7 * time.Microsecond {
		h := &host{newYear.Add(phase)}
		r := New(Config{Now: func() time.Time { h.advance(60 * time.Microsecond); return h.t }})
		for get(r, regA)&aUpdating != 0 {
		}
		got := getDate(r)
		require.Contains(t, [][]byte{old, young}, got, "phase %v", phase)
		seen[got[0]]++
	}
	require.Len(t, seen, 2)
}

func TestRegistersKeepTheirReadOnlyBits(t *testing.T) {
	for _, tt := range []struct{ reg, write, want byte }{
		{regA, 0xff, 0x7f},
		{regA, 0x20, 0x20},
		{regB, 0x7f, 0x7f},
		{regB, 0xff, 0xef}, // SET clears UIE
		{regC, 0xff, 0x00},
		{regD, 0x00, 0x80},
		{regSecondsAlarm, 0xff, 0xff},
		{0x0f, 0x0a, 0x0a},
		{0x7f, 0x5a, 0x5a},
	} {
		r, _, _ := newRTC(instant.Truncate(time.Second))
		set(r, tt.reg, tt.write)
		require.Equal(t, tt.want, get(r, tt.reg), "register %#x, %#x written", tt.reg, tt.write)
	}
}

func TestPorts(t *testing.T) {
	r, _, _ := newRTC(instant)
	// The index takes 7 bits: the eighth masks the NMI.
	r.Write(0, []byte{0x80 | 0x40})
	r.Write(1, []byte{0x77})
	require.Equal(t, byte(0x77), get(r, 0x40))
	// A 16-bit access is one of each port.
	r.Write(0, []byte{0x41, 0x88})
	require.Equal(t, byte(0x88), get(r, 0x41))
	p := make([]byte, 2)
	r.Read(0, p)
	require.Equal(t, []byte{0xff, 0x88}, p)
}

func TestNonsenseDates(t *testing.T) {
	for _, v := range []byte{0x00, 0x7f, 0x9a, 0xff} {
		for _, b := range []byte{0, bBinary, b24Hour, b24Hour | bBinary} {
			r, h, _ := newRTC(instant)
			set(r, regB, b|bSet)
			for _, reg := range date {
				set(r, reg, v)
				require.Equal(t, v, get(r, reg)) // while SET is on, they are mere bytes
			}
			set(r, regB, b)
			for range 100 {
				h.advance(time.Hour)
				getDate(r)
			}
		}
	}
}

func TestInitialState(t *testing.T) {
	r, _, l := newRTC(instant)
	require.False(t, l.level)
	require.Equal(t, byte(divider32768|rate1024), get(r, regA))
	require.Equal(t, byte(b24Hour), get(r, regB))
	require.Zero(t, get(r, regC))
	require.Equal(t, byte(dValid), get(r, regD))
	require.Zero(t, get(r, 0x40))
}

func TestDefaults(t *testing.T) {
	before := time.Now()
	r := New(Config{})
	guest := r.state.guest(r.host())
	require.GreaterOrEqual(t, guest, before.UnixMicro())
	require.LessOrEqual(t, guest, time.Now().UnixMicro())

	set(r, regB, b24Hour|bUpdate) // with no line, the flags still work
	r.state.seen -= second
	require.Equal(t, byte(cInterrupt|bUpdate), get(r, regC)&^bPeriodic&^bAlarm)
}
