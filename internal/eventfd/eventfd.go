// Package eventfd wraps Linux's eventfd(2): a counter in the kernel that one side adds to and the other waits for. KVM
// and vhost signal and take such files in the kernel, without a way through user space.
package eventfd

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EventFD is an eventfd with the counter's ordinary semantics: a Wait takes all signals since the last one at once. Any
// goroutine may call any method but Close, which must be the last.
type EventFD struct{ fd int }

// New returns an eventfd whose counter is zero. It is in blocking mode: a thread that sleeps in read(2) is the fastest
// to wake.
func New() (*EventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &EventFD{fd: fd}, nil
}

// FD returns the descriptor, which stays the EventFD's.
func (e *EventFD) FD() int { return e.fd }

// Signal adds one to the counter.
func (e *EventFD) Signal() {
	one := uint64(1)
	for {
		// It could only block with 2^64-2 signals that nobody took.
		_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(e.fd), uintptr(unsafe.Pointer(&one)), 8)
		if errno != unix.EINTR {
			return
		}
	}
}

// Wait blocks its thread until the counter is not zero, and makes it zero.
func (e *EventFD) Wait() error {
	var n uint64
	for {
		_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(e.fd), uintptr(unsafe.Pointer(&n)), 8)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("wait for eventfd %d: %w", e.fd, errno)
		}
	}
}

// Pending tells whether a Wait would return at once.
func (e *EventFD) Pending() bool {
	fds := [1]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// Drain makes the counter zero without waiting. At most one goroutine may drain and wait at the same time.
func (e *EventFD) Drain() {
	if e.Pending() {
		_ = e.Wait() // another error than none at all would need a closed file
	}
}

// Close closes the descriptor.
func (e *EventFD) Close() error {
	if err := unix.Close(e.fd); err != nil {
		return fmt.Errorf("close eventfd %d: %w", e.fd, err)
	}
	return nil
}
