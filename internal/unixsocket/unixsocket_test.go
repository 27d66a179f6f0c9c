package unixsocket_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/internal/unixsocket"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := unixsocket.Listen(path)
	require.NoError(t, err)
	_, err = unixsocket.Listen(path)
	require.ErrorIs(t, err, unixsocket.ErrInUse)
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	require.FileExists(t, path)
	l, err = unixsocket.Listen(path)
	require.NoError(t, err, "a dead process's socket is replaced")

	// What is at the path by now is not ours to remove.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, l.Close())
	require.FileExists(t, path)
}
