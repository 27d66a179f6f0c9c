package console

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func socketPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestCloseEndsReadAndWrite is the contract with package machine, for each line and each sort of stream.
func TestCloseEndsReadAndWrite(t *testing.T) {
	stdio := func(in, out *os.File) io.ReadWriteCloser {
		s, err := NewStdio(StdioConfig{In: in, Out: out})
		require.NoError(t, err)
		return s
	}
	for name, open := range map[string]func(t *testing.T) io.ReadWriteCloser{
		"pipes": func(t *testing.T) io.ReadWriteCloser {
			in, _ := pipe(t)
			_, out := pipe(t)
			return stdio(in, out)
		},
		"sockets": func(t *testing.T) io.ReadWriteCloser {
			s, _ := socketPair(t)
			return stdio(s, s)
		},
		"terminal": func(t *testing.T) io.ReadWriteCloser {
			_, tty := openTerminal(t)
			return stdio(tty, tty)
		},
		"terminal with keys": func(t *testing.T) io.ReadWriteCloser {
			_, tty := openTerminal(t)
			s, err := NewStdio(StdioConfig{In: tty, Out: tty, OnKey: func(Key) {}})
			require.NoError(t, err)
			return s
		},
		"pty with a program": func(t *testing.T) io.ReadWriteCloser {
			p, err := OpenPTY()
			require.NoError(t, err)
			tty, err := os.OpenFile(p.Name(), os.O_RDWR|unix.O_NOCTTY, 0)
			require.NoError(t, err)
			t.Cleanup(func() { tty.Close() })
			return p
		},
		"unix with a client": func(t *testing.T) io.ReadWriteCloser {
			u, _ := listenAndConnect(t)
			return u
		},
	} {
		t.Run(name, func(t *testing.T) {
			line := open(t)
			read, write := make(chan error), make(chan error)
			full := make(chan struct{})
			go func() {
				_, err := line.Read(make([]byte, 16))
				read <- err
			}()
			go func() {
				big := make([]byte, 64<<10)
				_, err := line.Write(big[:1])
				close(full)
				for err == nil {
					_, err = line.Write(big)
				}
				write <- err
			}()
			<-full
			require.NoError(t, line.Close())
			require.ErrorIs(t, <-read, os.ErrClosed)
			require.ErrorIs(t, <-write, os.ErrClosed)
			require.NoError(t, line.Close(), "Close is idempotent")
			_, err := line.Read(make([]byte, 1))
			require.ErrorIs(t, err, os.ErrClosed)
			_, err = line.Write([]byte("x"))
			require.ErrorIs(t, err, os.ErrClosed)
		})
	}
}

func TestStdioCarriesEveryByte(t *testing.T) {
	all := make([]byte, 256<<10)
	for i := range all {
		all[i] = byte(i)
	}
	in, inPeer := pipe(t)
	outPeer, out := pipe(t)
	s, err := NewStdio(StdioConfig{In: in, Out: out})
	require.NoError(t, err)
	go func() {
		_, _ = inPeer.Write(all)
		_ = inPeer.Close()
	}()
	go func() {
		n, err := s.Write(all)
		if err == nil && n == len(all) {
			_ = s.Close()
			_ = out.Close()
		}
	}()
	fromGuest, err := io.ReadAll(outPeer)
	require.NoError(t, err)
	require.True(t, bytes.Equal(all, fromGuest))

	input, err := NewStdio(StdioConfig{In: in, Out: devNull(t)})
	require.NoError(t, err)
	defer input.Close()
	toGuest, err := io.ReadAll(input)
	require.NoError(t, err)
	require.True(t, bytes.Equal(all, toGuest))
}

func TestStdioInputs(t *testing.T) {
	read := func(t *testing.T, in *os.File) string {
		s, err := NewStdio(StdioConfig{In: in, Out: devNull(t)})
		require.NoError(t, err)
		defer s.Close()
		text, err := io.ReadAll(s)
		require.NoError(t, err)
		_, err = s.Write([]byte("output goes on"))
		require.NoError(t, err)
		return string(text)
	}
	t.Run("nothing", func(t *testing.T) { require.Empty(t, read(t, devNull(t))) })
	t.Run("a file, from its offset", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "in")
		require.NoError(t, os.WriteFile(path, []byte("skipped, poweroff\n"), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.Seek(9, io.SeekStart)
		require.NoError(t, err)
		require.Equal(t, "poweroff\n", read(t, f))
	})
}

// TestStdioLeavesTheModeOfSharedFilesAlone: a shell whose terminal is in non-blocking mode exits.
func TestStdioLeavesTheModeOfSharedFilesAlone(t *testing.T) {
	_, tty := openTerminal(t)
	in, _ := pipe(t)
	for _, f := range []*os.File{tty, in} {
		s, err := NewStdio(StdioConfig{In: f, Out: tty})
		require.NoError(t, err)
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		require.NoError(t, err)
		require.Zero(t, flags&unix.O_NONBLOCK)
		require.NoError(t, s.Close())
	}
}
