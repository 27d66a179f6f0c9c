// Package initrd makes the initial RAM disk of a container's machine: its first process, which make build puts into the program,
// and the modules that the kernel has not built in.
package initrd

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"vmm/internal/cpio"
	"vmm/kernel"
)

// built is where make build puts the program of package vmm/guest/init.
//
//go:embed all:bin
var built embed.FS

// ErrNoInit says that the program was built without the other.
var ErrNoInit = errors.New("this vmm was built without the first process of its guests (make build builds both)")

// Modules are what a container's machine needs of its kernel.
var Modules = []string{"virtio_pci", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "ext4"}

// optional are modules that make it better.
var optional = []string{"virtio_rng", "af_packet"}

// Lacks tells what the kernel lacks for a container's machine. For one that has had an initial RAM disk made for it in dir, that
// is known to be nothing.
func Lacks(dir string, k *kernel.Kernel) []string {
	if path, err := name(dir, k); err == nil {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return k.Lacks(Modules...)
}

// Make returns the path of the initial RAM disk for the kernel, in the folder dir, where it is made unless it is there.
func Make(dir string, k *kernel.Kernel) (string, error) {
	path, err := name(dir, k)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	program, err := built.ReadFile("bin/init")
	if err != nil {
		return "", err
	}
	modules, err := k.Load(append(append([]string{}, Modules...), optional...)...)
	if err != nil {
		return "", err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, d := range []string{"dev", "proc", "sys", "root", "vmm"} {
		w.Dir(d)
	}
	w.CharDevice("dev/console", 0o600, 5, 1) // for the first process's streams, before there is a devtmpfs
	w.File("init", 0o755, program)
	for i, m := range modules {
		w.File(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.Data)
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".initrd-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(f.Name()) }() // in vain, once it has its name
	_, err = f.Write(archive.Bytes())
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(f.Name(), path)
}

// programSum is the digest of the program, which takes some milliseconds and is the same for each kernel.
var programSum = sync.OnceValues(func() (sum [sha256.Size]byte, err error) {
	program, err := built.ReadFile("bin/init")
	if errors.Is(err, os.ErrNotExist) {
		return sum, ErrNoInit
	}
	return sha256.Sum256(program), err
})

// name is that of the disk for this program and this kernel.
func name(dir string, k *kernel.Kernel) (string, error) {
	sum, err := programSum()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(sum[:])
	fmt.Fprintf(h, "%s\x00%s\x00", k.Release, k.Modules)
	if k.Modules != "" {
		st, err := os.Stat(k.Modules)
		if err != nil {
			return "", err
		}
		fmt.Fprint(h, st.ModTime().UnixNano())
	}
	return filepath.Join(dir, "initrd-"+hex.EncodeToString(h.Sum(nil)[:8])+".cpio"), nil
}
