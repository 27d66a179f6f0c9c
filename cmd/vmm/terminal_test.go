package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/machine"
)

// With this variable the test binary is vmm, with a fake machine that says on its serial port what happens to it.
const childVariable = "VMM_TEST_CHILD"

// slowChild is the variable's value for a guest that says nothing before the first key.
const slowChild = "slow"

func childMain() {
	if os.Getenv(childVariable) == "" {
		return
	}
	vm := &fakeVM{run: talkative, pressed: make(chan struct{}, 8)}
	if os.Getenv(childVariable) == slowChild {
		vm.run = func(ctx context.Context, vm *fakeVM) (machine.Exit, error) {
			_, _ = vm.cfg.Serial.Read(make([]byte, 1)) // until the user has seen what goes on
			return talkative(ctx, vm)
		}
	}
	p := &process{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, newMachine: func(cfg machine.Config) (virtualMachine, error) {
		vm.cfg = cfg
		return vm, nil
	}}
	os.Exit(p.run([]string{"-kernel", "/proc/self/exe", "-grace", "1h"}))
}

// talkative is a guest that powers off at Ctrl-D, and at the power button unless it has seen a d, for deaf; that makes
// vmm panic at p; and that reports each other key.
func talkative(ctx context.Context, vm *fakeVM) (machine.Exit, error) {
	line := vm.cfg.Serial
	_, _ = io.WriteString(line, "ready\n")
	keys := make(chan byte)
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := line.Read(b); err != nil {
				return
			}
			if b[0] == 'p' {
				panic("of a goroutine")
			}
			select {
			case keys <- b[0]:
			case <-ctx.Done():
			}
		}
	}()
	deaf := false
	for {
		select {
		case b := <-keys:
			switch b {
			case 0x04:
				return machine.Exit{Reason: machine.PowerOff}, nil
			case 'd':
				deaf = true
			}
			fmt.Fprintf(line, "key %#x, %d breaks\n", b, vm.breaks.Load())
		case <-vm.pressed:
			if !deaf {
				return machine.Exit{Reason: machine.PowerOff}, nil
			}
			_, _ = io.WriteString(line, "what button?\n")
		case <-ctx.Done():
			return machine.Exit{Reason: machine.Stopped}, nil
		}
	}
}

// user sits at a terminal in which vmm runs.
type user struct {
	t        *testing.T
	emulator *os.File
	tty      *os.File
	before   unix.Termios
	screen   *bufio.Reader
	vmm      *exec.Cmd
}

func startOnTerminal(t *testing.T) *user {
	t.Helper()
	u := startChild(t, "1")
	u.sees("ready")
	require.Zero(t, u.modes().Lflag&(unix.ICANON|unix.ECHO|unix.ISIG), "the terminal is not raw")
	return u
}

func startChild(t *testing.T, kind string) *user {
	t.Helper()
	u := &user{t: t}
	var err error
	u.emulator, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	fd := int(u.emulator.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	u.tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	u.screen = bufio.NewReader(u.emulator)
	u.before = u.modes()

	u.vmm = exec.Command("/proc/self/exe")
	u.vmm.Env = append(os.Environ(), childVariable+"="+kind, "GORACE=atexit_sleep_ms=0")
	u.vmm.Stdin, u.vmm.Stdout, u.vmm.Stderr = u.tty, u.tty, u.tty
	u.vmm.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, u.vmm.Start())
	t.Cleanup(func() {
		_ = u.vmm.Process.Kill()
		_ = u.vmm.Wait()
		u.tty.Close()
		u.emulator.Close()
	})
	return u
}

// TestProgressOnTerminal: a line says what goes on, and is gone before the guest's first word.
func TestProgressOnTerminal(t *testing.T) {
	u := startChild(t, slowChild)
	before, err := u.screen.ReadString(')')
	require.NoError(t, err)
	u.types("x")
	line := before + u.sees("ready")
	require.Regexp(t, "^(\r\x1b\\[Kvmm: booting /proc/self/exe \\([0-9]+ s\\))+\r\x1b\\[Kready\r\n$", line)
	u.types("\x04")
	require.Zero(t, u.ends().ExitCode())
}

