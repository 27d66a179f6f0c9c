package image_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/block/image"
	"vmm/block/qcow2"
	"vmm/internal/leak"
	"vmm/virtio/blk"
)

func TestMain(m *testing.M) { leak.Main(m) }

// The abilities that a disk device looks for.
var (
	_ blk.Backend       = image.Disk(nil)
	_ blk.VectorBackend = (*qcow2.Image)(nil)
	_ blk.Discarder     = (*qcow2.Image)(nil)
	_ blk.ZeroWriter    = (*qcow2.Image)(nil)
	_ blk.Blocked       = (*qcow2.Image)(nil)
	_ qcow2.Storage     = (*block.File)(nil)
)

// create makes a qcow2 image of size bytes over a backing file.
func create(t *testing.T, path string, size int64, backing, format string) {
	t.Helper()
	f, err := block.Create(path)
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(f, qcow2.CreateOptions{Size: size, BackingFile: backing, BackingFormat: format}))
	require.NoError(t, f.Close())
}

func open(t *testing.T, path string, o image.Options) *image.Image {
	t.Helper()
	i, err := image.Open(path, o)
	require.NoError(t, err)
	return i
}

func read(t *testing.T, d image.Disk, off int64, n int) string {
	t.Helper()
	p := make([]byte, n)
	_, err := d.ReadAt(p, off)
	require.NoError(t, err)
	return string(p)
}

func TestChain(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("dir", 0o700))
	require.NoError(t, os.WriteFile("dir/base", bytes.Repeat([]byte("base"), 1024), 0o600))
	create(t, "dir/middle", 8192, "base", "raw")
	create(t, "top", 16384, "dir/middle", "")

	i := open(t, "top", image.Options{})
	require.Equal(t, image.Qcow2, i.Format)
	require.EqualValues(t, 16384, i.Disk.Size())
	require.Equal(t, "base", read(t, i.Disk, 4092, 4))
	require.Equal(t, "\x00\x00\x00\x00", read(t, i.Disk, 4096, 4))
	_, err := i.Disk.WriteAt(bytes.Repeat([]byte("top!"), 128), 0)
	require.NoError(t, err)
	require.Equal(t, "top!base", read(t, i.Disk, 508, 8))

	_, err = image.Open("top", image.Options{})
	require.ErrorIs(t, err, block.ErrLocked)
	_, err = image.Open("dir/middle", image.Options{})
	require.ErrorIs(t, err, block.ErrLocked, "a backing file must not change")
	other := open(t, "dir/middle", image.Options{ReadOnly: true})
	require.Equal(t, "base", read(t, other.Disk, 0, 4))
	require.NoError(t, other.Close())
	require.NoError(t, i.Close())
	require.NoError(t, i.Close())

	i = open(t, "top", image.Options{ReadOnly: true})
	require.Equal(t, "top!base", read(t, i.Disk, 508, 8))
	_, err = i.Disk.WriteAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, qcow2.ErrReadOnly)
	require.NoError(t, i.Close())
}

func TestSnapshot(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("raw", bytes.Repeat([]byte("raw!"), 1024), 0o400))
	create(t, "qcow2", 4096, "raw", "raw")
	for _, name := range []string{"raw", "qcow2"} {
		before, err := os.ReadFile(name)
		require.NoError(t, err)
		i := open(t, name, image.Options{Snapshot: true})
		require.Equal(t, name, i.Format)
		_, err = i.Disk.WriteAt(bytes.Repeat([]byte("new!"), 128), 512)
		require.NoError(t, err)
		require.Equal(t, "raw!new!", read(t, i.Disk, 508, 8))
		require.Equal(t, "new!raw!", read(t, i.Disk, 1020, 8))
		require.NoError(t, i.Disk.Sync())
		require.NoError(t, i.Close())
		after, err := os.ReadFile(name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(before, after))
	}
	t.Setenv("TMPDIR", "/nowhere")
	_, err := image.Open("raw", image.Options{Snapshot: true})
	require.EqualError(t, err, "temporary file for what the guest writes: /nowhere: no such file or directory")
}

