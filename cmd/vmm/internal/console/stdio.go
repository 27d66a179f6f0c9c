package console

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Stdio is a pair of open files, usually the standard input and output.
type Stdio struct {
	*descriptors
	input    io.Reader
	keyboard *keyboard // nil without keys
}

// StdioConfig configures [NewStdio].
type StdioConfig struct {
	In, Out *os.File // stay the caller's, and open longer than the Stdio
	// OnKey, when set, hears of the escape keys, which are then looked for in the input: for a terminal. It is called
	// on the goroutines that read. Without it all bytes go to the guest.
	OnKey func(Key)
}

// NewStdio connects the streams.
func NewStdio(cfg StdioConfig) (*Stdio, error) {
	in, inOwned := reopen(cfg.In, unix.O_RDONLY)
	out, outOwned := reopen(cfg.Out, unix.O_WRONLY)
	d, err := newDescriptors(in, out, append(inOwned, outOwned...)...)
	if err != nil {
		for _, fd := range append(inOwned, outOwned...) {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	s := &Stdio{descriptors: d, input: d}
	if cfg.OnKey != nil {
		s.keyboard = newKeyboard(d, cfg.OnKey)
		s.input = s.keyboard
	}
	return s, nil
}

// Read returns input for the guest.
func (s *Stdio) Read(p []byte) (int, error) { return s.input.Read(p) }

// Close ends pending calls. The files stay open.
func (s *Stdio) Close() error {
	err := s.descriptors.Close()
	if s.keyboard != nil {
		s.keyboard.stop(os.ErrClosed)
	}
	return err
}

// reopen opens the terminal or the pipe behind f once more, in non-blocking mode, which then is not shared with anyone:
// after poll(2) a read may still block when another process was faster, and a write to a terminal when there's less room
// than it wants. Where that can't be had (a socket; a terminal that belongs to another user, as after su) f's own
// descriptor must do.
func reopen(f *os.File, mode int) (fd int, owned []int) {
	fd = int(f.Fd())
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return fd, nil
	}
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if isTerminal := err == nil; !isTerminal && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return fd, nil
	}
	const flags = unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if again, err := unix.Open(fdPath(fd), mode|flags, 0); err == nil {
		return again, []int{again}
	}
	return fd, nil
}
