package ext4_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	reader "vmm/bootdisk/ext4"
	"vmm/container/ext4"
	"vmm/internal/leak"
	"vmm/internal/tooltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func dir(children map[string]*ext4.Node) *ext4.Node {
	return &ext4.Node{Mode: 0o40755, Modified: time.Unix(1e9, 0), Children: children}
}

func file(data []byte) *ext4.Node {
	return &ext4.Node{Mode: 0o100644, Data: bytes.NewReader(data), Size: int64(len(data))}
}

// image writes the tree to a file, which e2fsck finds nothing wrong with.
func image(t testing.TB, root *ext4.Node, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, ext4.Write(f, root, ext4.Options{Size: size, UUID: [16]byte{1, 2, 3}}))
	require.NoError(t, f.Close())
	tooltest.Run(t, "e2fsprogs", "e2fsck", "-fn", path)
	return path
}

// debugfs returns what debugfs says to one command.
func debugfs(t testing.TB, path, command string) string {
	t.Helper()
	return tooltest.Run(t, "e2fsprogs", "debugfs", "-R", command, path)
}

// TestWrite makes a file system with each kind of file, for programs of others' to read.
func TestWrite(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	big := make([]byte, 5<<20+123)
	_, _ = r.Read(big)
	sparse := make([]byte, 3<<20)
	copy(sparse[1<<20:], "in the middle of nothing")
	shared := file([]byte("shared"))
	acl, err := hex.DecodeString("02000000" + "01000700ffffffff" + "02000600e8030000" + "04000500ffffffff" + "10000700ffffffff" + "20000500ffffffff")
	require.NoError(t, err)
	many := map[string]*ext4.Node{}
	for i := range 3000 {
		many[fmt.Sprintf("a-file-with-a-long-name-%04d", i)] = file(nil)
	}
	long := strings.Repeat("./", 100) + "small"
	root := dir(map[string]*ext4.Node{
		"big": file(big), "sparse": file(sparse), "small": file([]byte("small")), "empty": file(nil), "a": shared, "b": shared,
		"many": dir(many), "nested": dir(map[string]*ext4.Node{"deeper": dir(map[string]*ext4.Node{"c": shared})}),
		"short":     {Mode: 0o120777, Target: "small"},
		"long":      {Mode: 0o120777, Target: long},
		"null":      {Mode: 0o020666, Major: 1, Minor: 3},
		"disk":      {Mode: 0o060660, Major: 259, Minor: 70000, GID: 6},
		"fifo":      {Mode: 0o010600},
		"socket":    {Mode: 0o140700},
		"sudo":      {Mode: 0o104755, UID: 70000, GID: 80000},
		"sticky":    {Mode: 0o041777},
		"attribute": {Mode: 0o100755, Xattrs: map[string][]byte{"security.capability": []byte("twenty bytes of caps"), "user.empty": nil}},
		"acl":       {Mode: 0o100755, Xattrs: map[string][]byte{"system.posix_acl_access": acl, "user.long": bytes.Repeat([]byte("x"), 1001)}},
		"future":    {Mode: 0o100644, Modified: time.Date(2100, 1, 2, 3, 4, 5, 678, time.UTC)},
		"past":      {Mode: 0o100644, Modified: time.Date(1955, 1, 2, 3, 4, 5, 678, time.UTC)},
	})
	path := image(t, root, 300<<20)

	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	fs, err := reader.Open(f)
	require.NoError(t, err)
	for name, want := range map[string][]byte{
		"big": big, "sparse": sparse, "small": []byte("small"), "empty": {}, "a": []byte("shared"), "b": []byte("shared"), "nested/deeper/c": []byte("shared"),
		"short": []byte("small"), "long": []byte("small"),
	} {
		file, err := fs.Open(name)
		require.NoError(t, err, name)
		got := make([]byte, file.Size())
		_, err = file.ReadAt(got, 0)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(want, got), name)
	}
	names, err := fs.ReadDir("many")
	require.NoError(t, err)
	require.ElementsMatch(t, slices.Collect(maps.Keys(many)), names)

	for name, want := range map[string][]string{
		"null":      {"Type: character special", "Mode:  0666", "Device major/minor number: 01:03"},
		"disk":      {"Type: block special", "Device major/minor number: 259:70000", "Group:     6"},
		"fifo":      {"Type: FIFO"},
		"socket":    {"Type: socket"},
		"sudo":      {"Mode:  04755", "User: 70000", "Group: 80000"},
		"sticky":    {"Type: directory", "Mode:  01777"},
		"a":         {"Links: 3"},
		"nested":    {"Links: 3"},
		"attribute": {`security.capability (20) = "twenty bytes of caps"`, "user.empty (0)"},
		"acl":       {"system.posix_acl_access (28)", "user.long (1001)"},
		"future":    {"2100"},
		"past":      {"1955"},
		"long":      {fmt.Sprintf("Size: %d", len(long))},
	} {
		said := debugfs(t, path, "stat "+name)
		for _, words := range want {
			require.Contains(t, said, words, name)
		}
	}
	require.Contains(t, debugfs(t, path, "ea_get -x acl system.posix_acl_access"), "02 00 00 00 01 00 07 00 00 00 00 00 02 00 06 00 e8 03 00 00 04 00 05 00 00 00 00 00 10 00 07 00 00 00 00 00 20 00 05 00 00 00 00 00")
}

