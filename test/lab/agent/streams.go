package main

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/test/lab/wire"
)

// streams are a command's standard files, our ends and its own: three pipes, or one terminal.
type streams struct {
	in, out, err *os.File // ours; on a terminal in and out are its master, and err is nil
	tty          *os.File // the terminal's master, or nil

	childIn, childOut, childErr *os.File

	endOnce sync.Once
}

func open(tty *wire.Size) (*streams, error) {
	if tty != nil {
		return openTerminal(tty)
	}
	var s streams
	var errs [3]error
	s.childIn, s.in, errs[0] = os.Pipe()
	s.out, s.childOut, errs[1] = os.Pipe()
	s.err, s.childErr, errs[2] = os.Pipe()
	if err := errors.Join(errs[:]...); err != nil {
		s.closeChild()
		s.close()
		return nil, err
	}
	return &s, nil
}

func openTerminal(size *wire.Size) (*streams, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	s := &streams{in: master, out: master, tty: master}
	var number int
	err = control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err == nil {
		err = resize(master, size)
	}
	if err == nil {
		s.childIn, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.childOut, s.childErr = s.childIn, s.childIn
	return s, nil
}

// resize tells the terminal its size, and its processes too, by SIGWINCH.
func resize(tty *os.File, size *wire.Size) error {
	if tty == nil {
		return nil
	}
	return control(tty, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// control runs f on the descriptor without making it a blocking one, as Fd would.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = f(int(fd)) }); err != nil {
		return err
	}
	return failure
}

// endInput lets the command read the end of its input. On a terminal it is the character that says so.
func (s *streams) endInput() {
	if s.tty != nil {
		const endOfTransmission = 4
		_, _ = s.tty.Write([]byte{endOfTransmission})
		return
	}
	s.endOnce.Do(func() { _ = s.in.Close() })
}

func (s *streams) closeChild() { closeAll(s.childIn, s.childOut, s.childErr) }
func (s *streams) close()      { closeAll(s.in, s.out, s.err) }

// closeAll closes what is open; for a file that is there twice, or was closed before, it is one close.
func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
