package console

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// guardName is the guard's argv[0]. It tells a guard from a vmm, and ps from both.
const guardName = "vmm: restores the terminal"

// guardOrder is what the guard reads first.
type guardOrder struct {
	Saved, Raw unix.Termios
}

// guard is a second process of this program. A deferred call restores no terminal when another goroutine panics or
// SIGKILL comes, so somebody else must do it. The guard's standard input is a pipe from the process that it watches, and
// ends with it; its standard output is the terminal. It leads a session of its own: neither a signal to the process
// group nor the terminal's job control reaches it.
type guard struct {
	pipe io.Closer
	cmd  *exec.Cmd
}

func startGuard(terminal *os.File, order guardOrder) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{guardName}
	cmd.Dir = "/"
	cmd.Stdout = terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the terminal's guard: %w", err)
	}
	g := &guard{pipe: pipe, cmd: cmd}
	if err := binary.Write(pipe, binary.NativeEndian, order); err != nil {
		g.stop()
		return nil, fmt.Errorf("instruct the terminal's guard: %w", err)
	}
	return g, nil
}

// stop ends the guard and waits for it.
func (g *guard) stop() {
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

// GuardMain does the work of a guard, and exits, in a process that [MakeRaw] has started as one. Otherwise it does
// nothing. It must be the first call in main of every program that calls MakeRaw.
func GuardMain() {
	if os.Args[0] != guardName {
		return
	}
	watch(os.Stdin, os.Stdout)
	os.Exit(0)
}

// watch waits for the end of the pipe and restores the terminal unless someone else did: the process itself as it ended
// in good order, or the shell, which may already have set the modes of its own line editor.
func watch(pipe io.Reader, terminal *os.File) {
	var order guardOrder
	if binary.Read(pipe, binary.NativeEndian, &order) != nil {
		return // dead before the terminal was raw
	}
	_, _ = io.Copy(io.Discard, pipe)
	now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err == nil && now.Iflag == order.Raw.Iflag && now.Lflag == order.Raw.Lflag {
		_ = setModes(terminal, &order.Saved)
	}
}
