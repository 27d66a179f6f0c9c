package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

const (
	rootDisk = "/dev/vda"
	newRoot  = "/root"
	// ownFiles is where the files lie that vmm puts into each container, over the image's.
	ownFiles = "/vmm"

	rootTimeout = 10 * time.Second
)

// mount is mount(2), whose error names the place.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// firstMounts makes what init itself needs.
func firstMounts() error {
	for _, m := range []struct{ dir, fstype string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		// A kernel may have mounted /dev by itself.
		if err := mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// mountRoot mounts the first disk and what a system has below it, and makes it the root.
func mountRoot(s *wire.Setup) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	for deadline := time.Now().Add(rootTimeout); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(rootDisk); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no disk %s: has the kernel virtio_pci and virtio_blk?", rootDisk)
		}
	}
	if err := mount(rootDisk, newRoot, "ext4", 0, "discard"); err != nil {
		return err
	}
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	type point struct {
		dir, fstype string
		flags       uintptr
		data        string
	}
	points := []point{
		{"/proc", "proc", quiet, ""},
		{"/sys", "sysfs", quiet, ""},
		{"/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"/dev/shm", "tmpfs", quiet, "mode=1777,size=64m"},
		{"/dev/mqueue", "mqueue", quiet, ""},
		{"/sys/fs/cgroup", "cgroup2", quiet, ""},
	}
	for _, dir := range slices.Sorted(maps.Keys(s.Tmpfs)) {
		flags, data := tmpfsOptions(s.Tmpfs[dir])
		points = append(points, point{dir, "tmpfs", flags, data})
	}
	for _, p := range points {
		dir, err := below(newRoot, p.dir)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		err = mount(p.fstype, dir, p.fstype, p.flags, p.data)
		if optional := p.fstype == "mqueue" || p.fstype == "cgroup2"; optional && errors.Is(err, unix.ENODEV) {
			continue // the kernel has none
		}
		if err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		path := filepath.Join(newRoot, "dev", name)
		_ = os.Remove(path)
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	}
	// What lies here from now on is seen by nobody.
	if err := os.MkdirAll(ownFiles, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/modules", "/init"} { // memory that the guest can have
		_ = os.RemoveAll(dir)
	}
	return nil
}

// enterRoot makes the mounted disk the root of this process and all that it starts.
func enterRoot(readOnly bool) error {
	if readOnly {
		if err := unix.Mount("", newRoot, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("root read-only: %w", err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}

// below is a path of the image's on the mounted disk: links in it lead on inside, as they will once it is the root.
func below(root, path string) (string, error) {
	at, todo := "/", strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		word := todo[0]
		todo = todo[1:]
		if word == "" || word == "." {
			continue
		}
		next := filepath.Join(at, word)
		target, err := os.Readlink(root + next)
		if err != nil {
			at = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("%s: %w", path, unix.ELOOP)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return root + at, nil
}

// tmpfsOptions are those of docker run --tmpfs: flags by their names, and what tmpfs itself knows.
func tmpfsOptions(options string) (flags uintptr, data string) {
	names := map[string]uintptr{"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME}
	opposites := map[string]uintptr{"rw": unix.MS_RDONLY, "suid": unix.MS_NOSUID, "dev": unix.MS_NODEV, "exec": unix.MS_NOEXEC}
	flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	rest := []string{"mode=1777"}
	for o := range strings.SplitSeq(options, ",") {
		if f, ok := names[o]; ok {
			flags |= f
		} else if f, ok := opposites[o]; ok {
			flags &^= f
		} else if o != "" {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

// writeNames gives the machine its name, and the image the files that depend on this machine, over its own.
func writeNames(s *wire.Setup) error {
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("host name %q: %w", s.Hostname, err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if address, _, ok := strings.Cut(s.Address, "/"); ok {
		hosts += address + "\t" + s.Hostname + "\n"
	}
	var resolv strings.Builder
	for _, server := range s.DNS {
		resolv.WriteString("nameserver " + server + "\n")
	}
	for path, content := range map[string]string{"/etc/hostname": s.Hostname + "\n", "/etc/hosts": hosts, "/etc/resolv.conf": resolv.String()} {
		if err := overlay(path, content); err != nil {
			return err
		}
	}
	return enterRoot(s.ReadOnly)
}

// overlay has the file of the image's read as content, whether its file system can be written to or not.
func overlay(path, content string) error {
	own := filepath.Join(ownFiles, filepath.Base(path))
	if err := os.WriteFile(own, []byte(content), 0o644); err != nil {
		return err
	}
	over, err := below(newRoot, path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(over); err != nil {
		if err := os.MkdirAll(filepath.Dir(over), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(over, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return mount(own, over, "bind", unix.MS_BIND, "")
}

// unmount leaves the root as clean as it can.
func unmount() {
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// sysctl writes a setting of the kernel's, if it has it.
func sysctl(name, value string) {
	_ = os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}
