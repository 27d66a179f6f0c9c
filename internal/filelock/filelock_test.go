package filelock_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/filelock"
)

// TestTake has several share a lock, and one wait for its own.
func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, err := filelock.Take(path, unix.LOCK_SH)
	require.NoError(t, err)
	b, err := filelock.Take(path, unix.LOCK_SH)
	require.NoError(t, err)
	got := make(chan func())
	go func() {
		release, err := filelock.Take(path, unix.LOCK_EX)
		if err != nil {
			t.Error(err)
		}
		got <- release
	}()
	a()
	select {
	case <-got:
		t.Fatal("two have the lock, and one for itself")
	case <-time.After(20 * time.Millisecond):
	}
	b()
	(<-got)()
	_, err = filelock.Take(filepath.Join(path, "below"), unix.LOCK_EX)
	require.Error(t, err)
}
