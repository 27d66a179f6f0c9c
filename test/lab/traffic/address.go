package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listener is the part of a net.Listener that there is for AF_VSOCK too, which package net doesn't know.
type listener interface {
	accept() (io.ReadWriteCloser, error)
}

func listen(address string) (listener, error) {
	network, rest, _ := strings.Cut(address, ":")
	switch network {
	case "tcp", "unix":
		l, err := net.Listen(network, rest)
		return netListener{l}, err
	case "vsock":
		port, err := strconv.ParseUint(rest, 10, 32)
		if err != nil {
			return nil, err
		}
		return listenVsock(&unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: uint32(port)})
	}
	return nil, errors.New("not an address to listen on")
}

func dial(address string) (io.ReadWriteCloser, error) {
	network, rest, _ := strings.Cut(address, ":")
	switch network {
	case "tcp", "unix":
		return net.Dial(network, rest)
	case "hybrid":
		return dialHybrid(rest)
	case "vsock":
		before, after, _ := strings.Cut(rest, ":")
		cid, err1 := strconv.ParseUint(before, 10, 32)
		port, err2 := strconv.ParseUint(after, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return dialVsock(&unix.SockaddrVM{CID: uint32(cid), Port: uint32(port)})
	}
	return nil, errors.New("not an address to connect to")
}

type netListener struct{ net.Listener }

func (l netListener) accept() (io.ReadWriteCloser, error) { return l.Accept() }

// dialHybrid connects to a guest's port through the monitor's Unix socket.
func dialHybrid(address string) (_ io.ReadWriteCloser, err error) {
	colon := strings.LastIndexByte(address, ':')
	if colon < 0 {
		return nil, errors.New("no port")
	}
	path, port := address[:colon], address[colon+1:]
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if _, err := fmt.Fprintf(conn, "CONNECT %s\n", port); err != nil {
		return nil, err
	}
	// Byte by byte, as what follows the line is the guest's.
	var line []byte
	for len(line) == 0 || line[len(line)-1] != '\n' {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return nil, fmt.Errorf("CONNECT %s was answered by %q and: %w", port, line, err)
		}
		line = append(line, b[0])
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return nil, fmt.Errorf("CONNECT %s was answered by %q", port, line)
	}
	return conn, nil
}

// vsockListener is a socket that blocks: all waiting is a thread's.
type vsockListener int

func listenVsock(at *unix.SockaddrVM) (listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, at); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	const backlog = 128
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return vsockListener(fd), nil
}

func (l vsockListener) accept() (io.ReadWriteCloser, error) {
	for {
		fd, _, err := unix.Accept4(int(l), unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), "vsock"), nil
	}
}

// connectTimeout replaces AF_VSOCK's own of two seconds, in which a busy lab may not come to an answer.
const connectTimeout = 60 // seconds

func dialVsock(to *unix.SockaddrVM) (_ io.ReadWriteCloser, err error) {
	// Connecting while it blocks, it would be given up at a signal, of which Go's runtime sends some.
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	limit := unix.Timeval{Sec: connectTimeout}
	if err := unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	failure, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && failure != 0 {
		err = unix.Errno(failure)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}
