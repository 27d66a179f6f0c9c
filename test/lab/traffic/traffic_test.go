package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConnections serves and connects in one process.
func TestConnections(t *testing.T) {
	address := "unix:" + filepath.Join(t.TempDir(), "socket")
	l, err := listen(address)
	require.NoError(t, err)
	defer l.(netListener).Close()
	served := make(chan error)
	go func() {
		for {
			conn, err := l.accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			go func() { served <- errors.Join(answer(conn), conn.Close()) }()
		}
	}()
	for _, c := range []client{
		{n: 1, parallel: 1},
		{n: 5, parallel: 3, up: 1, down: 9},
		{n: 2, parallel: 2, up: 3*blockSize + 5, down: 2 * blockSize},
	} {
		c.address = address
		done := make(chan error)
		go func() { done <- c.run() }()
		for range c.n {
			require.NoError(t, <-served)
		}
		require.NoError(t, <-done)
	}
}

// TestReceive looks at bytes that are not as they were sent.
func TestReceive(t *testing.T) {
	const size = blockSize + 100
	var sent bytes.Buffer
	require.NoError(t, send(&sent, upSeed, size))
	changed := func(change func(b []byte) []byte) io.Reader {
		return bytes.NewReader(change(bytes.Clone(sent.Bytes())))
	}
	require.NoError(t, receive(changed(func(b []byte) []byte { return b }), upSeed, size))
	require.ErrorContains(t, receive(changed(func(b []byte) []byte { b[blockSize+3] ^= 1; return b }), upSeed, size),
		"byte 65539 of 65636 is wrong")
	require.ErrorContains(t, receive(changed(func(b []byte) []byte { return append(b[:4096], b[4096+1448:]...) }), upSeed, size),
		"byte 4096 of 65636 is wrong")
	require.ErrorContains(t, receive(changed(func(b []byte) []byte { return b[:size-1] }), upSeed, size),
		"receive at byte 65635 of 65636: unexpected EOF")
	require.ErrorContains(t, receive(changed(func(b []byte) []byte { return b }), downSeed, size), "of 65636 is wrong")
}

// TestHybrid plays the monitor.
func TestHybrid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	for _, answer := range []string{"OK 1073741824\n", "no such port\n", ""} {
		asked := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				asked <- err.Error()
				return
			}
			line := make([]byte, len("CONNECT 52\n"))
			_, err = io.ReadFull(conn, line)
			_, _ = io.WriteString(conn, answer+"guest")
			asked <- string(line)
			_ = errors.Join(err, conn.Close())
		}()
		conn, err := dial("hybrid:" + path + ":52")
		require.Equal(t, "CONNECT 52\n", <-asked)
		if !strings.HasPrefix(answer, "OK") {
			require.ErrorContains(t, err, "CONNECT 52 was answered by")
			continue
		}
		require.NoError(t, err)
		said, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Equal(t, "guest", string(said))
	}
}
