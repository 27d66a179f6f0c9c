package console

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// PTY is a new pseudo-terminal, for a terminal program to open. Such programs may come and go; while there is none, the
// guest's output vanishes, as it does from a serial port without a cable.
type PTY struct {
	fds  *descriptors
	name string
}

// reopenDelay is how long a program waits at most, from opening the terminal, for its first input to be read.
const reopenDelay = 100 * time.Millisecond

// OpenPTY makes a pseudo-terminal in raw mode.
func OpenPTY() (_ *PTY, err error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open("/dev/ptmx", flags|unix.O_NONBLOCK, 0) })
	if err != nil {
		return nil, fmt.Errorf("/dev/ptmx: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number of the pseudo-terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the pseudo-terminal: %w", err)
	}
	name := fmt.Sprintf("/dev/pts/%d", number)
	if err := setUpPeer(fd, name); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	fds, err := newDescriptors(fd, fd, fd)
	if err != nil {
		return nil, err
	}
	return &PTY{fds: fds, name: name}, nil
}

// setUpPeer makes the terminal raw, which it stays (the master's modes are its own), and opens and closes it once: from
// then on the master reports whether anybody has it open.
func setUpPeer(master int, name string) error {
	modes, err := unix.IoctlGetTermios(master, unix.TCGETS)
	if err != nil {
		return err
	}
	makeRaw(modes)
	modes.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(master, unix.TCSETS, modes); err != nil {
		return err
	}
	peer, err := ignoringEINTR(func() (int, error) {
		return unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return err
	}
	return unix.Close(peer)
}

// Name is the path of the terminal.
func (p *PTY) Name() string { return p.name }

// Read waits for input from whatever program has the terminal open.
func (p *PTY) Read(b []byte) (int, error) {
	for {
		n, err := p.fds.Read(b)
		if !errors.Is(err, unix.EIO) {
			return n, err
		}
		// Nobody has it open, and the kernel has no event for the day when somebody does.
		if err := p.fds.sleep(reopenDelay); err != nil {
			return 0, err
		}
	}
}

// Write waits for room while a program has the terminal open, and drops b while none has.
func (p *PTY) Write(b []byte) (int, error) {
	n, err := p.fds.Write(b)
	if errors.Is(err, unix.EIO) {
		return len(b), nil
	}
	return n, err
}

// Close ends pending calls and removes the terminal.
func (p *PTY) Close() error { return p.fds.Close() }
