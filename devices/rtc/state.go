package rtc

import "time"

// The registers.
const (
	regSeconds = iota
	regSecondsAlarm
	regMinutes
	regMinutesAlarm
	regHours
	regHoursAlarm
	regWeekday
	regDay
	regMonth
	regYear
	regA
	regB
	regC
	regD
)

// The bits of register A.
const (
	aUpdating    = 1 << 7
	aReset       = 6 << 4 // 11x: the divider is held in reset
	aRate        = 0xf
	divider32768 = 2 << 4
	rate1024     = 6
)

// The bits of register B.
const (
	bSet        = 1 << 7
	bPeriodic   = 1 << 6
	bAlarm      = 1 << 5
	bUpdate     = 1 << 4
	bSquareWave = 1 << 3
	bBinary     = 1 << 2
	b24Hour     = 1 << 1
)

// The bits of register C. The three causes are where their enables are in register B.
const (
	cInterrupt = 1 << 7
	cCauses    = bPeriodic | bAlarm | bUpdate
)

// dValid is VRT of register D: the battery has kept the time.
const dValid = 1 << 7

// hourPM marks the hours after noon in the 12-hour form.
const hourPM = 1 << 7

// anyValue in an alarm register, and all above it, matches each value: "don't care".
const anyValue = 0xc0

// Times are in microseconds, as int64: even the year 25599, the last that the registers can be made to say, fits.
const (
	second = int64(time.Second / time.Microsecond)
	// updateCycle is how long UIP announces an update: tBUC + tUC for a 32,768 Hz crystal.
	updateCycle = 244 + 1984
	// firstUpdate is the time from the divider's release to the next update.
	firstUpdate = second / 2
)

// state is all that changes in an RTC.
type state struct {
	index  byte      // the register that port 0x71 is
	ram    [128]byte // by index; the time is in it only while the clock is halted, flags() is the true register C
	offset int64     // the guest's clock minus the host's
	seen   int64     // the guest's time up to which the events are in register C
	line   bool      // the level of the interrupt line
}

// guest returns the guest's time. It runs even while the clock is halted, for the sake of its fraction of a second: that
// is the state of the divider.
func (s *state) guest(now int64) int64 { return now + s.offset }

// dividerReset reports whether the divider stands.
func (s *state) dividerReset() bool { return s.ram[regA]&aReset == aReset }

// halted reports whether the time is not updated: the registers in RAM are the time.
func (s *state) halted() bool { return s.ram[regB]&bSet != 0 || s.dividerReset() }

// read returns the register at the index.
func (s *state) read(now int64) byte {
	switch s.index {
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, Century:
		if !s.halted() {
			s.latch(now)
		}
	case regA:
		_, fraction := split(s.guest(now))
		if !s.halted() && fraction >= second-updateCycle {
			return s.ram[regA] | aUpdating
		}
	case regC:
		c := s.flags()
		s.ram[regC] = 0
		return c
	}
	return s.ram[s.index]
}

// write stores to the register at the index.
func (s *state) write(now int64, v byte) {
	switch s.index {
	case regC, regD: // read-only
	case regA, regB:
		s.control(now, v)
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, Century:
		if s.halted() {
			s.ram[s.index] = v
			return
		}
		s.latch(now)
		s.ram[s.index] = v
		s.resume(now)
	default:
		s.ram[s.index] = v
	}
}

// control stores to register A or B, which may halt the clock or set it going.
func (s *state) control(now int64, v byte) {
	wasHalted, wasReset := s.halted(), s.dividerReset()
	if !wasHalted {
		s.latch(now)
	}
	s.ram[s.index] = v
	s.ram[regA] &^= aUpdating
	if s.ram[regB]&bSet != 0 {
		s.ram[regB] &^= bUpdate // so the data sheet, of SET
	}
	if wasReset && !s.dividerReset() {
		_, fraction := split(s.guest(now))
		s.offset += second - firstUpdate - fraction
	}
	if wasHalted && !s.halted() {
		s.resume(now)
	}
	s.seen = s.guest(now)
}

// latch stores the time in the registers.
func (s *state) latch(now int64) {
	sec, _ := split(s.guest(now))
	t := time.Unix(sec, 0).UTC()
	s.ram[regSeconds] = s.encode(t.Second())
	s.ram[regMinutes] = s.encode(t.Minute())
	s.ram[regHours] = s.encodeHour(t.Hour())
	s.ram[regWeekday] = s.encode(int(t.Weekday()) + 1)
	s.ram[regDay] = s.encode(t.Day())
	s.ram[regMonth] = s.encode(int(t.Month()))
	s.ram[regYear] = s.encode(t.Year() % 100)
	s.ram[Century] = s.encode(t.Year() / 100)
}

// resume sets the clock to the registers. The fraction of the second stays: it is the divider's. Registers that are no date
// give some other one.
func (s *state) resume(now int64) {
	t := time.Date(
		s.decode(s.ram[Century])*100+s.decode(s.ram[regYear]),
		time.Month(s.decode(s.ram[regMonth])),
		s.decode(s.ram[regDay]),
		s.decodeHour(s.ram[regHours]),
		s.decode(s.ram[regMinutes]),
		s.decode(s.ram[regSeconds]),
		0, time.UTC)
	sec, _ := split(s.guest(now))
	s.offset += (t.Unix() - sec) * second
	s.seen = s.guest(now)
}

// encode returns v as the registers have it, in BCD or in binary.
func (s *state) encode(v int) byte {
	if s.ram[regB]&bBinary != 0 {
		return byte(v)
	}
	return byte(v/10<<4 | v%10)
}

func (s *state) decode(b byte) int {
	if s.ram[regB]&bBinary != 0 {
		return int(b)
	}
	return int(b>>4)*10 + int(b&0xf)
}

// encodeHour is encode for an hour, which has a 12-hour form besides: 12, 1 to 11, and the same with hourPM.
func (s *state) encodeHour(h int) byte {
	if s.ram[regB]&b24Hour != 0 {
		return s.encode(h)
	}
	b := s.encode((h+11)%12 + 1)
	if h >= 12 {
		b |= hourPM
	}
	return b
}

func (s *state) decodeHour(b byte) int {
	if s.ram[regB]&b24Hour != 0 {
		return s.decode(b)
	}
	h := s.decode(b&^hourPM) % 12
	if b&hourPM != 0 {
		h += 12
	}
	return h
}

// split returns the seconds and the microseconds of a time.
func split(us int64) (sec, fraction int64) {
	sec, fraction = us/second, us%second
	if fraction < 0 {
		return sec - 1, fraction + second
	}
	return sec, fraction
}
