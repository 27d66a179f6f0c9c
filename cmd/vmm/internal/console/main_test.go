package console

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain checks for leaked descriptors. The test binary serves as the terminal's guard too.
func TestMain(m *testing.M) {
	GuardMain()
	childMain()
	if r, w, err := os.Pipe(); err == nil { // from here on the Go runtime's poller is open, and stays so
		_, _ = r.Close(), w.Close()
	}
	before := openDescriptors()
	status := m.Run()
	if after := openDescriptors(); status == 0 && len(after) > len(before) {
		fmt.Fprintf(os.Stderr, "leaked descriptors:\nbefore %v\nafter  %v\n", before, after)
		status = 1
	}
	os.Exit(status)
}

func openDescriptors() (targets []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // not that of ReadDir itself
			targets = append(targets, target)
		}
	}
	return targets
}

// openTerminal makes a terminal, and what the terminal emulator has of it.
func openTerminal(t *testing.T) (emulator, tty *os.File) {
	t.Helper()
	emulator, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { emulator.Close() })
	var number int
	conn, err := emulator.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, conn.Control(func(fd uintptr) {
		number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	}))
	require.NoError(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { tty.Close() })
	return emulator, tty
}
