package lab

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"vmm/internal/cpio"
	"vmm/kernel"
)

// initScript is L1's first process.
//
//go:embed init.sh
var initScript []byte

// modules are what L1 loads, with all that these depend on.
func modules() []string {
	return []string{
		"kvm-amd", "tun", "vhost_net", "vhost_vsock", "bridge", "veth", "loop", "virtio_pci", "virtio_console", "virtio_blk",
	}
}

// buildInitrd writes L1's initramfs into a temporary file, which is the caller's to remove.
func buildInitrd(ctx context.Context, cfg *Config, kernel *kernel.Kernel) (_ string, err error) {
	busybox, err := Busybox(ctx)
	if err != nil {
		return "", err
	}
	mods, err := kernel.Load(modules()...)
	if err != nil {
		return "", err
	}
	agent, err := buildProgram(ctx, "vmm/test/lab/agent")
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "lab-*.cpio")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buffered)
	for _, dir := range []string{
		"bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "boot",
		"disk", "lab/out",
	} {
		w.Dir(dir)
	}
	w.CharDevice("dev/console", 0o600, 5, 1) // for the first process, before devtmpfs is there
	w.File("init", 0o755, initScript)
	w.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	w.File("etc/group", 0o644, []byte("root:x:0:\n"))
	w.File("sbin/lab-agent", 0o755, agent)
	if err := w.Tree("bin/busybox", busybox); err != nil {
		return "", err
	}
	for i, m := range mods { // numbered in the order of loading
		w.File(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.Data)
	}
	names := make([]string, 0, len(cfg.Files))
	for name := range cfg.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.Tree(name, cfg.Files[name]); err != nil {
			return "", err
		}
	}
	return f.Name(), errors.Join(w.Close(), buffered.Flush())
}

// Busybox returns a busybox that needs no libraries: the machine's, or the one in Debian's package.
func Busybox(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("busybox"); err == nil && static(path) {
		return path, nil
	}
	dir, err := kernel.Package(ctx, "busybox-static")
	if err != nil {
		return "", fmt.Errorf("busybox for the lab: %w", err)
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} { // since Debian 13 it is below /usr
		if path := filepath.Join(dir, name); static(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: no static busybox in the package", dir)
}

// static reports whether the file is a program that needs no dynamic loader.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// buildProgram compiles one of the programs that run in labs and guests, mostly out of Go's build cache.
func buildProgram(ctx context.Context, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "lab-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(out))
	}
	return os.ReadFile(path)
}
