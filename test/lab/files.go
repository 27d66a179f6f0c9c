package lab

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Series are those of the guest kernels that the project is tested with.
func Series() []string { return []string{"6.1", "6.12"} }

// Standard returns the [Config.Files] of the usual lab, out of the project's folder root: the guest kernels of the series
// as /boot/vmlinuz-SERIES and /boot/vmlinux-SERIES, the initramfs of [Guest] as /boot/guest-SERIES.cpio and the one of users
// as /boot/u-root.cpio, and vmm and the program of [Traffic] on the PATH. vmm and u-root.cpio must have been built.
func Standard(ctx context.Context, root string, series ...string) (map[string]string, error) {
	files := map[string]string{
		"/boot/u-root.cpio":  filepath.Join(root, "out/u-root.cpio"),
		"/usr/local/bin/vmm": filepath.Join(root, "bin/vmm"),
	}
	for _, path := range files {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%w: run make build initramfs", err)
		}
	}
	traffic, err := Traffic(ctx)
	if err != nil {
		return nil, err
	}
	files["/usr/local/bin/traffic"] = traffic
	for _, s := range series {
		initramfs, kernel, err := Guest(ctx, s)
		if err != nil {
			return nil, err
		}
		files["/boot/guest-"+s+".cpio"] = initramfs
		files["/boot/vmlinuz-"+s] = kernel.Image
		files["/boot/vmlinux-"+s] = kernel.ELF
	}
	return files, nil
}

// Put copies a file or a folder from here to the path to in the running lab. For what is large, [Config.Files] is
// faster.
func (l *Lab) Put(ctx context.Context, from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := addTree(archive, from, path.Base(to))
		w.CloseWithError(errors.Join(err, archive.Close()))
	}()
	defer r.Close()
	read := &firstError{r: r}
	_, err = l.Output(ctx, &Cmd{
		Args:  []string{"/bin/sh", "-c", `mkdir -p "$0" && tar -xC "$0"`, path.Dir(to)},
		Stdin: read,
	})
	if read.err != nil { // the cause; tar knows only that its input was short
		err = read.err
	}
	if err != nil {
		return fmt.Errorf("copy %s to the lab: %w", from, err)
	}
	return nil
}

// firstError remembers why a reader has failed.
type firstError struct {
	r   io.Reader
	err error
}

func (f *firstError) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// addTree adds the file or the folder from, with all below it, as name.
func addTree(archive *tar.Writer, from, name string) error {
	return filepath.WalkDir(from, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var link string
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		header.Name = path.Join(name, filepath.ToSlash(rel))
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(archive, f)
		return err
	})
}

// Get copies the folder from in the lab, with all below it, into the folder to here, which is made if there is anything.
// Files and folders only: links and devices stay behind.
func (l *Lab) Get(ctx context.Context, from, to string) error {
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := unpackTree(r, to)
		_, _ = io.Copy(io.Discard, r) // the rest, so that the lab isn't held up
		unpacked <- err
	}()
	var stderr tail
	status, err := l.Run(ctx, &Cmd{Args: []string{"tar", "-cC", from, "."}, Stdout: w, Stderr: &stderr})
	_ = w.Close()
	err = errors.Join(err, <-unpacked)
	if err == nil && status != 0 {
		err = errors.New(stderr.String())
	}
	if err != nil {
		return fmt.Errorf("copy %s from the lab: %w", from, err)
	}
	return nil
}

// unpackTree writes the archive's files below dir, and cannot be led out of it by their names.
func unpackTree(r io.Reader, dir string) error {
	archive := tar.NewReader(r)
	var root *os.Root
	defer func() {
		if root != nil {
			_ = root.Close()
		}
	}()
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(header.Name)
		if name == "." || !slices.Contains([]byte{tar.TypeDir, tar.TypeReg}, header.Typeflag) {
			continue
		}
		if root == nil {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if root, err = os.OpenRoot(dir); err != nil {
				return err
			}
		}
		if header.Typeflag == tar.TypeDir {
			err = root.MkdirAll(name, 0o755)
		} else {
			err = writeFile(root, name, fs.FileMode(header.Mode).Perm(), archive)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, name string, perm fs.FileMode, contents io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, contents)
	return errors.Join(err, f.Close())
}
