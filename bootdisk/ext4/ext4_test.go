package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/bootdisk/ext4"
	"vmm/internal/leak"
	"vmm/internal/tooltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// run runs a program of Debian's e2fsprogs.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return tooltest.Run(t, "e2fsprogs", name, args...)
}

// tree is a folder with all that a reader may meet.
func tree(t testing.TB) (dir string, want map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	r := rand.New(rand.NewPCG(1, 1))
	want = map[string][]byte{}
	file := func(name string, data []byte) {
		want[name] = data
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, data, 0o644))
	}
	big := make([]byte, 5<<20+123)
	for i := range big {
		big[i] = byte(r.Uint32())
	}
	file("boot/vmlinuz-6.1", big)
	file("boot/small", []byte("small"))
	file("empty", nil)
	for i := range 600 { // a directory with a hash tree
		file(fmt.Sprintf("many/a-file-with-a-long-name-so-that-the-directory-becomes-large-%04d", i), []byte(strconv.Itoa(i)))
	}
	sparse := make([]byte, 3<<20)
	copy(sparse[1<<20:], "in the middle of nothing")
	file("sparse", sparse)
	f, err := os.Create(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("in the middle of nothing"), 1<<20)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(3<<20))
	require.NoError(t, f.Close())
	link := func(target, name string) {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	link("boot/vmlinuz-6.1", "vmlinuz")
	link("/boot/../boot/./small", "absolute")
	link(strings.Repeat("./", 100)+"boot/small", "long")
	link("loop2", "loop1")
	link("loop1", "loop2")
	link("../many", "boot/up")
	return dir, want
}

// TestRead reads file systems of all kinds that mke2fs makes.
func TestRead(t *testing.T) {
	dir, want := tree(t)
	for _, options := range []string{
		"-t ext4", "-t ext4 -b 1024", "-t ext4 -b 2048", "-t ext4 -O ^64bit", "-t ext4 -O ^extents,^64bit,^metadata_csum", "-t ext2", "-t ext3", "-t ext2 -b 1024",
		"-t ext4 -O metadata_csum_seed,orphan_file", "-t ext4 -O meta_bg,^resize_inode -b 1024", "-t ext4 -O ^metadata_csum,uninit_bg", "-t ext4 -I 128",
		"-t ext4 -O ^flex_bg", "-t ext4 -g 1024 -b 1024", "-t ext4 -O large_dir,ea_inode,casefold", "-t ext4 -O sparse_super2",
		"-t ext2 -r 0 -b 1024",
	} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			args := append(strings.Fields(options), "-q", "-L", "a label", "-U", "11223344-5566-7788-99aa-bbccddeeff00", "-d", dir, path, "64M")
			run(t, "mke2fs", args...)
			check(t, path, want)
		})
	}
}

func check(t *testing.T, path string, want map[string][]byte) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	f, err := ext4.Open(file)
	require.NoError(t, err)
	require.Equal(t, "a label", f.Label())
	require.Equal(t, "11223344-5566-7788-99aa-bbccddeeff00", f.UUID())
	for name, data := range want {
		got, err := read(f, name)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(data, got), name)
	}
	for link, name := range map[string]string{
		"/vmlinuz": "boot/vmlinuz-6.1", "absolute": "boot/small", "long": "boot/small", "boot/../../long": "boot/small",
		"boot/up/a-file-with-a-long-name-so-that-the-directory-becomes-large-0599": "many/a-file-with-a-long-name-so-that-the-directory-becomes-large-0599",
	} {
		got, err := read(f, link)
		require.NoError(t, err, link)
		require.True(t, bytes.Equal(want[name], got), link)
	}
	for _, name := range []string{"none", "boot/none", "empty/x", "boot/small/x", "none/../empty"} {
		_, err := f.Open(name)
		require.ErrorIs(t, err, fs.ErrNotExist, name)
		_, err = f.ReadDir(name)
		require.ErrorIs(t, err, fs.ErrNotExist, name)
	}
	_, err = f.Open("boot")
	require.EqualError(t, err, "boot: not a regular file")
	_, err = f.Open("loop1")
	require.EqualError(t, err, "loop1: too many symbolic links")
	names, err := f.ReadDir("/boot")
	require.NoError(t, err)
	require.Equal(t, []string{"small", "up", "vmlinuz-6.1"}, names)
	names, err = f.ReadDir("many")
	require.NoError(t, err)
	require.Len(t, names, 600)
	_, err = f.ReadDir("empty")
	require.EqualError(t, err, "empty: not a directory")
	open, err := f.Open("boot/vmlinuz-6.1")
	require.NoError(t, err)
	p := make([]byte, 10_000)
	for _, off := range []int64{0, 1, 4095, 1 << 20, open.Size() - 10_000} {
		_, err := open.ReadAt(p, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want["boot/vmlinuz-6.1"][off:off+10_000], p))
	}
	n, err := open.ReadAt(p, open.Size()-1)
	require.Equal(t, 1, n)
	require.ErrorIs(t, err, io.EOF)
}

func read(f *ext4.FS, name string) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, file.Size())
	_, err = file.ReadAt(p, 0)
	return p, err
}

