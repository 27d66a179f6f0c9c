// Command lab runs a command, or a shell, on the nested lab's host (L1), a machine with a true KVM:
//
//	lab [-timeout 10m] [-memory 4096] [-disk IMAGE] [-file PATH]... [SCRIPT]
//
// There vmm is on the PATH, the guest kernels are /boot/vmlinuz-6.1, /boot/vmlinux-6.1 and the same of 6.12, the initramfs is
// /boot/u-root.cpio, that of the test guests /boot/guest-6.1.cpio and so on, and busybox has the usual tools. With -disk IMAGE
// the lab has those of the image instead, and the guests have it as /dev/guest:
//
//	vmm -kernel /boot/vmlinuz-6.12 -initrd /boot/guest-6.12.cpio -disk /dev/guest,readonly -append test.root=vda
//
// Each -file is copied into /lab, where SCRIPT is run by a shell. The lab's standard input, output, error and exit status are
// the script's; what it leaves in /lab/out is then in out/lab here. The status is 124 after the time limit, and 125 if the lab
// itself failed.
//
// On a terminal, the script or the shell has one as well; Ctrl-] leaves the lab at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/test/lab"
)

// Exit statuses of our own, as timeout(1) and docker have them.
const (
	statusTimeout = 124
	statusFailed  = 125
)

type options struct {
	script  string
	timeout time.Duration
	memory  uint64 // MiB
	disk    string
	series  []string
	files   []string
	verbose bool
}

func main() {
	var o options
	flag.DurationVar(&o.timeout, "timeout", 0, "end the lab after this `time`; 0 is never")
	flag.Uint64Var(&o.memory, "memory", lab.DefaultMemory>>20, "L1's memory in `MiB`")
	flag.StringVar(&o.disk, "disk", "", "raw ext4 `image` to run in, for tools that the initramfs lacks")
	flag.BoolVar(&o.verbose, "v", false, "show what L1's kernel prints")
	kernels := flag.String("kernels", strings.Join(lab.Series(), " "), "the `series` of the guest kernels in /boot")
	flag.Func("file", "copy this file or folder into /lab (may be given several times)", func(path string) error {
		o.files = append(o.files, path)
		return nil
	})
	flag.Parse()
	o.series, o.script = strings.Fields(*kernels), strings.Join(flag.Args(), " ")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	status, err := run(ctx, &o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
	}
	os.Exit(status)
}

func run(ctx context.Context, o *options) (int, error) {
	if o.timeout != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("time limit of %v reached", o.timeout))
		defer cancel()
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)

	status, err := runIn(ctx, o, leave)
	switch cause := context.Cause(ctx); {
	case err == nil:
		return status, nil
	case errors.Is(cause, errLeft):
		return 0, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return statusTimeout, cause
	case errors.Is(err, context.Canceled):
		return 128 + int(unix.SIGINT), errors.New("interrupted")
	default:
		return statusFailed, err
	}
}

// errLeft says that the person at the terminal has typed the key for it.
var errLeft = errors.New("left")

func runIn(ctx context.Context, o *options, leave context.CancelCauseFunc) (int, error) {
	files, err := lab.Standard(ctx, ".", o.series...)
	if err != nil {
		return 0, err
	}
	for _, path := range o.files {
		files["/lab/"+filepath.Base(path)] = path
	}
	cfg := lab.Config{Memory: o.memory << 20, Files: files, Disk: o.disk, GuestDisk: o.disk}
	if o.verbose {
		cfg.Console = os.Stderr
	}
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer l.Close()

	cmd := lab.Shell(o.script)
	if o.script == "" {
		cmd.Args = []string{"/bin/sh"}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
		restore, err := attachTerminal(ctx, cmd, leave)
		if err != nil {
			return 0, err
		}
		defer restore()
		if o.script == "" {
			fmt.Fprintf(os.Stderr, "lab: Linux %s; exit or Ctrl-] leaves\r\n", l.Release())
		}
	}
	status, err := l.Run(ctx, cmd)
	if err != nil {
		return 0, err
	}
	if o.script == "" && cmd.TTY != nil {
		status = 0 // that of the last command a person typed is of no interest any more
	}
	return status, l.Get(ctx, "/lab/out", "out/lab")
}

// attachTerminal gives the command a terminal like ours, whose keys are then all the command's, except one.
func attachTerminal(ctx context.Context, cmd *lab.Cmd, leave context.CancelCauseFunc) (func(), error) {
	fd := int(os.Stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	size := func() lab.Size {
		cols, rows, err := term.GetSize(int(os.Stdout.Fd()))
		if err != nil {
			return lab.Size{Rows: 24, Cols: 80}
		}
		return lab.Size{Rows: uint16(rows), Cols: uint16(cols)}
	}
	first := size()
	cmd.TTY = &first
	cmd.Env = append(cmd.Env, "TERM="+os.Getenv("TERM"))
	cmd.Stdin = keyWatcher{os.Stdin, func() { leave(errLeft) }}

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	sizes := make(chan lab.Size)
	cmd.Resize = sizes
	ctx, stop := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-resized:
				select {
				case sizes <- size():
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		stop()
		signal.Stop(resized)
		_ = term.Restore(fd, old) // it could be set, so it can be set back
	}, nil
}

// keyWatcher is the keyboard; the key Ctrl-] goes no further.
type keyWatcher struct {
	r     io.Reader
	leave func()
}

func (k keyWatcher) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	const ctrlBracket = 0x1d
	for i := range n {
		if p[i] == ctrlBracket {
			k.leave()
			return i, io.EOF
		}
	}
	return n, err
}