// TestGuard: a guest cannot make an image of another format of a raw disk, unless the user has said that it is raw.
func TestGuard(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("raw", make([]byte, 8192), 0o600))
	evil := append([]byte(qcow2.Magic), make([]byte, 1020)...)
	vector := func() []unix.Iovec {
		return []unix.Iovec{{Base: &evil[0], Len: 2}, {Base: &evil[2], Len: uint64(len(evil) - 2)}}
	}
	i := open(t, "raw", image.Options{})
	require.EqualValues(t, 512, i.Disk.(blk.Guarded).DirectFrom())
	_, err := i.Disk.WriteAt(evil, 0)
	require.ErrorIs(t, err, image.ErrGuarded)
	_, err = i.Disk.(blk.VectorBackend).WriteVector(vector(), 0)
	require.ErrorIs(t, err, image.ErrGuarded)
	_, err = i.Disk.(blk.VectorBackend).WriteVector(vector(), 512)
	require.NoError(t, err, "elsewhere it is data")
	harmless := bytes.Repeat([]byte("data"), 512)
	n, err := i.Disk.(blk.VectorBackend).WriteVector([]unix.Iovec{{Base: &harmless[0], Len: 100}, {Base: &harmless[100], Len: 1948}}, 0)
	require.NoError(t, err)
	require.Equal(t, 2048, n)
	require.Equal(t, string(harmless), read(t, i.Disk, 0, 2048))
	require.NoError(t, i.Close())

	i = open(t, "raw", image.Options{Format: image.Raw})
	_, err = i.Disk.WriteAt(evil, 0)
	require.NoError(t, err)
	require.NoError(t, i.Close())
}

func TestMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("raw", make([]byte, 4096), 0o600))
	create(t, "self", 4096, "self", "qcow2")
	create(t, "a", 4096, "b", "qcow2")
	create(t, "b", 4096, "a", "qcow2")
	create(t, "orphan", 4096, "gone", "")
	create(t, "remote", 4096, "nbd://somewhere/disk", "")
	for n, magic := range []string{"KDMV", "vhdxfile", "\x1f\x8b\x08", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		require.NoError(t, os.WriteFile(fmt.Sprint("magic", n), append([]byte(magic), make([]byte, 4096)...), 0o600))
	}
	for _, tt := range []struct{ path, format, want string }{
		{"nothing", "", "no such file or directory"},
		{"raw", "qcow2", "not a qcow2 image"},
		{"raw", "vdi", `format "vdi": not raw or qcow2`},
		{"self", "", "backing file self: is its own backing file"},
		{"a", "", "backing file b: backing file a: is its own backing file"},
		{"orphan", "", "backing file gone: no such file or directory"},
		{"remote", "", `backing file "nbd://somewhere/disk": not a file of this host`},
		{"magic0", "", "not a raw or qcow2 image but VMDK (qemu-img convert -O qcow2 makes one)"},
		{"magic1", "", "not a raw or qcow2 image but VHDX (qemu-img convert -O qcow2 makes one)"},
		{"magic2", "", "not a raw or qcow2 image but gzip (gunzip unpacks it)"},
		{"magic3", "", "not a raw or qcow2 image but xz (unxz unpacks it)"},
		{"magic4", "", "not a raw or qcow2 image but zstd (unzstd unpacks it)"},
	} {
		_, err := image.Open(tt.path, image.Options{Format: tt.format})
		require.EqualError(t, err, tt.want, tt.path)
	}
}

func TestCopy(t *testing.T) {
	t.Chdir(t.TempDir())
	want := make([]byte, 3<<20+512)
	copy(want[1<<20:], bytes.Repeat([]byte{1}, 5000))
	copy(want[3<<20:], bytes.Repeat([]byte{2}, 512))
	require.NoError(t, os.WriteFile("raw", want, 0o600))
	create(t, "copy", int64(len(want)), "", "")
	src, dst := open(t, "raw", image.Options{ReadOnly: true}), open(t, "copy", image.Options{})
	last := int64(0)
	require.NoError(t, image.Copy(dst.Disk, src.Disk, func(done int64) { last = done }))
	require.EqualValues(t, len(want), last)
	require.NoError(t, dst.Close())
	require.NoError(t, src.Close())
	dst = open(t, "copy", image.Options{ReadOnly: true})
	got, err := io.ReadAll(io.NewSectionReader(dst.Disk, 0, dst.Disk.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.NoError(t, dst.Close())
	st, err := os.Stat("copy")
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(1<<20), "zeroes take no room")
}
