package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

// MaxFrame is the longest frame of a [Stream] in bytes.
const MaxFrame = 65535 + 14 // a whole IPv4 packet behind an Ethernet header

// prefix is the length in front of each frame: big-endian, without itself.
const prefix = 4

// Stream is a socket on which frames go one after the other, each behind its length, as on QEMU's "stream" and "socket"
// network back ends: passt and its like serve it. Receive and Send may be called at the same time, but each by one
// goroutine.
type Stream struct {
	fd int

	in       []byte // received and not handed out: in[from:to]
	from, to int
	out      []byte // the rest of a frame that did not fit the socket's buffer: out[sent:]
	sent     int
}

// DialStream connects to the address, which is unix:PATH.
func DialStream(address string) (*Stream, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok || path == "" {
		return nil, errors.New("not an address (use unix:PATH)")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
			return nil, fmt.Errorf("%w (nobody listens there: start passt --socket %s first)", err, path)
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
			return nil, fmt.Errorf("%w (a socket's path has at most 107 bytes)", err)
		}
		return nil, err
	}
	return NewStream(fd), nil
}

// NewStream makes a stream of a connected socket in non-blocking mode, which is the stream's from then on.
func NewStream(fd int) *Stream {
	return &Stream{fd: fd, in: make([]byte, 2*(prefix+MaxFrame)), out: make([]byte, 0, prefix+MaxFrame)}
}

// Close closes the socket.
func (s *Stream) Close() error { return unix.Close(s.fd) }

// FD is the socket, in non-blocking mode. It is not always readable when there is a frame to receive: ask Receive first.
func (s *Stream) FD() int { return s.fd }

// Header tells that frames have no header in front.
func (s *Stream) Header() bool { return false }

// MTU is not known.
func (s *Stream) MTU() int { return 0 }

// Offloads are none: the other side wants frames as they go over a wire.
func (s *Stream) Offloads() uint { return 0 }

// SetOffloads has nothing to set.
func (s *Stream) SetOffloads(uint) error { return nil }

// SetQueues has nothing to set: there is one.
func (s *Stream) SetQueues(int) error { return nil }

// Receive copies one frame into iov and returns its length. EAGAIN says that there is none yet, io.EOF that the other side
// is gone; any other error is a stream that makes no sense. What does not fit is lost, and the length does not tell, as with
// [TAPPort.Receive].
func (s *Stream) Receive(iov []unix.Iovec) (int, error) {
	for {
		if have := s.to - s.from; have >= prefix {
			n := int(binary.BigEndian.Uint32(s.in[s.from:]))
			if n > MaxFrame {
				return 0, fmt.Errorf("frame of %d bytes in the stream: at most %d", uint32(n), MaxFrame)
			}
			if have >= prefix+n {
				frame := s.in[s.from+prefix:][:n]
				s.from += prefix + n
				to := iovec.NewScatter(iov)
				to.Put(frame)
				return to.Len(), nil
			}
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

// fill reads more of the stream.
func (s *Stream) fill() error {
	if s.from > 0 {
		s.to = copy(s.in, s.in[s.from:s.to])
		s.from = 0
	}
	for {
		n, err := unix.Read(s.fd, s.in[s.to:])
		switch {
		case err == unix.EINTR:
		case err == unix.ECONNRESET:
			return io.EOF
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			s.to += n
			return nil
		}
	}
}

// Send sends one frame. EAGAIN says that it is not through yet: wait until FD is writable, and call Send again with the same
// frame, which it goes on with. Another frame instead is lost.
func (s *Stream) Send(iov []unix.Iovec) error {
	if s.sent == len(s.out) {
		n := iovec.Len(iov)
		if n > MaxFrame {
			return unix.EMSGSIZE
		}
		s.out = binary.BigEndian.AppendUint32(s.out[:0], uint32(n))
		for i := range iov {
			s.out = append(s.out, unsafe.Slice(iov[i].Base, iov[i].Len)...)
		}
		s.sent = 0
	}
	return s.flush()
}

// flush sends what is left of the frame.
func (s *Stream) flush() error {
	for s.sent < len(s.out) {
		n, err := unix.SendmsgN(s.fd, s.out[s.sent:], nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		s.sent += n
	}
	return nil
}
