package console

import (
	"errors"
	"net"
	"os"
	"sync"

	"vmm/internal/unixsocket"
)

// Unix serves the line on a Unix stream socket, to one client at a time; more of them wait. Clients may come and go;
// while there is none, the guest's output vanishes, as it does from a serial port without a cable. A client that shuts
// down its sending direction has gone.
type Unix struct {
	listener *unixsocket.Listener

	mu     sync.Mutex // guards what follows
	client *net.UnixConn
	closed bool
}

// ListenUnix listens on path. A socket that is there and that nobody listens on any more is replaced.
func ListenUnix(path string) (*Unix, error) {
	l, err := unixsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	return &Unix{listener: l}, nil
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
