// Package cpio writes archives in the format of the kernel's initramfs, newc: Linux
// Documentation/driver-api/early-userspace/buffer-format.rst.
package cpio

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Writer writes an archive; the folders above each entry are made as needed. The archive is the same for the same
// entries, whatever the time and the user.
type Writer struct {
	w    io.Writer
	err  error // the first one, after which nothing is written
	n    int64
	ino  int
	dirs map[string]bool
}

// NewWriter starts an archive on w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, dirs: map[string]bool{".": true, "/": true}}
}

// Dir adds a folder, unless it is there.
func (w *Writer) Dir(name string) { w.dir(path.Clean(name)) }

func (w *Writer) dir(name string) {
	if w.dirs[name] {
		return
	}
	w.dir(path.Dir(name))
	w.dirs[name] = true
	w.header(name, unix.S_IFDIR|0o755, 0, 0, 0)
}

// File adds a file with these contents.
func (w *Writer) File(name string, perm fs.FileMode, contents []byte) {
	w.dir(path.Dir(name))
	w.header(name, unix.S_IFREG|uint32(perm.Perm()), int64(len(contents)), 0, 0)
	w.write(contents)
	w.pad()
}

// Symlink adds a link to target.
func (w *Writer) Symlink(name, target string) {
	w.dir(path.Dir(name))
	w.header(name, unix.S_IFLNK|0o777, int64(len(target)), 0, 0)
	w.write([]byte(target))
	w.pad()
}

// CharDevice adds a character device's node.
func (w *Writer) CharDevice(name string, perm fs.FileMode, major, minor uint32) {
	w.dir(path.Dir(name))
	w.header(name, unix.S_IFCHR|uint32(perm.Perm()), 0, major, minor)
}

// Tree adds the file or the folder from, with all below it, as name. Links in a folder are kept, one that is from itself is
// followed.
func (w *Writer) Tree(name, from string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		as := path.Join(name, filepath.ToSlash(rel))
		switch entry.Type() {
		case fs.ModeDir:
			w.Dir(as)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			w.Symlink(as, target)
		case 0:
			return w.fileFrom(as, p)
		default:
			return fmt.Errorf("%s: neither a file, a folder nor a link (%v)", p, entry.Type())
		}
		return nil
	})
}

func (w *Writer) fileFrom(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > 1<<32-1 {
		return fmt.Errorf("%s: %d bytes, more than the format holds", from, info.Size())
	}
	w.dir(path.Dir(name))
	w.header(name, unix.S_IFREG|uint32(info.Mode().Perm()), info.Size(), 0, 0)
	if w.err == nil {
		var n int64
		n, w.err = io.CopyN(w.w, f, info.Size())
		w.n += n
	}
	w.pad()
	return w.err
}

// Close ends the archive and returns the first error of all the writing.
func (w *Writer) Close() error {
	w.ino = -1 // the trailer's is 0
	w.header("TRAILER!!!", 0, 0, 0, 0)
	return w.err
}

func (w *Writer) header(name string, mode uint32, size int64, major, minor uint32) {
	name = path.Clean(name)
	if path.IsAbs(name) {
		name = name[1:]
	}
	w.ino++
	const links, uid, gid, mtime, devMajor, devMinor, check = 1, 0, 0, 0, 0, 0, 0
	w.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", w.ino, mode, uid, gid,
		links, mtime, size, devMajor, devMinor, major, minor, len(name)+1, check, name))
	w.pad()
}

func (w *Writer) write(p []byte) {
	if w.err == nil {
		var n int
		n, w.err = w.w.Write(p)
		w.n += int64(n)
	}
}

// pad ends headers and contents at a multiple of four bytes.
func (w *Writer) pad() { w.write(make([]byte, -w.n&3)) }
