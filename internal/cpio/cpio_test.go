package cpio_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/cpio"
)

func TestBytes(t *testing.T) {
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	w.File("/a", 0o644, []byte("hello"))
	require.NoError(t, w.Close())
	zero := strings.Repeat("0", 8)
	header := func(ino, mode, links, size, nameSize string) string {
		return "070701" + ino + mode + zero + zero + links + zero + size + zero + zero + zero + zero + nameSize + zero
	}
	require.Equal(t, header("00000001", "000081a4", "00000001", "00000005", "00000002")+"a\x00"+"hello\x00\x00\x00"+
		header(zero, zero, "00000001", zero, "0000000b")+"TRAILER!!!\x00\x00\x00\x00", b.String())
}

// TestAgainstCpio has the archive read by another program.
func TestAgainstCpio(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio here: apt-get install cpio")
	}
	from := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(from, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "sub/file"), []byte("abc"), 0o751))
	require.NoError(t, os.Chmod(filepath.Join(from, "sub/file"), 0o751))
	require.NoError(t, os.Symlink("sub/file", filepath.Join(from, "link")))

	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	require.NoError(t, w.Tree("deep/tree", from))
	require.NoError(t, w.Tree("followed", filepath.Join(from, "link")))
	w.Symlink("sbin/init", "../init")
	require.NoError(t, w.Close())

	to := t.TempDir()
	cmd := exec.Command("cpio", "-id", "--quiet")
	cmd.Dir, cmd.Stdin = to, &b
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"deep/tree/sub/file", "deep/tree/link", "followed"} {
		got, err := os.ReadFile(filepath.Join(to, name))
		require.NoError(t, err)
		require.Equal(t, "abc", string(got))
	}
	info, err := os.Stat(filepath.Join(to, "followed"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o751), info.Mode())
	target, err := os.Readlink(filepath.Join(to, "sbin/init"))
	require.NoError(t, err)
	require.Equal(t, "../init", target)
}

func TestMissing(t *testing.T) {
	w := cpio.NewWriter(&bytes.Buffer{})
	require.ErrorIs(t, w.Tree("a", filepath.Join(t.TempDir(), "none")), os.ErrNotExist)
}
