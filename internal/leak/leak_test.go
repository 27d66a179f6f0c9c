package leak

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestNothing(t *testing.T) {
	require.Empty(t, wait(snapshot(), 0))
}

func TestDescriptor(t *testing.T) {
	before := snapshot()
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	left := wait(before, 0)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "/dev/null")

	require.NoError(t, f.Close())
	require.Empty(t, wait(before, 0))
}

func TestMapping(t *testing.T) {
	before := snapshot()
	fd, err := unix.MemfdCreate("leaktest", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(fd, 4096))
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	left := wait(before, 0)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "memfd:leaktest")

	require.NoError(t, unix.Munmap(b))
	require.Empty(t, wait(before, 0))
}

func TestGoroutine(t *testing.T) {
	before := snapshot()
	stop := make(chan struct{})
	go func() { <-stop }()
	left := wait(before, 0)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "TestGoroutine")

	close(stop)
	require.Empty(t, wait(before, time.Minute), "a goroutine that ends late is no leak")
}
