package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/test/bench/measure/up"
)

// bootLimit is longer than any boot takes in the slowest of labs.
const bootLimit = 5 * time.Minute

// monitor is a running one.
type monitor struct {
	cmd     *exec.Cmd
	cancel  context.CancelFunc
	console *os.File  // our end
	started time.Time // right before fork and exec
	stderr  strings.Builder
}

// launch starts the command on a console, which gives two ends. It is killed when ctx ends, and after bootLimit.
func launch(ctx context.Context, args []string, console func() (ours, theirs *os.File, err error)) (*monitor, error) {
	ours, theirs, err := console()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	m := &monitor{cmd: exec.CommandContext(ctx, args[0], args[1:]...), cancel: cancel, console: ours}
	m.cmd.Stdout, m.cmd.Stderr = theirs, &m.stderr
	m.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	if term.IsTerminal(int(theirs.Fd())) {
		m.cmd.Stdin = theirs
		m.cmd.SysProcAttr.Setctty = true
	}
	m.started = time.Now()
	if err := m.cmd.Start(); err != nil {
		cancel()
		return nil, errors.Join(err, ours.Close())
	}
	return m, nil
}

// waitUp reads the guest's console until its init has said that it is up, and goes on reading in the background, as a
// guest must not be held up.
func (m *monitor) waitUp() error {
	lines := bufio.NewReader(m.console)
	var last string
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, up.Line) {
			go func() { _, _ = io.Copy(io.Discard, lines) }() // until the console is closed
			return nil
		}
		if err != nil {
			return fmt.Errorf("the guest's init did not come up: %w; the last it said: %q", err, last)
		}
		last = line
	}
}

// end ends the monitor after err or success. To err it adds what the monitor had to say.
func (m *monitor) end(err error) error {
	m.cancel()
	_ = m.cmd.Wait() // with an error, of course
	_ = m.console.Close()
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %v: %s", err, m.cmd.Path, m.cmd.ProcessState, strings.TrimSpace(m.stderr.String()))
}

// startTime returns the seconds from the command's exec to its first KVM_RUN.
func startTime(ctx context.Context, args []string) (seconds float64, err error) {
	// kvm:kvm_entry would be later by what KVM does before it, and is not there in every KVM.
	t, err := startTrace(map[string]string{"sched/sched_process_exec": "", "syscalls/sys_enter_ioctl": "cmd == 0xae80"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	m, err := launch(ctx, args, pipe)
	if err != nil {
		return 0, err
	}
	// The console ends with a monitor that fails, and the reader of the trace shall not wait for more.
	var watch sync.WaitGroup
	watch.Go(func() {
		_, _ = io.Copy(io.Discard, m.console)
		_ = t.mark()
	})
	seconds, err = firstRun(t, m.cmd.Process.Pid)
	err = m.end(err)
	watch.Wait()
	return seconds, err
}

// firstRun finds the process's exec and its first KVM_RUN in the trace.
func firstRun(t *trace, process int) (float64, error) {
	var execed float64
	for e, err := range t.events(process) {
		switch {
		case err != nil:
			return 0, err
		case e.name == "sched_process_exec":
			execed = e.time
		case execed != 0:
			return e.time - execed, nil
		}
	}
	return 0, errors.New("no exec, or no KVM_RUN after it")
}

// bootTime returns the seconds from just before the command's fork and exec to the first words of the guest's init.
func bootTime(ctx context.Context, args []string) (float64, error) {
	m, err := launch(ctx, args, pipe)
	if err != nil {
		return 0, err
	}
	err = m.waitUp()
	seconds := time.Since(m.started).Seconds()
	return seconds, m.end(err)
}

// pipe is a console for output.
func pipe() (ours, theirs *os.File, err error) { return os.Pipe() }

// terminal is a console like a person's.
func terminal() (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ours.Close())
		}
	}()
	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var number int
	failed := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return nil, nil, err
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	return ours, theirs, err
}
