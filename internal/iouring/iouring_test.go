package iouring_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/internal/iouring"
	"vmm/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func newRing(t *testing.T, entries uint32) *iouring.Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := iouring.New(entries)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("%v; allow io_uring: sysctl kernel.io_uring_disabled=0, and a container's seccomp policy", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func iovec(p []byte) []unix.Iovec { return []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}} }

func TestReadWrite(t *testing.T) {
	r := newRing(t, 4)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, r.RegisterFile(int(f.Fd())))

	text := []byte("hello")
	require.True(t, r.Writev(iovec(text), 3, 7))
	require.Equal(t, 1, r.Queued())
	require.NoError(t, r.Enter(1))
	require.Zero(t, r.Queued())
	data, n, ok := r.Next()
	require.True(t, ok)
	require.Equal(t, uint64(7), data)
	require.Equal(t, int32(5), n)
	_, _, ok = r.Next()
	require.False(t, ok)

	p := make([]byte, 16)
	require.True(t, r.Readv(iovec(p), 0, 8))
	require.NoError(t, r.Enter(1))
	_, n, _ = r.Next()
	require.Equal(t, "\x00\x00\x00hello", string(p[:n]))
}

func TestErrorsAreResults(t *testing.T) {
	r := newRing(t, 4)
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, r.RegisterFile(int(f.Fd())))
	require.True(t, r.Writev(iovec([]byte("x")), 0, 1)) // not open for writing
	require.NoError(t, r.Enter(1))
	_, n, _ := r.Next()
	require.Equal(t, -int32(unix.EBADF), n)
}

func TestEvent(t *testing.T) {
	r := newRing(t, 4)
	e, err := eventfd.New()
	require.NoError(t, err)
	defer e.Close()
	var counter uint64
	require.True(t, r.ReadEvent(e.FD(), &counter, 9))
	require.NoError(t, r.Enter(0))
	require.False(t, r.HasCompletions())
	go e.Signal()
	require.NoError(t, r.Enter(1))
	data, n, ok := r.Next()
	require.True(t, ok)
	require.Equal(t, uint64(9), data)
	require.Equal(t, int32(8), n)
	require.Equal(t, uint64(1), counter)
}

// More than fits at once, again and again: the indices wrap.
func TestMany(t *testing.T) {
	r := newRing(t, 4)
	f, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, r.RegisterFile(int(f.Fd())))
	p := make([]byte, 8)
	iov := iovec(p)
	round := func() {
		for i := range 4 {
			if !r.Readv(iov, 0, uint64(i)) {
				t.Fatal("full")
			}
		}
		if r.Readv(iov, 0, 4) {
			t.Fatal("not full")
		}
		if err := r.Enter(4); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, n, ok := r.Next(); !ok || n != 8 {
				t.Fatal(n, ok)
			}
		}
	}
	require.Zero(t, int(testing.AllocsPerRun(1000, round)))
}
