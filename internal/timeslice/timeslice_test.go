package timeslice_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/internal/timeslice"
)

// TestRenew has others run when a slice is used up, and only then.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s timeslice.Slice
		s.Renew()
		require.Zero(t, testing.AllocsPerRun(100, s.Renew))
		first := s
		time.Sleep(3 * time.Millisecond)
		s.Renew()
		require.Equal(t, first, s)
		time.Sleep(time.Millisecond)
		s.Renew()
		require.NotEqual(t, first, s)
	})
}
