// Package block opens the files and block devices that disk images are in. What is in them, if not the disk's bytes as they
// are, is for the packages below it.
//
// An image in use is locked as a whole by an open file description lock (F_OFD_SETLK, fcntl(2)): exclusively by whoever may
// write to it, shared by readers. The kernel drops the lock with the file, however the process ends. QEMU's locks, on
// single bytes of the file, and a writer's here exclude each other.
package block

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

// SectorSize is the unit of a disk's size in bytes, whatever its block size.
const SectorSize = 512

// Cache says what a write is when it is complete.
type Cache int

// The cache modes, which have QEMU's names.
const (
	Writeback Cache = iota // in the host's page cache, and on the disk after Sync
	None                   // past the page cache (O_DIRECT), and on the disk after Sync
	Unsafe                 // in the host's page cache; Sync does nothing
)

// Options say how an image is opened.
type Options struct {
	ReadOnly bool
	Cache    Cache
}

// ErrLocked is an error of [Open] that a caller may want to tell apart.
var ErrLocked = errors.New("in use by another process or disk: an image can have one writer, or several readers")

// File is a raw image. Any goroutine may call any method but Close, which must be the last.
type File struct {
	path     string
	fd       int
	opts     Options
	isDevice bool
	size     atomic.Int64

	logical, physical int // block sizes in bytes
	memAlign          int // of buffers, where I/O is direct; 1 elsewhere

	buffers sync.Pool // of *[bounceSize]byte
}

// Open opens and locks the file at path, which has to be there and not empty.
func Open(path string, o Options) (_ *File, err error) {
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	if o.Cache == None {
		flags |= unix.O_DIRECT
	}
	// O_NONBLOCK makes no difference to files and disks; without it a FIFO would wait here for a writer.
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err != nil && o.Cache == None && errors.Is(err, unix.EINVAL):
		return nil, errors.New("its file system has no direct I/O (use another cache mode than none)")
	case errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) && !o.ReadOnly && unix.Access(path, unix.R_OK) == nil:
		return nil, fmt.Errorf("%w (it can be read: open it read-only)", err)
	case err != nil:
		return nil, err
	}
	f, err := newFile(fd, path, o)
	if err == nil && f.Size() == 0 {
		err = errors.Join(errors.New("is empty"), f.Close())
	}
	return f, err
}

// Create opens and locks the file at path for a new image: made where there is none, cut to nothing where there is one.
func Create(path string) (*File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, err
	}
	f, err := newFile(fd, path, Options{})
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Temporary returns an empty file in dir that has no name, and vanishes with Close. Sync does nothing.
func Temporary(dir string) (*File, error) {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return newFile(fd, dir, Options{Cache: Unsafe})
}

// newFile takes over fd, and closes it if that fails.
func newFile(fd int, path string, o Options) (*File, error) {
	f := &File{path: path, fd: fd, opts: o, logical: SectorSize, physical: SectorSize, memAlign: 1}
	for _, step := range []func() error{f.inspect, f.lock, f.Refresh} {
		if err := step(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// inspect finds out what the file is, and its block sizes.
func (f *File) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		f.isDevice = true
		if n, err := unix.IoctlGetInt(f.fd, unix.BLKSSZGET); err == nil {
			f.logical, f.physical = n, n
		}
		if n, err := unix.IoctlGetInt(f.fd, unix.BLKPBSZGET); err == nil {
			f.physical = max(n, f.logical)
		}
	case unix.S_IFDIR:
		return errors.New("is a directory")
	default:
		return errors.New("neither a file nor a block device")
	}
	if f.opts.Cache == None {
		f.memAlign = f.logical
		var stx unix.Statx_t
		err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
		if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 {
			if stx.Dio_offset_align == 0 {
				return errors.New("its file system has no direct I/O (use another cache mode than none)")
			}
			// What the host cannot write in one piece, the guest must not take for one block.
			f.logical = max(f.logical, int(stx.Dio_offset_align))
			f.physical = max(f.physical, f.logical)
			f.memAlign = max(int(stx.Dio_mem_align), 1)
		}
	}
	return nil
}

func (f *File) lock() error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart} // the whole file, however long it gets
	if f.opts.ReadOnly {
		l.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrLocked
	}
	return err
}

// Close closes the image and drops its lock.
func (f *File) Close() error { return unix.Close(f.fd) }

// Path is what the image was opened by.
func (f *File) Path() string { return f.path }

// Size is the disk's size in bytes, a multiple of [SectorSize]: a file that ends inside a sector reads as if it went on with
// zeroes, and is extended by a write there.
func (f *File) Size() int64 { return f.size.Load() }

// Refresh looks at the size again, after the file has grown.
func (f *File) Refresh() error {
	n, err := unix.Seek(f.fd, 0, io.SeekEnd) // also right for block devices
	if err != nil {
		return fmt.Errorf("size of %s: %w", f.path, err)
	}
	f.size.Store((n + SectorSize - 1) &^ (SectorSize - 1))
	return nil
}

// Truncate makes the file longer, with zeroes, or shorter. A block device keeps its size, which is an error only where it
// is too small.
func (f *File) Truncate(size int64) error {
	if f.isDevice {
		if size > f.Size() {
			return unix.ENOSPC
		}
		return nil
	}
	for {
		if err := unix.Ftruncate(f.fd, size); !errors.Is(err, unix.EINTR) {
			return errors.Join(err, f.Refresh())
		}
	}
}

// BlockSizes returns the disk's logical block size, which the guest's I/O must be a multiple of, and its physical one, in
// bytes.
func (f *File) BlockSizes() (logical, physical int) { return f.logical, f.physical }