// TestWriteTwice gets the same bytes from the same tree.
func TestWriteTwice(t *testing.T) {
	root := dir(map[string]*ext4.Node{"x": file([]byte("x")), "y": dir(nil), "z": {Mode: 0o120777, Target: "y"}})
	var images [2][]byte
	for i := range images {
		var err error
		images[i], err = os.ReadFile(image(t, root, 64<<20))
		require.NoError(t, err)
	}
	require.True(t, bytes.Equal(images[0], images[1]))
}

// zeros is data without an end.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// TestWriteSizes makes file systems from the least to large ones, and a file that needs a tree of extents.
func TestWriteSizes(t *testing.T) {
	for _, size := range []int64{40 << 20, 128<<20 - 4096, 128 << 20, 128<<20 + 4096, 1<<30 + 5*4096 + 17, 100 << 30} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			image(t, dir(map[string]*ext4.Node{"x": file([]byte("x"))}), size)
		})
	}
	t.Run("extents", func(t *testing.T) {
		n := &ext4.Node{Mode: 0o100644, Data: zeros{}, Size: 2<<30 + 1}
		path := image(t, dir(map[string]*ext4.Node{"huge": n}), 4<<30)
		said := debugfs(t, path, "stat huge")
		require.Contains(t, said, "(ETB0)")
		require.Contains(t, said, "(491520-524287):")
		require.Contains(t, said, "(524288):")
	})
	t.Run("inodes", func(t *testing.T) {
		many := map[string]*ext4.Node{}
		for i := range 20_000 { // more than one for each 16 KiB
			many[strconv.Itoa(i)] = &ext4.Node{Mode: 0o010644}
		}
		image(t, dir(many), 64<<20)
	})
}

// TestWriteRefused has errors for what ext4 cannot hold.
func TestWriteRefused(t *testing.T) {
	folder := dir(nil)
	for name, c := range map[string]struct {
		root *ext4.Node
		want string
	}{
		"no directory":  {file(nil), "the root is not a directory"},
		"no room":       {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Data: zeros{}, Size: 1 << 30}}), "2 files do not fit into a file system of 67108864 bytes"},
		"name":          {dir(map[string]*ext4.Node{strings.Repeat("n", 256): file(nil)}), "is no name of a file"},
		"dots":          {dir(map[string]*ext4.Node{"..": file(nil)}), `".." is no name of a file`},
		"slash":         {dir(map[string]*ext4.Node{"a/b": file(nil)}), `"a/b" is no name of a file`},
		"mode":          {dir(map[string]*ext4.Node{"x": {Mode: 0o644}}), `"x": no type of file has the mode 0644`},
		"link":          {dir(map[string]*ext4.Node{"x": {Mode: 0o120777, Target: strings.Repeat("x", 5000)}}), `"x": a symbolic link to a path of 5000 bytes`},
		"two names":     {dir(map[string]*ext4.Node{"x": folder, "y": folder}), `"y": a directory with two names`},
		"attributes":    {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Xattrs: map[string][]byte{"user.x": make([]byte, 5000)}}}), "extended attributes of more than a block"},
		"an attribute":  {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Xattrs: map[string][]byte{"other.x": nil}}}), `"other.x" is no name of an extended attribute`},
		"access lists":  {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Xattrs: map[string][]byte{"system.posix_acl_access": []byte("x")}}}), "extended attribute system.posix_acl_access: not an access control list of version 2"},
		"size":          {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Data: zeros{}, Size: 1 << 50}}), `"x": a file of 1125899906842624 bytes`},
		"shorter files": {dir(map[string]*ext4.Node{"x": {Mode: 0o100644, Data: strings.NewReader("short"), Size: 6}}), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			require.NoError(t, err)
			defer f.Close()
			require.ErrorContains(t, ext4.Write(f, c.root, ext4.Options{Size: 64 << 20}), c.want)
		})
	}
}
