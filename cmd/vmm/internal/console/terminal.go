package console

import (
	"os"

	"golang.org/x/sys/unix"
)

// RawTerminal is a terminal in raw mode: each key goes to the guest, Ctrl-C and its like included.
type RawTerminal struct {
	file       *os.File
	saved, raw unix.Termios
	guard      *guard
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// MakeRaw puts the terminal f in raw mode. A second process watches this one and restores the terminal, however this one
// ends: [GuardMain] says what that asks of main.
func MakeRaw(f *os.File) (*RawTerminal, error) {
	modes, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, os.NewSyscallError("get the terminal's modes", err)
	}
	t := &RawTerminal{file: f, saved: *modes, raw: *modes}
	makeRaw(&t.raw)
	if t.guard, err = startGuard(f, guardOrder{Saved: t.saved, Raw: t.raw}); err != nil {
		return nil, err
	}
	if err := t.Resume(); err != nil {
		t.guard.stop()
		return nil, err
	}
	return t, nil
}

// Resume sets raw mode again: after a stop (SIGSTOP) and the SIGCONT that ends it, when the shell has set its own.
func (t *RawTerminal) Resume() error {
	return os.NewSyscallError("set the terminal's modes", setModes(t.file, &t.raw))
}

// Restore sets the modes that MakeRaw found.
func (t *RawTerminal) Restore() error {
	err := setModes(t.file, &t.saved)
	t.guard.stop()
	return os.NewSyscallError("restore the terminal's modes", err)
}

// makeRaw leaves the output's processing on (as QEMU does), so that what is printed to the same terminal, such as the
// trace of a panic, begins its lines at the left.
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN] = 1
	t.Cc[unix.VTIME] = 0
}

// setModes does not wait until pending output has gone (TCSETSW): the terminal may have stalled for ever.
func setModes(f *os.File, modes *unix.Termios) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, modes)
	})
	return err
}
