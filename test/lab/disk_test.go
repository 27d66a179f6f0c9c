package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDisk boots a lab whose commands have a disk for their root, with the least that one can hold.
func TestDisk(t *testing.T) {
	for _, tool := range []string{DefaultQEMU, "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here: apt-get install --no-install-recommends qemu-system-x86 e2fsprogs", tool)
		}
	}
	busybox, err := Busybox(t.Context())
	require.NoError(t, err)
	program, err := os.ReadFile(busybox)
	require.NoError(t, err)
	tree := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "etc"} {
		require.NoError(t, os.Mkdir(filepath.Join(tree, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(tree, "bin/busybox"), program, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "etc/mark"), []byte("on the disk\n"), 0o644))
	for _, applet := range []string{"sh", "cat", "uname"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(tree, "bin", applet)))
	}
	carried := filepath.Join(t.TempDir(), "carried")
	require.NoError(t, os.WriteFile(carried, []byte("carried in\n"), 0o644))
	image := filepath.Join(t.TempDir(), "image")
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "32M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	before, err := os.ReadFile(image)
	require.NoError(t, err)

	l, err := Start(t.Context(), Config{Disk: image, Files: map[string]string{"/lab/file": carried}})
	require.NoError(t, err)
	defer l.Close()
	text, err := l.Output(t.Context(), Shell("cat /etc/mark file /proc/sys/kernel/hostname; exec 3<>/dev/kvm && echo x >/etc/mark; [ ! -e /init ]"))
	require.NoError(t, err)
	require.Equal(t, "on the disk\ncarried in\nlab\n", text)
	l.Close()
	after, err := os.ReadFile(image)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after), "what is written goes no further than the lab")
}
