package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

// connectTimeout is how long the socket device's driver may take to come up.
const connectTimeout = 10 * time.Second

// connect connects to the host.
func connect() (*os.File, error) {
	for deadline := time.Now().Add(connectTimeout); ; time.Sleep(time.Millisecond) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			if err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: wire.Port}); err == nil {
				return file(fd), nil
			}
			_ = unix.Close(fd)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("connect to the host: %w (has the kernel vmw_vsock_virtio_transport?)", err)
		}
	}
}

// file makes a file of a connection, which Go's poller waits for.
func file(fd int) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "vsock")
}

// listener takes the host's connections.
type listener struct{ *os.File }

func listen() (*listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: wire.Port}); err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", wire.Port, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", wire.Port, err)
	}
	return &listener{os.NewFile(uintptr(fd), "vsock listener")}, nil
}

// accept waits for a connection of the host's.
func (l *listener) accept() (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var accepted error
	err = raw.Read(func(on uintptr) bool {
		fd, _, accepted = unix.Accept4(int(on), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return accepted != unix.EAGAIN
	})
	if err == nil {
		err = accepted
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}
