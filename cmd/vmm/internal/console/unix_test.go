package console

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listenAndConnect returns a Unix whose client has been accepted.
func listenAndConnect(t *testing.T) (*Unix, net.Conn) {
	t.Helper()
	u, err := ListenUnix(filepath.Join(t.TempDir(), "sock"))
	require.NoError(t, err)
	t.Cleanup(func() { u.Close() })
	return u, connect(t, u)
}

// connect returns a client that u has accepted.
func connect(t *testing.T, u *Unix) net.Conn {
	t.Helper()
	client, err := net.Dial("unix", u.listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	_, err = client.Write([]byte("!"))
	require.NoError(t, err)
	buf := make([]byte, 1)
	_, err = u.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "!", string(buf))
	return client
}

func TestUnixClientsComeAndGo(t *testing.T) {
	u, err := ListenUnix(filepath.Join(t.TempDir(), "sock"))
	require.NoError(t, err)
	lost := make([]byte, 1<<20)
	n, err := u.Write(lost)
	require.NoError(t, err)
	require.Equal(t, len(lost), n)

	for range 3 {
		client := connect(t, u)
		_, err := u.Write([]byte("login: "))
		require.NoError(t, err)
		buf := make([]byte, 64)
		n, err := io.ReadFull(client, buf[:7])
		require.NoError(t, err)
		require.Equal(t, "login: ", string(buf[:n]))
		require.NoError(t, client.Close())
	}
	require.NoError(t, u.Close())
	require.NoFileExists(t, u.listener.Addr().String())
	_, err = u.Write([]byte("x"))
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = u.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestUnixInputOfAClientThatHasGone(t *testing.T) {
	u, first := listenAndConnect(t)
	_, err := first.Write([]byte("poweroff\n"))
	require.NoError(t, err)
	require.NoError(t, first.Close())
	_, err = u.Write([]byte("to nobody"))
	require.NoError(t, err)
	buf := make([]byte, 64)
	n, err := u.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "poweroff\n", string(buf[:n]))
}

func TestUnixClientsWaitForTheirTurn(t *testing.T) {
	u, first := listenAndConnect(t)
	second, err := net.Dial("unix", u.listener.Addr().String())
	require.NoError(t, err)
	defer second.Close()
	_, err = second.Write([]byte("second"))
	require.NoError(t, err)
	_, err = first.Write([]byte("first"))
	require.NoError(t, err)
	require.NoError(t, first.Close())

	buf := make([]byte, 64)
	for _, want := range []string{"first", "second"} {
		n, err := u.Read(buf)
		require.NoError(t, err)
		require.Equal(t, want, string(buf[:n]))
	}
}

func TestListenUnixWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	t.Run("a live socket", func(t *testing.T) {
		u, _ := listenAndConnect(t)
		_, err := ListenUnix(u.listener.Addr().String())
		require.ErrorIs(t, err, ErrInUse)
		require.NoError(t, u.Close())
	})
	t.Run("a dead socket", func(t *testing.T) {
		path := filepath.Join(dir, "dead")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
		require.FileExists(t, path)
		u, err := ListenUnix(path)
		require.NoError(t, err)
		connect(t, u)
		require.NoError(t, u.Close())
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(dir, "file")
		require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
		_, err := ListenUnix(path)
		require.EqualError(t, err, "exists and is not a socket")
		require.FileExists(t, path)
	})
	t.Run("a link to a file", func(t *testing.T) {
		path := filepath.Join(dir, "link")
		require.NoError(t, os.Symlink(filepath.Join(dir, "file"), path))
		_, err := ListenUnix(path)
		require.EqualError(t, err, "exists and is not a socket")
	})
	t.Run("no directory", func(t *testing.T) {
		_, err := ListenUnix(filepath.Join(dir, "no", "sock"))
		require.ErrorIs(t, err, unix.ENOENT)
	})
	t.Run("a long path", func(t *testing.T) {
		_, err := ListenUnix("/" + strings.Repeat("x", 107))
		require.EqualError(t, err, "a path of 108 bytes, a socket's has 107 at most")
	})
	t.Run("the abstract name space is not meant", func(t *testing.T) {
		t.Chdir(t.TempDir())
		u, err := ListenUnix("@sock")
		require.NoError(t, err)
		require.FileExists(t, "@sock")
		require.NoError(t, u.Close())
	})
}

// TestListenUnixAtOnce: of many that find one dead socket, one gets the path, and keeps it.
func TestListenUnixAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	for range 20 {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())

		var all sync.WaitGroup
		winners := make(chan *Unix, 8)
		for range cap(winners) {
			all.Go(func() {
				u, err := ListenUnix(path)
				if err == nil {
					winners <- u
				}
			})
		}
		all.Wait()
		require.Len(t, winners, 1)
		u := <-winners
		connect(t, u)
		require.NoError(t, u.Close())
	}
}

func TestUnixCloseLeavesALaterSocketAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	first, err := ListenUnix(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	second, err := ListenUnix(path)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.FileExists(t, path)
	require.NoError(t, second.Close())
}
