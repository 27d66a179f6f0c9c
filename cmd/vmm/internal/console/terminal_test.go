package console

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The test binary is also the program whose terminal is restored: with this variable it makes its terminal raw, says so,
// and then does what the variable names.
const childVariable = "CONSOLE_TEST_CHILD"

func childMain() {
	act := os.Getenv(childVariable)
	if act == "" {
		return
	}
	raw, err := MakeRaw(os.Stdin)
	if err != nil {
		panic(err)
	}
	fmt.Println("raw")
	switch act {
	case "restore":
		if err := raw.Restore(); err != nil {
			panic(err)
		}
		os.Exit(0)
	case "exit":
		os.Exit(3)
	case "panic":
		go panic("of a goroutine")
	}
	select {}
}

func modes(t *testing.T, tty *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)
	return *m
}

func TestTerminalIsRestored(t *testing.T) {
	for _, tt := range []struct {
		name, act string
		signal    syscall.Signal
	}{
		{name: "by Restore", act: "restore"},
		{name: "after os.Exit", act: "exit"},
		{name: "after a panic of a goroutine", act: "panic"},
		{name: "after SIGTERM", act: "wait", signal: syscall.SIGTERM},
		{name: "after SIGQUIT", act: "wait", signal: syscall.SIGQUIT},
		{name: "after SIGKILL", act: "wait", signal: syscall.SIGKILL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			emulator, tty := openTerminal(t)
			before := modes(t, tty)
			child := exec.Command("/proc/self/exe")
			child.Env = append(os.Environ(), childVariable+"="+tt.act, "GORACE=atexit_sleep_ms=0")
			child.Stdin = tty
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			stdout, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())
			said, err := bufio.NewReader(stdout).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "raw\n", said)
			if tt.signal != 0 {
				require.Zero(t, modes(t, tty).Lflag&(unix.ICANON|unix.ECHO|unix.ISIG), "not raw")
				// To the group, as a shell does: the guard must not be in it.
				require.NoError(t, syscall.Kill(-child.Process.Pid, tt.signal))
			}
			_ = child.Wait()
			require.Eventually(t, func() bool { return modes(t, tty) == before }, 10*time.Second, time.Millisecond)
			_ = emulator
		})
	}
}

// TestGuardYieldsToOthers: a shell that is faster sets the modes of its line editor, which are not the guard's to change.
func TestGuardYieldsToOthers(t *testing.T) {
	_, tty := openTerminal(t)
	saved := modes(t, tty)
	order := guardOrder{Saved: saved, Raw: saved}
	makeRaw(&order.Raw)
	g, err := startGuard(tty, order)
	require.NoError(t, err)
	editor := order.Raw
	editor.Lflag |= unix.ISIG
	require.NoError(t, setModes(tty, &editor))
	g.stop()
	require.Equal(t, editor.Lflag, modes(t, tty).Lflag)
}

func TestRawTerminalResume(t *testing.T) {
	_, tty := openTerminal(t)
	saved := modes(t, tty)
	raw, err := MakeRaw(tty)
	require.NoError(t, err)
	require.NoError(t, setModes(tty, &saved))
	require.NoError(t, raw.Resume())
	require.Zero(t, modes(t, tty).Lflag&unix.ICANON)
	require.NoError(t, raw.Restore())
	require.Equal(t, saved, modes(t, tty))
}

func TestMakeRawOfNoTerminal(t *testing.T) {
	null := devNull(t)
	require.False(t, IsTerminal(null))
	_, err := MakeRaw(null)
	require.ErrorIs(t, err, unix.ENOTTY)
}
