package console

// Key is what the user of a terminal can ask of the monitor, by a letter after Ctrl-A.
type Key int

// The keys.
const (
	KeyQuit  Key = iota + 1 // Ctrl-A x: end the machine at once
	KeyBreak                // Ctrl-A b: send a break condition to the guest
	KeyHelp                 // Ctrl-A h: list the keys
)

// prefix is Ctrl-A, as in QEMU and in screen.
const prefix = 'a' & 0x1f

// escape finds the keys in a terminal's input, byte by byte. The zero value is ready.
type escape struct {
	prefixed bool // the last byte was the prefix
}

// next takes the next byte of input. It returns a key, or whether the byte goes to the guest, or neither: for the prefix
// itself, and for a letter that means nothing after it.
func (e *escape) next(b byte) (key Key, pass bool) {
	if !e.prefixed {
		e.prefixed = b == prefix
		return 0, !e.prefixed
	}
	e.prefixed = false
	switch b {
	case prefix:
		return 0, true
	case 'x', 'X':
		return KeyQuit, false
	case 'b', 'B':
		return KeyBreak, false
	case 'h', 'H', '?':
		return KeyHelp, false
	}
	return 0, false
}
