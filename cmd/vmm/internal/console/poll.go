package console

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxWrite is the most that one write(2) is given. A pipe that poll(2) reports as writable takes PIPE_BUF bytes without
// blocking (pipe(7)), also where the descriptor is in blocking mode.
const maxWrite = 4096

// descriptors reads one descriptor and writes another, each only once poll(2) says that it is ready, so that Close can
// end the wait. The Go runtime's poller would do the same for descriptors in non-blocking mode; but that mode belongs to
// the open file description, which a standard stream shares with the shell and with other programs.
type descriptors struct {
	in, out int // -1 for none
	owned   []int
	cancel  int // an eventfd; readable from Close on

	use       sync.RWMutex // read-locked while descriptors are in use, locked to close them
	closed    bool         // guarded by use
	closeOnce sync.Once
}

// newDescriptors makes descriptors that close owned with them.
func newDescriptors(in, out int, owned ...int) (*descriptors, error) {
	cancel, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &descriptors{in: in, out: out, owned: owned, cancel: cancel}, nil
}

// Read reads what there is, or waits for something.
func (d *descriptors) Read(p []byte) (int, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	for {
		if _, err := d.wait(d.in, unix.POLLIN, -1); err != nil {
			return 0, err
		}
		n, err := unix.Read(d.in, p)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Write writes all of p, waiting for room as often as needed. It fails with EIO when out is a terminal that nobody has
// open at the other end.
func (d *descriptors) Write(p []byte) (int, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	written := 0
	for written < len(p) {
		ready, err := d.wait(d.out, unix.POLLOUT, -1)
		if err != nil {
			return written, err
		}
		if ready&unix.POLLHUP != 0 {
			return written, os.NewSyscallError("write", unix.EIO) // the master of a pseudo-terminal would take it still
		}
		n, err := unix.Write(d.out, p[written:min(len(p), written+maxWrite)])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return written, os.NewSyscallError("write", err)
		}
		written += n
	}
	return written, nil
}

// sleep waits for a while.
func (d *descriptors) sleep(t time.Duration) error {
	d.use.RLock()
	defer d.use.RUnlock()
	_, err := d.wait(-1, 0, int(t.Milliseconds()))
	return err
}

// wait waits until fd is ready for events, for timeout milliseconds at most (-1: without end), or until Close, which
// gives os.ErrClosed. The caller holds use for reading.
func (d *descriptors) wait(fd int, events int16, timeout int) (ready int16, err error) {
	if d.closed {
		return 0, os.ErrClosed
	}
	fds := []unix.PollFd{{Fd: int32(d.cancel), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("poll", err)
		case fds[0].Revents != 0:
			return 0, os.ErrClosed
		}
		return fds[1].Revents, nil
	}
}

// Close ends pending calls and closes what is owned. It is idempotent.
func (d *descriptors) Close() error {
	d.closeOnce.Do(func() {
		// An eventfd takes exactly eight bytes, in the host's byte order; any number but zero makes it readable.
		_, _ = unix.Write(d.cancel, []byte{1, 1, 1, 1, 1, 1, 1, 1})
		d.use.Lock()
		defer d.use.Unlock()
		d.closed = true
		for _, fd := range append(d.owned, d.cancel) {
			_ = unix.Close(fd)
		}
	})
	return nil
}
