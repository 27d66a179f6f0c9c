package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/unixsocket"
)

// connOf makes a Conn of a connected Unix socket, which is the Conn's from then on.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close() // FileConn has a descriptor of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connection of a socket: %w", err)
	}
	return c.(*net.UnixConn), nil
}

// hungUp tells whether the other end of a socket that reads as ended has been closed altogether, and not for sending
// alone.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	err = raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd)}}
		_, _ = unix.Poll(fds[:], 0)
		hup = fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return hup || err != nil
}

// Unix is a guest's host as Unix sockets, in the form that Firecracker has made known: a program connects to the socket,
// writes "CONNECT port\n", reads "OK hostport\n", and is connected with the guest's port. What the guest connects to,
// port N of the host, is the socket whose path ends in "_N".
type Unix struct {
	path     string
	listener *unixsocket.Listener
	slots    chan struct{} // one for each client that has not said what it wants
	serving  sync.WaitGroup
	cancel   context.CancelFunc
}

const (
	// maxGreetings bounds the clients that have not said what they want, and greetingTime the time they have for it.
	maxGreetings = 64
	greetingTime = 10 * time.Second
	maxGreeting  = len("CONNECT 4294967295\n")
)

// ListenUnix listens on path, whose length leaves room for the ports' endings. Clients wait until [Unix.Serve].
func ListenUnix(path string) (*Unix, error) {
	if n := len(path) + len("_4294967295"); n > unixsocket.MaxPath {
		return nil, fmt.Errorf("a path of %d bytes, one for guests' sockets has %d at most", len(path), unixsocket.MaxPath-len("_4294967295"))
	}
	l, err := unixsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	return &Unix{path: path, listener: l, slots: make(chan struct{}, maxGreetings)}, nil
}

// Dial connects to a port of the host, for [Config].
func (u *Unix) Dial(ctx context.Context, port uint32) (Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", u.path+"_"+strconv.FormatUint(uint64(port), 10))
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Serve lets clients connect to the device's guest, until [Unix.Close].
func (u *Unix) Serve(d *Device) {
	ctx, cancel := context.WithCancel(context.Background())
	u.cancel = cancel
	u.serving.Go(func() {
		for {
			conn, err := u.listener.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // as for want of descriptors: it may get better
				select {
				case <-ctx.Done():
					return
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			u.slots <- struct{}{}
			u.serving.Go(func() {
				defer func() { <-u.slots }()
				_ = u.greet(ctx, d, conn) // the client sees that it is closed
			})
		}
	})
}

// greet reads what a client wants and connects it.
func (u *Unix) greet(ctx context.Context, d *Device, conn *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	port, err := readGreeting(conn)
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	return d.Connect(ctx, conn, port, func(hostPort uint32) error {
		_, err := fmt.Fprintf(conn, "OK %d\n", hostPort)
		return err
	})
}

// readGreeting reads a line, byte by byte, since what follows it is the guest's.
func readGreeting(conn net.Conn) (port uint32, err error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxGreeting; line = append(line, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return 0, err
		}
		if b[0] == '\n' {
			break
		}
	}
	text, ok := strings.CutPrefix(string(line), "CONNECT ")
	n, err := strconv.ParseUint(text, 10, 32)
	if !ok || err != nil {
		return 0, fmt.Errorf("greeting %q: not CONNECT and a port", line)
	}
	return uint32(n), nil
}

// Close stops listening, removes the socket, and waits for the clients that have not been connected yet. It may be
// called without a Serve before it.
func (u *Unix) Close() error {
	if u.cancel != nil {
		u.cancel()
	}
	err := u.listener.Close()
	u.serving.Wait()
	return err
}
