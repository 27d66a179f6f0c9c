package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

// defaultPath is that of a process whose image says nothing of it, as in Docker.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Statuses of processes that were not started, as of a shell's and Docker's.
const (
	statusNotRunnable = 126
	statusNotFound    = 127
)

// child is a process that is to be, or is.
type child struct {
	path  string
	args  []string
	attr  syscall.ProcAttr
	given []*os.File // the process's ends, which are closed here once it has them

	tty            *os.File // our end of the terminal, or else of the pipes:
	stdin          *os.File
	stdout, stderr *os.File
}

// newChild finds out all that a process needs. Its error says which of it there is not.
func newChild(p *wire.Process) (_ *child, err error) {
	if len(p.Args) == 0 {
		return nil, &wire.Failed{Message: "no command: neither the image nor the command line has one", Status: statusNotFound}
	}
	who, err := user.GetExecUserPath(p.User, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return nil, &wire.Failed{Message: fmt.Sprintf("user %q: %v", p.User, err), Status: statusNotRunnable}
	}
	c := &child{args: p.Args}
	env := p.Env
	setDefault := func(name, value string) {
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			env = append(env, name+"="+value)
		}
	}
	setDefault("PATH", defaultPath)
	setDefault("HOME", who.Home)
	if p.TTY {
		setDefault("TERM", "xterm")
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return nil, &wire.Failed{Message: fmt.Sprintf("working directory: %v", err), Status: statusNotRunnable}
	}
	if c.path, err = find(p.Args[0], dir, env); err != nil {
		return nil, err
	}
	groups := []uint32{}
	for _, g := range who.Sgids {
		groups = append(groups, uint32(g))
	}
	c.attr = syscall.ProcAttr{
		Dir: dir, Env: env,
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(who.Uid), Gid: uint32(who.Gid), Groups: groups}},
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if p.TTY {
		return c, c.openTerminal(p, who.Uid)
	}
	return c, c.openPipes(p.Stdin)
}

// find looks the program up as a shell would.
func find(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, runnable(name, path)
	}
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		var found error
		for _, in := range filepath.SplitList(list) {
			path := filepath.Join(dir, in, name)
			if filepath.IsAbs(in) {
				path = filepath.Join(in, name)
			}
			err := runnable(name, path)
			if err == nil {
				return path, nil
			}
			if failed := (*wire.Failed)(nil); errors.As(err, &failed) && failed.Status == statusNotRunnable {
				found = err
			}
		}
		if found != nil {
			return "", found
		}
	}
	return "", &wire.Failed{Message: fmt.Sprintf("%q: no such program in the image's PATH", name), Status: statusNotFound}
}

func runnable(name, path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return &wire.Failed{Message: fmt.Sprintf("%q: %v", name, errors.Unwrap(err)), Status: statusNotFound}
	case st.IsDir():
		return &wire.Failed{Message: fmt.Sprintf("%q: is a directory", name), Status: statusNotRunnable}
	case st.Mode()&0o111 == 0:
		return &wire.Failed{Message: fmt.Sprintf("%q: may not be run (its mode is %v)", name, st.Mode()), Status: statusNotRunnable}
	}
	return nil
}

// openTerminal gives the process a terminal.
func (c *child) openTerminal(p *wire.Process, uid int) (err error) {
	if c.tty, err = os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	raw, err := c.tty.SyscallConn()
	if err != nil {
		return err
	}
	number := 0
	control := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(control, err); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	_ = slave.Chown(uid, 5) // the group tty, if the image calls it so
	c.given = []*os.File{slave}
	c.attr.Files = []uintptr{slave.Fd(), slave.Fd(), slave.Fd()}
	c.attr.Sys.Setctty = true
	c.resize(p.Size)
	return nil
}

// openPipes gives the process three streams.
func (c *child) openPipes(withInput bool) error {
	var in, out, errs *os.File
	var err error
	if withInput {
		in, c.stdin, err = os.Pipe()
	} else {
		in, err = os.Open(os.DevNull)
	}
	if err != nil {
		return err
	}
	c.given = append(c.given, in)
	if c.stdout, out, err = os.Pipe(); err != nil {
		return err
	}
	c.given = append(c.given, out)
	if c.stderr, errs, err = os.Pipe(); err != nil {
		return err
	}
	c.given = append(c.given, errs)
	for _, f := range c.given {
		c.attr.Files = append(c.attr.Files, f.Fd())
	}
	return nil
}

// start starts the process.
func (c *child) start() (pid int, err error) {
	pid, err = syscall.ForkExec(c.path, c.args, &c.attr)
	for _, f := range c.given {
		_ = f.Close()
	}
	c.given = nil
	if err != nil {
		status := statusNotRunnable
		if errors.Is(err, unix.ENOENT) { // the program is there, but not what it names as its interpreter
			status = statusNotFound
		}
		return 0, &wire.Failed{Message: fmt.Sprintf("%q: %v", c.args[0], err), Status: status}
	}
	return pid, nil
}

// pump moves the process's streams. The channel is closed when all output is sent.
func (c *child) pump(stdin *os.File, send func(wire.Type, []byte) error) <-chan struct{} {
	output := make(chan struct{})
	if c.tty != nil {
		if stdin != nil {
			go func() { _, _ = io.Copy(c.tty, stdin) }()
		}
		go func() {
			defer close(output)
			copyFrames(c.tty, wire.TypeStdout, send) // ends with EIO when nobody has the terminal open any more
		}()
		return output
	}
	if stdin != nil {
		go func() {
			_, _ = io.Copy(c.stdin, stdin)
			_ = c.stdin.Close()
		}()
	}
	var both sync.WaitGroup
	both.Go(func() { copyFrames(c.stdout, wire.TypeStdout, send) })
	both.Go(func() { copyFrames(c.stderr, wire.TypeStderr, send) })
	go func() {
		both.Wait()
		close(output)
	}()
	return output
}

// resize sets the terminal's size.
func (c *child) resize(size wire.Resize) {
	if c.tty == nil || size.Rows == 0 || size.Columns == 0 {
		return
	}
	if raw, err := c.tty.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
		})
	}
}

func (c *child) close() {
	for _, f := range append(c.given, c.tty, c.stdin, c.stdout, c.stderr) {
		if f != nil {
			_ = f.Close()
		}
	}
}
