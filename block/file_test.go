package block_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// image makes a file of this content.
func image(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

func open(t *testing.T, path string, o block.Options) *block.File {
	t.Helper()
	f, err := block.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func TestReadWrite(t *testing.T) {
	for _, cache := range []block.Cache{block.Writeback, block.None, block.Unsafe} {
		path := image(t, make([]byte, 64<<10))
		f := open(t, path, block.Options{Cache: cache})
		require.Equal(t, int64(64<<10), f.Size())
		// Addresses and lengths that direct I/O does not take.
		data := bytes.Repeat([]byte("0123456789abcdef"), 512)
		skewed := append(make([]byte, 0, len(data)+1), 0)
		skewed = append(skewed, data...)[1:]
		n, err := f.WriteAt(skewed, 8192)
		require.NoError(t, err)
		require.Equal(t, len(data), n)
		iov := []unix.Iovec{}
		got := make([]byte, len(data)+3)[3:]
		for rest := got; len(rest) > 0; rest = rest[min(1000, len(rest)):] {
			iov = append(iov, unix.Iovec{Base: unsafe.SliceData(rest), Len: uint64(min(1000, len(rest)))})
		}
		n, err = f.ReadVector(iov, 8192)
		require.NoError(t, err)
		require.Equal(t, len(data), n)
		require.Equal(t, data, got)
		require.NoError(t, f.Sync())
		stored, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, data, stored[8192:][:len(data)])
	}
}

func TestVectorsBeyondIOVMAX(t *testing.T) {
	f := open(t, image(t, make([]byte, 4096)), block.Options{})
	p := bytes.Repeat([]byte{7}, 3000)
	var iov []unix.Iovec
	for i := range p {
		iov = append(iov, unix.Iovec{Base: &p[i], Len: 1})
	}
	n, err := f.WriteVector(iov, 0)
	require.NoError(t, err)
	require.Equal(t, 3000, n)
}

// A file that ends inside a sector.
func TestOddSize(t *testing.T) {
	path := image(t, []byte("abc"))
	f := open(t, path, block.Options{})
	require.Equal(t, int64(512), f.Size())
	p := bytes.Repeat([]byte{9}, 512)
	n, err := f.ReadAt(p, 0)
	require.NoError(t, err)
	require.Equal(t, 512, n)
	require.Equal(t, append([]byte("abc"), make([]byte, 509)...), p)
	_, err = f.ReadAt(p, 512)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = f.WriteAt(p, 0)
	require.NoError(t, err)

	require.NoError(t, os.Truncate(path, 4096))
	require.NoError(t, f.Refresh())
	require.Equal(t, int64(4096), f.Size())
}

func TestLocks(t *testing.T) {
	path := image(t, make([]byte, 4096))
	for _, c := range []struct {
		first, second bool // read-only
		ok            bool
	}{{false, false, false}, {false, true, false}, {true, false, false}, {true, true, true}} {
		first, err := block.Open(path, block.Options{ReadOnly: c.first})
		require.NoError(t, err)
		second, err := block.Open(path, block.Options{ReadOnly: c.second})
		if c.ok {
			require.NoError(t, err)
			require.NoError(t, second.Close())
		} else {
			require.ErrorIs(t, err, block.ErrLocked)
		}
		require.NoError(t, first.Close())
	}
	open(t, path, block.Options{}) // the locks went with the files
}

func TestHoles(t *testing.T) {
	path := image(t, bytes.Repeat([]byte{1}, 64<<10))
	f := open(t, path, block.Options{})
	require.NoError(t, f.Discard(0, 16<<10))
	require.NoError(t, f.WriteZeroes(16<<10, 16<<10, true))
	require.NoError(t, f.WriteZeroes(32<<10, 1024, false))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, append(make([]byte, 33<<10), bytes.Repeat([]byte{1}, 31<<10)...), got)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	require.LessOrEqual(t, st.Blocks, int64(64))
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for _, c := range []struct {
		path, want string
	}{
		{filepath.Join(dir, "none"), "no such file"},
		{dir, "is a directory"},
		{fifo, "neither a file nor a block device"},
		{image(t, nil), "is empty"},
	} {
		_, err := block.Open(c.path, block.Options{})
		require.ErrorContains(t, err, c.want)
	}
	_, err := block.Open("/dev/null", block.Options{})
	require.Error(t, err)
}

func TestCreateAndTemporary(t *testing.T) {
	path := image(t, make([]byte, 4096))
	locked, err := block.Open(path, block.Options{ReadOnly: true})
	require.NoError(t, err)
	_, err = block.Create(path)
	require.ErrorIs(t, err, block.ErrLocked)
	require.NoError(t, locked.Close())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 4096, st.Size(), "cut although it was in use")

	f, err := block.Create(path)
	require.NoError(t, err)
	require.Zero(t, f.Size())
	require.NoError(t, f.Truncate(8192))
	require.EqualValues(t, 8192, f.Size())
	require.NoError(t, f.Close())

	dir := t.TempDir()
	f, err = block.Temporary(dir)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, names)
}

// A loop device stands for all block devices.
func TestBlockDevice(t *testing.T) {
	path := image(t, make([]byte, 1<<20))
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("%v: modprobe loop, as root", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	require.NoError(t, err)
	device := "/dev/loop" + string('0'+rune(n))
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("%v: mknod it, as root", err)
	}
	defer loop.Close()
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer backing.Close()
	require.NoError(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(backing.Fd())))
	defer func() { require.NoError(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)) }()

	f := open(t, device, block.Options{})
	require.Equal(t, int64(1<<20), f.Size())
	logical, physical := f.BlockSizes()
	require.GreaterOrEqual(t, logical, 512)
	require.GreaterOrEqual(t, physical, logical)
	_, err = f.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
	require.NoError(t, err)
	require.NoError(t, f.WriteZeroes(0, 4096, false))
	require.NoError(t, f.Discard(4096, 4096))
	require.NoError(t, f.Sync())
	require.NoError(t, f.Truncate(4096), "a device keeps its size")
	require.Equal(t, int64(1<<20), f.Size())
	require.ErrorIs(t, f.Truncate(2<<20), unix.ENOSPC)
	p := make([]byte, 8192)
	_, err = f.ReadAt(p, 0)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 8192), p)
}
