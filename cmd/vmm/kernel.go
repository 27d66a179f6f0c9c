package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"vmm/block/image"
	"vmm/bootdisk"
	"vmm/machine"
)

// bootFile is a file as machine.Config wants it.
type bootFile struct {
	*os.File
	size int64
}

func (i *bootFile) Size() int64 { return i.size }

// openBootFile opens the file that flag names. The caller closes it.
func openBootFile(flag, path string) (*bootFile, error) {
	// Non-blocking mode makes no difference to a regular file; without it a FIFO would wait here for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, mistakef("-%s %s: %w", flag, path, bare(err))
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		err = bare(err)
	case st.IsDir():
		err = errors.New("is a directory")
	case !st.Mode().IsRegular():
		err = errors.New("not a regular file")
	case st.Size() == 0:
		err = errors.New("is empty")
	default:
		return &bootFile{File: f, size: st.Size()}, nil
	}
	_ = f.Close()
	return nil, mistakef("-%s %s: %w", flag, path, err)
}

// bootFiles is the kernel and the initial RAM disk that the flags name.
type bootFiles struct{ kernel, initrd *bootFile }

// openBootFiles opens them. The caller closes them.
func (o *bootOptions) openBootFiles() (f bootFiles, err error) {
	if f.kernel, err = openBootFile("kernel", o.kernel); err != nil || o.initrd == "" {
		return f, err
	}
	if f.initrd, err = openBootFile("initrd", o.initrd); err != nil {
		f.Close()
	}
	return f, err
}

// Close closes what is open.
func (f bootFiles) Close() {
	for _, file := range []*bootFile{f.kernel, f.initrd} {
		if file != nil {
			_ = file.Close() // it was only read
		}
	}
}

// boot is what the machine starts with.
func (f bootFiles) boot(o *bootOptions) machine.Boot {
	b := machine.Boot{Kernel: f.kernel, Cmdline: o.commandLine()}
	if f.initrd != nil {
		b.Initrd = f.initrd
	}
	return b
}

// findOnDisk finds what the first disk boots. The disk has to stay open.
func (o *bootOptions) findOnDisk(disk image.Disk) (b machine.Boot, title string, err error) {
	found, err := bootdisk.Find(disk, disk.Size())
	if err != nil {
		hint := ""
		if none := (*bootdisk.NotFoundError)(nil); errors.As(err, &none) {
			hint = " (-kernel names one)"
		}
		return b, "", fmt.Errorf("-disk %s: %w%s", o.disks[0].path, err, hint)
	}
	b = machine.Boot{Kernel: found.Kernel, Cmdline: o.diskCommandLine(found.CommandLine)}
	if found.Initrd != nil {
		b.Initrd = found.Initrd
	}
	return b, found.Title, nil
}

// commandLine is the kernel's.
func (o *bootOptions) commandLine() string {
	return strings.TrimSpace(o.cmdline + " " + o.extra)
}

// diskCommandLine is the kernel's command line for a disk whose own is given: that, with the console where the user sees it,
// and with -append; or -cmdline instead of the disk's.
func (o *bootOptions) diskCommandLine(own string) string {
	if o.cmdlineGiven {
		return o.commandLine()
	}
	console := "console=ttyS0"
	if o.console.kind == serialStdio {
		console = "console=hvc0"
	}
	words := strings.Fields(own)
	if !slices.ContainsFunc(words, func(word string) bool { return word == console || strings.HasPrefix(word, console+",") }) {
		own = strings.TrimSpace(own + " " + console)
	}
	return strings.TrimSpace(own + " " + o.extra)
}

// bootingText says what goes on until the guest says something.
func (o *bootOptions) bootingText(title string) string {
	switch {
	case !o.bootsDisk():
		title = o.kernel
	case title == "":
		title = o.disks[0].path
	}
	prefix := "vmm: "
	if o.name != "" {
		prefix += string(o.name) + ": "
	}
	return prefix + "booting " + printable(title)
}

// printable makes a text of the guest's fit for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	const most = 60
	if r := []rune(s); len(r) > most {
		s = string(r[:most-1]) + "…"
	}
	return s
}
