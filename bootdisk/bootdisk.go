// Package bootdisk finds, on a disk, the kernel that the disk's own boot loader would start: with its initial RAM disk and its
// command line, so that the disk of a whole system boots without firmware and without a boot loader.
//
// It looks at each file system of the disk, for these in their order:
//
//  1. GRUB's configuration: /boot/grub/grub.cfg, /boot/grub2/grub.cfg, or the same without /boot. It is run, as far as it
//     leads to the default entry.
//  2. Boot Loader Specification entries (https://uapi-group.org/specifications/specs/boot_loader_specification/):
//     /loader/entries/*.conf or the same under /boot, and unified kernel images in /EFI/Linux.
//  3. SYSLINUX's configuration: /boot/extlinux/extlinux.conf, /boot/extlinux.conf, or the same without /boot.
//  4. The newest /boot/vmlinuz-*.
//
// Disks have a GPT, an MBR, or nothing but one file system. The file systems that can be read are ext2, ext3, ext4 and FAT;
// others are named in the error.
//
// What is on the disk may have been written by a guest: it is not believed. It can make a boot fail, and choose what boots
// (which is the guest's right), but it is read in bounded time and memory.
//
// # Deviations
//
//   - Nothing is ever written: next_entry of GRUB's environment is honoured, and stays. Boot counting does not count.
//   - Of GRUB's language, loops with while and until are not known, and commands that don't lead to a kernel do nothing.
package bootdisk

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of what is read.
const (
	maxConfig = 1 << 20 // bytes of a configuration file
	maxKernel = 256 << 20
	maxInitrd = 1 << 30
	maxFiles  = 16 // of which an initial RAM disk is put together
)

// Image is a file on the disk. It is read from there each time, so the disk must stay open.
type Image interface {
	io.ReaderAt
	Size() int64
}

// Boot is what a disk boots.
type Boot struct {
	Kernel      Image
	Initrd      Image // nil for none
	CommandLine string
	Title       string // of the menu entry
	Source      string // where this was found, for people
}

// NotFoundError is the error of [Find] for a disk that has nothing to boot, or nothing that is understood.
type NotFoundError struct {
	Looked []string // what was looked at, and what was wrong with it
}

func (e *NotFoundError) Error() string { return "no kernel found: " + strings.Join(e.Looked, "; ") }

// Find finds what the disk boots. A disk without anything to boot gives a [*NotFoundError].
func Find(disk io.ReaderAt, size int64) (*Boot, error) {
	volumes, looked, err := open(disk, size)
	if err != nil {
		return nil, err
	}
	f := &finder{volumes: volumes}
	for _, look := range []func(*volume) (*choice, error){f.grub, f.loaderEntries, f.syslinux, f.newest} {
		for _, v := range volumes {
			c, err := look(v)
			var b *Boot
			if err == nil && c != nil {
				b, err = c.open()
			}
			if b != nil {
				return b, nil
			}
			if err != nil {
				v.notes = append(v.notes, err.Error())
			}
		}
	}
	for _, v := range volumes {
		if len(v.notes) == 0 {
			v.notes = []string{"no grub.cfg, loader/entries, extlinux.conf or vmlinuz-*"}
		}
		looked = append(looked, v.String()+": "+strings.Join(v.notes, ", "))
	}
	if len(looked) == 0 {
		looked = []string{"no partition table, and no file system that is known"}
	}
	return nil, &NotFoundError{looked}
}

// finder looks for what to boot on the volumes of a disk.
type finder struct{ volumes []*volume }

// choice is a kernel that was found, by names.
type choice struct {
	title, source string
	kernel        file
	initrds       []file
	commandLine   string
	images        *Boot // instead of the files, where they are parts of one
}

// file is one by its name.
type file struct {
	on   *volume
	path string
}

func (f file) open(limit int64) (Image, error) {
	i, err := f.on.fs.Open(f.path)
	switch {
	case err != nil:
		return nil, err
	case i.Size() > limit:
		return nil, fmt.Errorf("%s: %d bytes, at most %d", f.path, i.Size(), limit)
	case i.Size() == 0:
		return nil, fmt.Errorf("%s: is empty", f.path)
	}
	return i, nil
}

// read reads a configuration file.
func (v *volume) read(path string) (string, error) {
	i, err := v.fs.Open(path)
	if err != nil {
		return "", err
	}
	if i.Size() > maxConfig {
		return "", fmt.Errorf("%s: %d bytes, at most %d", path, i.Size(), maxConfig)
	}
	p := make([]byte, i.Size())
	if n, err := i.ReadAt(p, 0); n < len(p) {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(p), nil
}

// open opens the files of a choice.
func (c *choice) open() (*Boot, error) {
	if c.images != nil {
		c.images.Title, c.images.Source = c.title, c.source
		return c.images, nil
	}
	b := &Boot{CommandLine: c.commandLine, Title: c.title, Source: c.source}
	kernel, err := c.kernel.open(maxKernel)
	if err != nil {
		return nil, fmt.Errorf("%s: kernel %w", c.source, err)
	}
	b.Kernel = kernel
	if len(c.initrds) > maxFiles {
		return nil, fmt.Errorf("%s: %d initrds, at most %d", c.source, len(c.initrds), maxFiles)
	}
	var parts []Image
	for _, f := range c.initrds {
		i, err := f.open(maxInitrd)
		if err != nil {
			return nil, fmt.Errorf("%s: initrd %w", c.source, err)
		}
		parts = append(parts, i)
	}
	switch {
	case len(parts) == 1:
		b.Initrd = parts[0]
	case len(parts) > 1:
		b.Initrd = join(parts)
	}
	if b.Initrd != nil && b.Initrd.Size() > maxInitrd {
		return nil, fmt.Errorf("%s: initrds of %d bytes, at most %d", c.source, b.Initrd.Size(), maxInitrd)
	}
	return b, nil
}

// joined is several files one after the other, each from a multiple of 4 on, as Linux wants its archives (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
type joined struct {
	parts []Image
	size  int64
}

func join(parts []Image) *joined {
	j := &joined{parts: parts}
	for _, p := range parts {
		j.size = (j.size+3)&^3 + p.Size()
	}
	return j
}

// Size is in bytes.
func (j *joined) Size() int64 { return j.size }

// ReadAt implements io.ReaderAt.
func (j *joined) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	clear(p)
	n := max(0, min(int64(len(p)), j.size-off))
	start := int64(0)
	for _, part := range j.parts {
		start = (start + 3) &^ 3
		from, to := max(off, start), min(off+n, start+part.Size())
		if from < to {
			if m, err := part.ReadAt(p[from-off:to-off], from-start); int64(m) < to-from {
				return int(from - off), err
			}
		}
		start += part.Size()
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
