package kernel

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// lay makes files, by their paths.
func lay(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
	}
}

// TestFind prefers a kernel that was built for guests, then the newest that has what is needed.
func TestFind(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	defer func(dir string) { bootDir = dir }(bootDir)
	bootDir = t.TempDir()
	need := func(k *Kernel) []string { return k.Lacks("virtio_blk", "ext4") }
	_, err := Find(need)
	var none *NotFoundError
	require.ErrorAs(t, err, &none)

	lay(t, filepath.Join(cache, "vmm"), map[string]string{
		"linux-6.1/release": "6.1.0-56-cloud-amd64\n",
		"linux-6.1/modules/kernel/drivers/virtio_blk.ko":     "",
		"linux-6.1/modules/modules.builtin":                  "kernel/fs/ext4/ext4.ko\n",
		"linux-6.12/release":                                 "6.12.9\n",
		"linux-6.12/modules/kernel/drivers/virtio-blk.ko.xz": "",
		"linux-default/series":                               "6.1",
	})
	k, err := Find(need)
	require.NoError(t, err)
	require.Equal(t, "6.1.0-56-cloud-amd64", k.Release, "the newer one has no ext4")
	_, err = Find(func(k *Kernel) []string { return k.Lacks("nvme") })
	require.ErrorAs(t, err, &none)
	require.Len(t, none.Unfit, 2)
	require.ErrorContains(t, err, "linux-6.12/vmlinuz lacks nvme")

	lay(t, filepath.Join(cache, "vmm"), map[string]string{
		"linux-vmm-6.1/release":                 "6.1.2-vmm\n",
		"linux-vmm-6.1/modules/modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n",
	})
	k, err = Find(need)
	require.NoError(t, err)
	require.Equal(t, "6.1.2-vmm", k.Release)
}

// TestOpen describes a kernel that somebody names.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	image := make([]byte, 4096)
	copy(image[headerMagic:], "HdrS")
	image[versionOffset], image[versionOffset+1] = 0x00, 0x02
	copy(image[0x400:], "6.1.0-x (builder) #1\x00")
	lay(t, dir, map[string]string{"vmlinuz": string(image), "elf/vmlinux": "\x7fELF", "elf/modules/a.ko": ""})
	k, err := Open(filepath.Join(dir, "vmlinuz"))
	require.NoError(t, err)
	require.Equal(t, &Kernel{Release: "6.1.0-x", Image: filepath.Join(dir, "vmlinuz")}, k)
	require.Empty(t, k.Lacks("anything"), "not known")
	k, err = Open(filepath.Join(dir, "elf", "vmlinux"))
	require.NoError(t, err)
	require.Equal(t, &Kernel{ELF: filepath.Join(dir, "elf", "vmlinux"), Modules: filepath.Join(dir, "elf", "modules")}, k)
	require.Equal(t, []string{"b"}, k.Lacks("a", "b"))
	_, err = Open(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
