package console

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vmm/internal/unixsocket"
)

// ErrInUse is what an Open function returns for a target that another process uses.
var ErrInUse = unixsocket.ErrInUse

// File appends the guest's output to a file. There is no input.
type File struct {
	*descriptors
	path    string
	created bool
}

// OpenFile opens path for appending and creates it where it does not exist. A regular file is locked as long as it is
// open: output of two machines in one file would be of no use.
func OpenFile(path string) (*File, error) {
	fd, created, err := openOrCreate(path)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, created: created}
	if err := lock(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if f.descriptors, err = newDescriptors(-1, fd, fd); err != nil {
		f.remove()
		_ = unix.Close(fd)
		return nil, err
	}
	return f, nil
}

// openOrCreate reports also whether the file is new. Non-blocking mode makes no difference to a regular file; with it a
// FIFO without a reader gives an error and not an endless wait.
func openOrCreate(path string) (fd int, created bool, err error) {
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err = ignoringEINTR(func() (int, error) { return unix.Open(path, flags|unix.O_CREAT|unix.O_EXCL, 0o600) })
	if !errors.Is(err, unix.EEXIST) {
		return fd, err == nil, err
	}
	fd, err = ignoringEINTR(func() (int, error) { return unix.Open(path, flags, 0) })
	if errors.Is(err, unix.ENXIO) {
		err = errors.New("nothing reads from it")
	}
	return fd, false, err
}

// lock takes the whole of a regular file for this open file description. Other files, such as /dev/null, can be shared.
func lock(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	switch err {
	case unix.EAGAIN, unix.EACCES:
		return ErrInUse
	case nil:
		return nil
	}
	return fmt.Errorf("lock: %w", err)
}

// Read reports that there is no input.
func (f *File) Read([]byte) (int, error) { return 0, io.EOF }

// Abandon closes the file, and removes it if OpenFile made it and nothing was written: for a machine that never ran.
func (f *File) Abandon() error {
	f.remove()
	return f.Close()
}

func (f *File) remove() {
	if st, err := os.Stat(f.path); f.created && err == nil && st.Size() == 0 {
		_ = os.Remove(f.path)
	}
}

func ignoringEINTR(open func() (int, error)) (int, error) {
	for {
		if fd, err := open(); !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
