package rtc

import "time"

// update notes in register C what has happened since the last call. Its cost does not depend on how long ago that was.
func (s *state) update(now int64) {
	from, to := s.seen, s.guest(now)
	s.seen = to
	if to <= from { // the host's clock was set back
		return
	}
	if period := s.period(); period != 0 && beats(to, period) != beats(from, period) {
		s.ram[regC] |= bPeriodic
	}
	fromSec, _ := split(from)
	toSec, _ := split(to)
	if s.halted() || fromSec == toSec {
		return
	}
	s.ram[regC] |= bUpdate
	if sec, ok := s.nextAlarm(fromSec + 1); ok && sec <= toSec {
		s.ram[regC] |= bAlarm
	}
}

// flags returns register C.
func (s *state) flags() byte {
	c := s.ram[regC]
	if c&s.ram[regB]&cCauses != 0 {
		c |= cInterrupt
	}
	return c
}

// next returns the guest's time of the next interrupt that is enabled; ok is false if there is none, or none before the
// guest has read register C.
func (s *state) next(now int64) (at int64, ok bool) {
	if s.flags()&cInterrupt != 0 {
		return 0, false
	}
	guest := s.guest(now)
	sec, fraction := split(guest)
	sooner := func(t int64) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	if period := s.period(); period != 0 && s.ram[regB]&bPeriodic != 0 {
		// The beat's microsecond is rounded up, so that the beat has come by then.
		tick := (ticks(fraction)/period + 1) * period
		sooner(sec*second + (tick*second+crystal-1)/crystal)
	}
	if s.halted() {
		return at, ok
	}
	if s.ram[regB]&bUpdate != 0 {
		sooner((sec + 1) * second)
	}
	if s.ram[regB]&bAlarm != 0 {
		if t, matches := s.nextAlarm(sec + 1); matches {
			sooner(t * second)
		}
	}
	return at, ok
}

// nextAlarm returns the first second, in seconds since 1970 and not before sec, that matches the alarm registers; ok is
// false if none ever does.
func (s *state) nextAlarm(sec int64) (_ int64, ok bool) {
	hours, ok1 := s.alarm(regHoursAlarm, 24, s.encodeHour)
	minutes, ok2 := s.alarm(regMinutesAlarm, 60, s.encode)
	seconds, ok3 := s.alarm(regSecondsAlarm, 60, s.encode)
	if !ok1 || !ok2 || !ok3 {
		return 0, false
	}
	// Each field can match, so each day has a match, and the steps of a field are at most twice its values.
	for {
		hour, minute, second := time.Unix(sec, 0).UTC().Clock()
		switch {
		case !hours[hour]:
			sec += int64(3600 - 60*minute - second)
		case !minutes[minute]:
			sec += int64(60 - second)
		case !seconds[second]:
			sec++
		default:
			return sec, true
		}
	}
}

// alarm returns which of the values below n the alarm register reg matches; ok is false if none.
func (s *state) alarm(reg byte, n int, encode func(int) byte) (match [60]bool, ok bool) {
	for v := range n {
		match[v] = s.ram[reg] >= anyValue || s.ram[reg] == encode(v)
		ok = ok || match[v]
	}
	return match, ok
}

// crystal is the frequency that the divider divides, in Hz.
const crystal = 32768

// period returns the time between two periodic events in the crystal's ticks, zero if there are none.
func (s *state) period() int64 {
	rate := s.ram[regA] & aRate
	switch {
	case rate == 0 || s.dividerReset():
		return 0
	case rate <= 2: // 1 and 2 are 8 and 9 with a 32,768 Hz crystal
		rate += 7
	}
	return 1 << (rate - 1)
}

// ticks returns the crystal's ticks in a fraction of a second.
func ticks(fraction int64) int64 { return fraction * crystal / second }

// beats returns the number of periodic events up to a time. A second has a whole number of them.
func beats(us, period int64) int64 {
	sec, fraction := split(us)
	return sec*(crystal/period) + ticks(fraction)/period
}