// TestUnwritten: what was only reserved reads as zeroes, whatever is there on the disk.
func TestUnwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{0xee}, 16<<20), 0o600))
	run(t, "mke2fs", "-q", "-t", "ext4", "-F", path)
	run(t, "debugfs", "-w", "-R", "write /dev/null reserved", path)
	run(t, "debugfs", "-w", "-R", "fallocate reserved 0 9", path)
	run(t, "debugfs", "-w", "-R", "set_inode_field reserved size 40960", path)
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	f, err := ext4.Open(file)
	require.NoError(t, err)
	got, err := read(f, "reserved")
	require.NoError(t, err)
	require.Equal(t, make([]byte, 40960), got)
}

// TestJournal: what is only in the journal is read from there.
func TestJournal(t *testing.T) {
	for _, options := range []string{"-t ext4 -b 4096", "-t ext4 -O ^64bit -b 4096", "-t ext4 -O ^metadata_csum -b 1024", "-t ext3 -b 4096"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			run(t, "mke2fs", append(strings.Fields(options), "-q", "-F", path, "32M")...)
			write := func(name, text string) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), []byte(text), 0o600))
				run(t, "debugfs", "-w", "-R", "write "+filepath.Join(dir, "text")+" "+name, path)
			}
			old, replayed := strings.Repeat("old ", 1024), strings.Repeat("new!", 1024)
			write("file", old)
			write("escaped", old)
			number := func(name string) string {
				return strings.Fields(strings.Split(run(t, "debugfs", "-R", "bmap "+name+" 0", path), "\n")[1])[0]
			}
			first, second := number("file"), number("escaped")
			blockSize := 4096
			if strings.Contains(options, "1024") {
				blockSize = 1024
			}
			// Two transactions; the second writes a block that looks like one of the journal's own.
			escaped := "\xc0\x3b\x39\x98" + replayed[4:]
			for i, data := range []string{replayed, escaped} {
				require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("block", i)), []byte(data[:blockSize]), 0o600))
			}
			script := filepath.Join(dir, "script")
			require.NoError(t, os.WriteFile(script, []byte(fmt.Sprintf("jo\njw -b %s %s/block0\njw -b %s %s/block1\njc\n", first, dir, second, dir)), 0o600))
			run(t, "debugfs", "-w", "-f", script, path)
			require.Contains(t, run(t, "dumpe2fs", "-h", path), "needs_recovery")

			file, err := os.Open(path)
			require.NoError(t, err)
			defer file.Close()
			f, err := ext4.Open(file)
			require.NoError(t, err)
			got, err := read(f, "file")
			require.NoError(t, err)
			require.Equal(t, replayed[:blockSize]+old[blockSize:], string(got))
			got, err = read(f, "escaped")
			require.NoError(t, err)
			require.Equal(t, escaped[:blockSize]+old[blockSize:], string(got))

			// A transaction that revokes a block undoes the one before.
			require.NoError(t, os.WriteFile(script, []byte(fmt.Sprintf("jo\njw -r %s\njc\n", first)), 0o600))
			run(t, "debugfs", "-w", "-f", script, path)
			f, err = ext4.Open(file)
			require.NoError(t, err)
			got, err = read(f, "file")
			require.NoError(t, err)
			require.Equal(t, old, string(got))
		})
	}
}

func TestRefused(t *testing.T) {
	_, err := ext4.Open(bytes.NewReader(nil))
	require.ErrorIs(t, err, ext4.ErrFormat)
	_, err = ext4.Open(bytes.NewReader(make([]byte, 1<<20)))
	require.ErrorIs(t, err, ext4.ErrFormat)
}

// FuzzFS reads what somebody has tampered with.
func FuzzFS(f *testing.F) {
	dir := f.TempDir()
	require.NoError(f, os.Mkdir(filepath.Join(dir, "boot"), 0o755))
	require.NoError(f, os.WriteFile(filepath.Join(dir, "boot", "file"), bytes.Repeat([]byte("x"), 30_000), 0o600))
	require.NoError(f, os.Symlink("boot/file", filepath.Join(dir, "link")))
	var images [][]byte
	for i, options := range []string{"-t ext4 -b 1024", "-t ext2 -b 1024"} {
		path := filepath.Join(f.TempDir(), strconv.Itoa(i))
		run(f, "mke2fs", append(strings.Fields(options), "-q", "-N", "64", "-d", dir, path, "2M")...)
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		images = append(images, data)
	}
	f.Add(uint8(0), []byte{0, 4, 0x38, 1})
	f.Add(uint8(1), []byte{0, 4, 0x60, 4, 0, 4, 0xe0, 8})
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		data := bytes.Clone(images[int(which)%len(images)])
		for ; len(edits) >= 4; edits = edits[4:] { // each is three bytes of place and one of value
			data[(int(edits[0])<<16|int(edits[1])<<8|int(edits[2]))%len(data)] = edits[3]
		}
		fsys, err := ext4.Open(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, name := range []string{"boot/file", "link", "lost+found/x"} {
			file, err := fsys.Open(name)
			if err != nil {
				continue
			}
			p := make([]byte, 50_000)
			if n, err := file.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) && n > len(p) {
				t.Fatal(n)
			}
			_, _ = file.ReadAt(p, max(file.Size()-10, 0))
		}
		_, _ = fsys.ReadDir("/")
	})
}
