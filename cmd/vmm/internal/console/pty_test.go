package console

import (
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPTYProgramsComeAndGo(t *testing.T) {
	p, err := OpenPTY()
	require.NoError(t, err)
	defer p.Close()

	// Without a program, output must neither block nor wait for one: it is far more than a terminal's buffer holds.
	lost := make([]byte, 1<<20)
	n, err := p.Write(lost)
	require.NoError(t, err)
	require.Equal(t, len(lost), n)

	for range 3 {
		tty, err := os.OpenFile(p.Name(), os.O_RDWR|unix.O_NOCTTY, 0)
		require.NoError(t, err)
		_, err = p.Write([]byte("login: \r\n"))
		require.NoError(t, err)
		buf := make([]byte, 64)
		n, err := io.ReadFull(tty, buf[:9])
		require.NoError(t, err)
		require.Equal(t, "login: \r\n", string(buf[:n]), "raw, and nothing from before")

		_, err = tty.Write([]byte("root\r"))
		require.NoError(t, err)
		n, err = io.ReadFull(p, buf[:5])
		require.NoError(t, err)
		require.Equal(t, "root\r", string(buf[:n]), "raw, and no echo of the output")
		require.NoError(t, tty.Close())
	}
}

func TestPTYCloseWithoutAProgram(t *testing.T) {
	p, err := OpenPTY()
	require.NoError(t, err)
	read := make(chan error)
	go func() {
		_, err := p.Read(make([]byte, 1))
		read <- err
	}()
	require.NoError(t, p.Close())
	require.ErrorIs(t, <-read, os.ErrClosed)
	require.NoFileExists(t, p.Name())
}
