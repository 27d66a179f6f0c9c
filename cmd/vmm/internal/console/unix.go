package console

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unix serves the line on a Unix stream socket, to one client at a time; more of them wait. Clients may come and go;
// while there is none, the guest's output vanishes, as it does from a serial port without a cable. A client that shuts
// down its sending direction has gone.
type Unix struct {
	listener *net.UnixListener
	path     string
	file     os.FileInfo // of the socket, to tell it from a later one at path

	mu     sync.Mutex // guards what follows
	client *net.UnixConn
	closed bool
}

// maxSocketPath is how long a socket's path can be: sun_path of unix(7), without its NUL.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// ListenUnix listens on path. A socket that is there and that nobody listens on any more is replaced.
func ListenUnix(path string) (*Unix, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("a path of %d bytes, a socket's has %d at most", len(path), maxSocketPath)
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
	u := &Unix{listener: listener, path: path}
	if u.file, err = os.Lstat(path); err != nil {
		_ = listener.Close()
		return nil, bare(err)
	}
	return u, nil
}

// lockPatience is how long ListenUnix waits for others that start in the same directory. Each needs less than a
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

// Read waits for input from a client, and for a client.
func (u *Unix) Read(p []byte) (int, error) {
	for {
		client, err := u.accept()
		if err != nil {
			return 0, err
		}
		n, err := client.Read(p)
		if err == nil {
			return n, nil
		}
		u.hangUp(client)
	}
}

// Write waits for a client that does not read, and drops p while there is no client.
func (u *Unix) Write(p []byte) (int, error) {
	u.mu.Lock()
	client, closed := u.client, u.closed
	u.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	if client != nil {
		// An error means that the client has gone or Close has come. Read, which is the first to know what it still
		// sent, hangs up.
		_, _ = client.Write(p)
	}
	return len(p), nil
}

// Close hangs up, ends pending calls and removes the socket. It is idempotent.
func (u *Unix) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	u.closed = true
	if u.client != nil {
		_ = u.client.Close()
	}
	if st, err := os.Lstat(u.path); err == nil && os.SameFile(st, u.file) {
		_ = os.Remove(u.path)
	}
	return u.listener.Close()
}

// accept returns the client, or waits for the next one.
func (u *Unix) accept() (*net.UnixConn, error) {
	u.mu.Lock()
	client, closed := u.client, u.closed
	u.mu.Unlock()
	if client != nil && !closed {
		return client, nil
	}
	client, err := u.listener.AcceptUnix()
	if errors.Is(err, net.ErrClosed) {
		return nil, os.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		_ = client.Close()
		return nil, os.ErrClosed
	}
	u.client = client
	return client, nil
}

func (u *Unix) hangUp(client *net.UnixConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = client.Close()
	u.client = nil
}

// bare is the system's own error in err, without the operation and the path that the caller names anyway.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
