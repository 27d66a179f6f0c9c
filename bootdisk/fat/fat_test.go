package fat_test

import (
	"bytes"
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

	"vmm/bootdisk/fat"
	"vmm/internal/leak"
	"vmm/internal/tooltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// makeFS makes a file system with mkfs.fat's options, and puts the files in with mtools. It takes size in KiB.
func makeFS(t testing.TB, size int, options string, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "fs")
	tooltest.Run(t, "dosfstools", "mkfs.fat", append(strings.Fields(options), "-C", path, strconv.Itoa(size))...)
	tree := filepath.Join(dir, "tree")
	for name, data := range files {
		file := filepath.Join(tree, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, data, 0o600))
	}
	top, err := filepath.Glob(tree + "/*")
	require.NoError(t, err)
	tooltest.Run(t, "mtools", "mcopy", append(append([]string{"-s", "-i", path}, top...), "::/")...)
	return path
}

func TestFiles(t *testing.T) {
	want := map[string][]byte{
		"/SHORT.TXT": []byte("short"), "/empty": nil,
		"/EFI/Linux/a long name, with spaces and ümlauts.efi": bytes.Repeat([]byte("0123456789abcdef"), 30_000),
	}
	for i := range 300 {
		want[fmt.Sprintf("/many/a-long-name-%04d.conf", i)] = []byte(strconv.Itoa(i))
	}
	for bits, size := range map[int]int{12: 1500, 16: 16 << 10, 32: 64 << 10} {
		for _, sector := range []int{512, 4096} {
			if sector == 4096 && bits == 12 {
				size = 4 << 10
			}
			if sector == 4096 && bits == 16 {
				size = 64 << 10
			}
			if sector == 4096 && bits == 32 {
				size = 512 << 10 // at least 65,525 clusters
			}
			t.Run(fmt.Sprintf("FAT%d, sectors of %d", bits, sector), func(t *testing.T) {
				path := makeFS(t, size, fmt.Sprintf("-F %d -S %d -s 1 -n LABEL -i 1234abcd", bits, sector), want)
				file, err := os.Open(path)
				require.NoError(t, err)
				defer file.Close()
				f, err := fat.Open(file)
				require.NoError(t, err)
				require.Equal(t, "LABEL", f.Label())
				require.Equal(t, "1234-ABCD", f.UUID())
				for name, data := range want {
					i, err := f.Open(name)
					require.NoError(t, err)
					require.EqualValues(t, len(data), i.Size())
					got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
					require.NoError(t, err)
					require.True(t, bytes.Equal(data, got), name)
				}
				_, err = f.Open("/efi/linux/A LONG NAME, with spaces and Ümlauts.EFI")
				require.NoError(t, err, "case makes no difference")
				big, err := f.Open("/EFI/Linux/a long name, with spaces and ümlauts.efi")
				require.NoError(t, err)
				p := make([]byte, 100)
				n, err := big.ReadAt(p, 479_950)
				require.Equal(t, 50, n)
				require.ErrorIs(t, err, io.EOF)
				names, err := f.ReadDir("/many")
				require.NoError(t, err)
				require.Len(t, names, 300)
				require.Equal(t, "a-long-name-0007.conf", names[7])
				for _, missing := range []string{"/no", "/no/such", "/empty/x"} {
					_, err := f.Open(missing)
					require.ErrorIs(t, err, fs.ErrNotExist)
				}
				_, err = f.Open("/many")
				require.EqualError(t, err, "/many: is a directory")
			})
		}
	}
}

func TestNoFAT(t *testing.T) {
	for _, p := range [][]byte{nil, make([]byte, 511), make([]byte, 4096), append(bytes.Repeat([]byte{0xeb}, 510), 0x55, 0xaa)} {
		_, err := fat.Open(bytes.NewReader(p))
		require.ErrorIs(t, err, fat.ErrFormat)
	}
}

// walk reads all that it finds, as far as it goes.
func walk(f *fat.FS, dir string, depth int) {
	names, err := f.ReadDir(dir)
	if err != nil || depth == 0 {
		return
	}
	for _, name := range names[:min(len(names), 20)] {
		walk(f, dir+"/"+name, depth-1)
		if i, err := f.Open(dir + "/" + name); err == nil {
			_, _ = io.Copy(io.Discard, io.NewSectionReader(i, 0, min(i.Size(), 1<<20)))
		}
	}
}

// TestCorrupt changes bytes at random: there must be an end, and no panic.
func TestCorrupt(t *testing.T) {
	path := makeFS(t, 1024, "-F 12", map[string][]byte{"/a": make([]byte, 50_000), "/dir/sub/file with a long name": []byte("x")})
	sound, err := os.ReadFile(path)
	require.NoError(t, err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	failed := 0
	for range 3000 {
		p := bytes.Clone(sound)
		for range 1 + r.IntN(8) {
			p[r.IntN(20_000)] = byte(r.Uint32())
		}
		f, err := fat.Open(bytes.NewReader(p))
		if err != nil {
			failed++
			continue
		}
		walk(f, "", 5)
	}
	require.Less(t, failed, 2900)

	// A chain that is a ring: the file's first cluster leads to itself.
	p := bytes.Clone(sound)
	f, err := fat.Open(bytes.NewReader(p))
	require.NoError(t, err)
	_, err = f.Open("/a")
	require.NoError(t, err)
	for at := 512; at < 512+600; at++ { // somewhere in the table
		p[at] = 0
	}
	f, err = fat.Open(bytes.NewReader(p))
	require.NoError(t, err)
	_, err = f.Open("/a")
	require.Error(t, err)
	require.NotErrorIs(t, err, fs.ErrNotExist)
}

func FuzzFS(f *testing.F) {
	for _, options := range []string{"-F 12", "-F 12 -s 4"} {
		sound, err := os.ReadFile(makeFS(f, 1024, options, map[string][]byte{"/a": []byte("x"), "/dir/file with a long name": []byte("x")}))
		require.NoError(f, err)
		f.Add(sound[:64<<10])
	}
	f.Fuzz(func(_ *testing.T, p []byte) {
		if fs, err := fat.Open(bytes.NewReader(p)); err == nil {
			walk(fs, "", 4)
		}
	})
}
