// Package unixsocket listens on Unix stream sockets with the care that a file system wants: a socket that a dead process
// has left is replaced, a live one is not, and the socket's file goes when its owner does.
package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is what [Listen] wraps when another process listens on the path.
var ErrInUse = errors.New("in use by another process")

// MaxPath is how long a socket's path can be: sun_path of unix(7), without its NUL.
const MaxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Listener is a listening socket. Its Close removes the socket's file.
type Listener struct {
	*net.UnixListener
	path string
	file os.FileInfo // of the socket, to tell it from a later one at path
}

// Listen listens on path. A socket that is there and that nobody listens on any more is replaced.
func Listen(path string) (*Listener, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("a path of %d bytes, a socket's has %d at most", len(path), MaxPath)
	}
	if path[0] == '@' {
		path = "./" + path // net takes a leading @ for the abstract name space
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, bare(err)
	}
	listener.SetUnlinkOnClose(false) // that would remove whatever is at path then
	l := &Listener{UnixListener: listener, path: path}
	if l.file, err = os.Lstat(path); err != nil {
		_ = listener.Close()
		return nil, bare(err)
	}
	return l, nil
}

// Close ends pending Accepts and removes the socket.
func (l *Listener) Close() error {
	if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// lockPatience is how long Listen waits for others that start in the same directory. Each needs less than a
// millisecond; whoever keeps the lock for longer is no vmm.
const lockPatience = 2 * time.Second

// lockDir keeps other processes that start at the same moment from taking each other's new socket for a stale one. It
// locks the directory itself, so that no lock file stays behind.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, bare(err))
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) { //nolint:forbidigo // flock(2) has no time limit, nor an event for one
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK || time.Now().After(end) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// removeStale removes the socket of a process that has died.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return bare(err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return errors.New("exists and is not a socket")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case nil, unix.EAGAIN, unix.EPROTOTYPE: // answered; busy; a socket of another type
		return ErrInUse
	case unix.ECONNREFUSED:
		return bare(os.Remove(path))
	default:
		return err
	}
}

// bare is the system's own error in err, without the operation and the path that the caller names anyway.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
