package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vmm/internal/cpio"
	"vmm/kernel"
)

// guestScript is a test guest's first process.
//
//go:embed guest.sh
var guestScript []byte

// guestModules are what a test guest loads, with all that these depend on.
func guestModules() []string {
	return []string{
		"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon",
		"vmw_vsock_virtio_transport", "af_packet", "overlay",
	}
}

// Guest returns the path of the initramfs that boots a test guest of the series, and the kernel that goes with it: busybox,
// the modules of its virtio devices, and the program traffic. It gives a shell with the prompt "/ # " on the last of the
// kernel's consoles, without an echo; poweroff and reboot do what they say, and the shell's end is a poweroff too. With
// test.root=vda on the kernel's command line, that disk becomes the root of the shell, with all writes kept in the guest's
// memory; it is meant for the disk of [Rootfs].
//
// The file lies in the user's cache and has its contents' hash in its name.
func Guest(ctx context.Context, series string) (string, *kernel.Kernel, error) {
	kernel, err := kernel.Cloud(ctx, series)
	if err != nil {
		return "", nil, err
	}
	path, err := buildGuest(ctx, series, kernel)
	if err != nil {
		return "", nil, fmt.Errorf("initramfs of test guests, kernel %s: %w", series, err)
	}
	return path, kernel, nil
}

func buildGuest(ctx context.Context, series string, kernel *kernel.Kernel) (string, error) {
	busybox, err := Busybox(ctx)
	if err != nil {
		return "", err
	}
	mods, err := kernel.Load(guestModules()...)
	if err != nil {
		return "", err
	}
	traffic, err := Traffic(ctx)
	if err != nil {
		return "", err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, dir := range []string{
		"bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root",
	} {
		w.Dir(dir)
	}
	w.CharDevice("dev/console", 0o600, 5, 1) // for the first process, before devtmpfs is there
	w.File("init", 0o755, guestScript)
	w.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	w.File("etc/group", 0o644, []byte("root:x:0:\n"))
	for _, end := range []string{"poweroff", "reboot"} { // busybox' own ask an init that isn't there
		w.File("usr/local/sbin/"+end, 0o755, []byte("#!/bin/sh\nexec busybox "+end+" -f\n"))
	}
	for i, m := range mods { // numbered in the order of loading
		w.File(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.Data)
	}
	err = errors.Join(w.Tree("bin/busybox", busybox), w.Tree("usr/local/bin/traffic", traffic), w.Close())
	if err != nil {
		return "", err
	}
	return cache("guest-"+series, ".cpio", archive.Bytes())
}

// Traffic returns the path of the program of package vmm/test/lab/traffic, built for labs and guests and kept in the cache.
func Traffic(ctx context.Context) (string, error) {
	program, err := buildProgram(ctx, "vmm/test/lab/traffic")
	if err != nil {
		return "", err
	}
	return cache("traffic", "", program)
}

// Registry returns the path of the program of package vmm/test/lab/registry, as Traffic does.
func Registry(ctx context.Context) (string, error) {
	program, err := buildProgram(ctx, "vmm/test/lab/registry")
	if err != nil {
		return "", err
	}
	return cache("registry", "", program)
}

// Rootfs returns the path of the disk that scripts/lab-rootfs makes, out of the project's folder root. It takes two minutes
// and the rights of root unless the disk is there already.
func Rootfs(ctx context.Context, root string) (string, error) {
	return made(ctx, root, "scripts/lab-rootfs")
}

// CloudImage returns the path of the disk image that scripts/cloud-image makes, under the same conditions.
func CloudImage(ctx context.Context, root string) (string, error) {
	return made(ctx, root, "scripts/cloud-image")
}

// ContainerRootfs returns the path of the layer that scripts/container-rootfs makes, under the same conditions as Rootfs.
func ContainerRootfs(ctx context.Context, root string) (string, error) {
	return made(ctx, root, "scripts/container-rootfs")
}

// made runs a script that makes a file, and returns what it prints: the path.
func made(ctx context.Context, root, script string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(root, script))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s, to be run once as root: %w", script, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// cache stores the contents in the user's cache under a name that has their hash in it, and returns the path. Older files
// of this name are removed, though not while somebody may be about to open them.
func cache(name, suffix string, contents []byte) (string, error) {
	dir, err := kernel.CacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(contents)
	path := filepath.Join(dir, fmt.Sprintf("%s-%x%s", name, sum[:6], suffix))
	now := time.Now()
	if os.Chtimes(path, now, now) == nil {
		return path, nil
	}
	f, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(contents)
	if err := errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		return "", err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	others, err := filepath.Glob(filepath.Join(dir, name+"-????????????"+suffix))
	if err != nil {
		return "", err
	}
	for _, other := range others {
		if info, err := os.Stat(other); err == nil && now.Sub(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(other) // another may have done it
		}
	}
	return path, nil
}