func (u *user) modes() unix.Termios {
	u.t.Helper()
	m, err := unix.IoctlGetTermios(int(u.tty.Fd()), unix.TCGETS)
	require.NoError(u.t, err)
	return *m
}

func (u *user) types(keys string) {
	u.t.Helper()
	_, err := u.emulator.WriteString(keys)
	require.NoError(u.t, err)
}

// sees reads the screen up to a line with text, and returns that.
func (u *user) sees(text string) string {
	u.t.Helper()
	for {
		line, err := u.screen.ReadString('\n')
		require.NoError(u.t, err)
		if strings.Contains(line, text) {
			return line
		}
	}
}

// ends waits for vmm's end and for the terminal to be as it was.
func (u *user) ends() *os.ProcessState {
	u.t.Helper()
	_ = u.vmm.Wait()
	require.Eventually(u.t, func() bool { return u.modes() == u.before }, 10*time.Second, time.Millisecond, "the terminal is not restored")
	return u.vmm.ProcessState
}

func TestTerminalKeys(t *testing.T) {
	u := startOnTerminal(t)
	for _, key := range []string{"a", "\r", "\x03", "\x1a", "\x1c", "\x13"} { // Ctrl-C, -Z, -\ and -S among them
		u.types(key)
		u.sees(fmt.Sprintf("key %#x, 0 breaks", key[0]))
	}
	u.types("\x01\x01")
	u.sees("key 0x1, 0 breaks")
	u.types("\x01bs")
	u.sees("key 0x73, 1 breaks")
	u.types("\x01h")
	u.sees("Ctrl-A x  quit at once")
	u.types("\x01x")
	require.Equal(t, statusOK, u.ends().ExitCode())
}

func TestTerminalIsRestored(t *testing.T) {
	group := func(sig syscall.Signal) func(u *user) {
		return func(u *user) { require.NoError(u.t, syscall.Kill(-u.vmm.Process.Pid, sig)) }
	}
	for _, tt := range []struct {
		name   string
		end    func(u *user)
		status int // -1: by a signal
	}{
		{"power off", func(u *user) { u.types("\x04") }, statusOK},
		{"SIGTERM", group(syscall.SIGTERM), statusOK},
		{"SIGHUP", group(syscall.SIGHUP), statusOK},
		{"SIGINT", group(syscall.SIGINT), statusOK},
		{"SIGQUIT", group(syscall.SIGQUIT), 2},
		{"SIGKILL", group(syscall.SIGKILL), -1},
		{"panic", func(u *user) { u.types("p") }, 2},
		{"two SIGTERMs at a deaf guest", func(u *user) {
			u.types("d")
			u.sees("key 0x64")
			group(syscall.SIGTERM)(u)
			u.sees("what button?")
			group(syscall.SIGINT)(u)
		}, 143},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := startOnTerminal(t)
			tt.end(u)
			require.Equal(t, tt.status, u.ends().ExitCode())
		})
	}
}

// TestTerminalAfterStop: a stopped vmm's shell sets the modes that it likes, and SIGCONT makes the terminal raw again.
func TestTerminalAfterStop(t *testing.T) {
	u := startOnTerminal(t)
	raw := u.modes()
	require.NoError(t, u.vmm.Process.Signal(syscall.SIGSTOP))
	require.NoError(t, unix.IoctlSetTermios(int(u.tty.Fd()), unix.TCSETS, &u.before))
	require.NoError(t, u.vmm.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool { return u.modes() == raw }, 10*time.Second, time.Millisecond)
	u.types("\x04")
	require.Equal(t, statusOK, u.ends().ExitCode())
}
