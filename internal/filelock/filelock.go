// Package filelock takes flock(2) locks, by which processes that share a folder take turns. A lock goes with its file's last
// descriptor, and so with the process, however that ends.
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Take waits for the lock on the file at path, which it makes if need be: unix.LOCK_EX for one holder, unix.LOCK_SH for several.
// Release may be called again, to no effect.
func Take(path string, how int) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}
