package console

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for range 2 {
		f, err := OpenFile(path)
		require.NoError(t, err)
		n, err := f.Read(make([]byte, 1))
		require.Zero(t, n)
		require.Equal(t, io.EOF, err)
		_, err = f.Write([]byte("boot\r\n"))
		require.NoError(t, err)

		_, err = OpenFile(path)
		require.ErrorIs(t, err, ErrInUse)
		require.NoError(t, f.Close())
		_, err = f.Write([]byte("x"))
		require.ErrorIs(t, err, os.ErrClosed)
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "boot\r\nboot\r\n", string(text))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())
}

func TestFileAbandon(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	abandon := func() {
		f, err := OpenFile(path)
		require.NoError(t, err)
		require.NoError(t, f.Abandon())
	}
	abandon()
	require.NoFileExists(t, path, "OpenFile made it")

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	abandon()
	require.FileExists(t, path, "it was there before")
}

func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenFile(dir)
	require.ErrorIs(t, err, unix.EISDIR)
	_, err = OpenFile(filepath.Join(dir, "no", "such"))
	require.ErrorIs(t, err, unix.ENOENT)
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	_, err = OpenFile(fifo)
	require.EqualError(t, err, "nothing reads from it")
}

func TestFileOfADeviceCanBeShared(t *testing.T) {
	for range 2 {
		f, err := OpenFile(os.DevNull)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.Write([]byte("x"))
		require.NoError(t, err)
	}
}
