package kvmtest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A recorder is the part of a testing.TB that Require uses.
type recorder struct {
	testing.TB
	failed, skipped string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...) }
func (r *recorder) Skipf(f string, a ...any)  { r.skipped = fmt.Sprintf(f, a...) }

func TestRequire(t *testing.T) {
	f, err := os.OpenFile(Path, os.O_RDWR, 0)
	if err == nil {
		f.Close()
		var r recorder
		Require(&r)
		require.Equal(t, recorder{}, r)
		return
	}
	t.Run("skips", func(t *testing.T) {
		t.Setenv(RequireEnv, "")
		var r recorder
		Require(&r)
		require.NotEmpty(t, r.skipped)
		require.Empty(t, r.failed)
	})
	t.Run("fails", func(t *testing.T) {
		t.Setenv(RequireEnv, "1")
		var r recorder
		Require(&r)
		require.NotEmpty(t, r.failed)
	})
}

func TestRemedy(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOENT, "modprobe kvm_intel"},
		{syscall.EACCES, "usermod -aG kvm"},
		{errors.New("other"), "vmm probe"},
	} {
		require.Contains(t, remedy(c.err), c.want)
	}
}