// Direct returns the descriptor for I/O without a way through File, and what memory addresses and lengths have to be a
// multiple of for it. What it reads beyond the end of the file is short, not zero.
func (f *File) Direct() (fd, align int) { return f.fd, f.memAlign }

// ReadAt implements io.ReaderAt. It fills p as long as it is inside the disk.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	iov := [1]unix.Iovec{{Len: uint64(len(p))}}
	if len(p) > 0 {
		iov[0].Base = &p[0]
	}
	return f.ReadVector(iov[:], off)
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	iov := [1]unix.Iovec{{Len: uint64(len(p))}}
	if len(p) > 0 {
		iov[0].Base = &p[0]
	}
	return f.WriteVector(iov[:], off)
}

// ReadVector reads into the buffers of iov, one after the other, from off on. It changes iov.
func (f *File) ReadVector(iov []unix.Iovec, off int64) (int, error) {
	if !iovec.Aligned(iov, f.memAlign) {
		return f.bounce(iov, off, false)
	}
	return f.transfer(unix.SYS_PREADV, iov, off)
}

// WriteVector writes the buffers of iov, one after the other, to off. It changes iov.
func (f *File) WriteVector(iov []unix.Iovec, off int64) (int, error) {
	if !iovec.Aligned(iov, f.memAlign) {
		return f.bounce(iov, off, true)
	}
	return f.transfer(unix.SYS_PWRITEV, iov, off)
}

// maxIovecs is what one system call takes (IOV_MAX).
const maxIovecs = 1024

// transfer goes on until all is done: the kernel may stop half way, at a signal or at two gigabytes.
func (f *File) transfer(call uintptr, iov []unix.Iovec, off int64) (int, error) {
	done := 0
	for {
		if iov = iovec.Advance(iov, 0); len(iov) == 0 {
			return done, nil
		}
		at := off + int64(done)
		n, _, errno := unix.Syscall6(call, uintptr(f.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(min(len(iov), maxIovecs)), uintptr(at), 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return done, errno
		case n == 0 && call == unix.SYS_PREADV && at < f.Size():
			return done + zero(iov, f.Size()-at), nil // the end of a file that ends inside a sector
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		if errno == 0 {
			done += int(n)
			iov = iovec.Advance(iov, int(n))
		}
	}
}

// zero fills at most n bytes with zeroes and returns how many. A file that has been cut short gives zeroes for a whole
// request only if it has lost less than that.
func zero(iov []unix.Iovec, n int64) int {
	done := 0
	for i := range iov {
		p := unsafe.Slice(iov[i].Base, iov[i].Len)
		p = p[:min(int64(len(p)), n-int64(done))]
		clear(p)
		done += len(p)
	}
	return done
}

// bounceSize is how much goes through one aligned buffer at a time.
const bounceSize = 256 << 10

// bounce does direct I/O for buffers that are not aligned.
func (f *File) bounce(iov []unix.Iovec, off int64, write bool) (int, error) {
	buffer, ok := f.buffers.Get().(*[bounceSize]byte)
	if !ok {
		// An array of this size is aligned to a page by Go's allocator; direct I/O needs no more.
		buffer = new([bounceSize]byte)
	}
	defer f.buffers.Put(buffer)
	done := 0
	for len(iov) > 0 {
		n := 0
		if write {
			n = gather(buffer[:], iov)
		} else {
			for i := range iov {
				n += int(iov[i].Len)
			}
			n = min(n, bounceSize)
		}
		if n == 0 {
			return done, nil
		}
		one := []unix.Iovec{{Base: &buffer[0], Len: uint64(n)}}
		call := uintptr(unix.SYS_PREADV)
		if write {
			call = unix.SYS_PWRITEV
		}
		m, err := f.transfer(call, one, off+int64(done))
		if !write {
			scatter(iov, buffer[:m])
		}
		done += m
		if err != nil {
			return done, err
		}
		iov = iovec.Advance(iov, m)
	}
	return done, nil
}

func gather(p []byte, iov []unix.Iovec) int {
	n := 0
	for i := range iov {
		n += copy(p[n:], unsafe.Slice(iov[i].Base, iov[i].Len))
	}
	return n
}

func scatter(iov []unix.Iovec, p []byte) {
	for i := range iov {
		p = p[copy(unsafe.Slice(iov[i].Base, iov[i].Len), p):]
	}
}

// Sync makes all writes that are complete durable, unless the cache mode is [Unsafe].
func (f *File) Sync() error {
	if f.opts.Cache == Unsafe || f.opts.ReadOnly {
		return nil
	}
	for {
		if err := unix.Fdatasync(f.fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Discard gives the blocks of [off, off+n) back to the host: the file gets a hole there. An error that is
// errors.ErrUnsupported says that the host can't.
func (f *File) Discard(off, n int64) error {
	if f.isDevice {
		return f.ioctlRange(unix.BLKDISCARD, off, n)
	}
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// WriteZeroes makes [off, off+n) read as zeroes; it may free the blocks if mayUnmap.
func (f *File) WriteZeroes(off, n int64, mayUnmap bool) error {
	if f.isDevice {
		return f.ioctlRange(unix.BLKZEROOUT, off, n)
	}
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if mayUnmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := f.fallocate(mode, off, n)
	if errors.Is(err, errors.ErrUnsupported) && !mayUnmap {
		return f.writeZeroes(off, n)
	}
	return err
}

// zeroes is what writeZeroes writes; it is never written to.
var zeroes = make([]byte, bounceSize)

func (f *File) writeZeroes(off, n int64) error {
	for n > 0 {
		m, err := f.WriteAt(zeroes[:min(n, bounceSize)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(f.fd, mode, off, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *File) ioctlRange(request uint, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), uintptr(request), uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return errno
	}
	return nil
}
