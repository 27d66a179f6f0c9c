package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/cmd/vmm/internal/console"
	"vmm/machine"
)

// virtualMachine is what the command needs of a *machine.Machine.
type virtualMachine interface {
	Run(ctx context.Context) (machine.Exit, error)
	PowerButton()
	SendBreak()
	Stats() machine.Stats
	Close() error
}

func newMachine(cfg machine.Config) (virtualMachine, error) {
	m, err := machine.New(cfg)
	if err != nil {
		return nil, err // not m: a nil pointer in an interface is not nil
	}
	return m, nil
}

const keysHelp = `
vmm: Ctrl-A x  quit at once
     Ctrl-A b  send a break
     Ctrl-A h  this help
     Ctrl-A Ctrl-A  send a Ctrl-A
`

// boot is the command without a name.
func (p *process) boot(args []string) (status int, err error) {
	var o bootOptions
	if err := o.parse(args); err != nil {
		return 0, mistake{err}
	}
	if o.help {
		_, err := p.stdout.WriteString(helpText())
		return statusOK, err
	}
	if o.version {
		_, err := p.stdout.WriteString(versionText())
		return statusOK, err
	}

	o.name.apply()
	var files bootFiles
	if !o.bootsDisk() {
		if files, err = o.openBootFiles(); err != nil {
			return 0, err
		}
		defer files.Close()
	}

	// A thread that comes back from the kernel needs a place in Go's scheduler, and the others, vCPUs among them, keep theirs
	// for a while when they go there. With a place for each none has to wait, however few processors the host has.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), o.threads()))

	s := newSession(time.Duration(o.grace))
	defer s.end()
	set, err := p.openDevices(&o, s)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	cfg := machine.Config{
		Memory:         uint64(o.memory),
		CPUs:           int(o.cpus),
		Virtio:         set.devices,
		RestartOnReset: o.reboot,
		DebugExit:      o.debugExit,
		Trace:          o.debug,
	}
	var title string
	var first machine.Boot
	if o.bootsDisk() {
		if first, title, err = o.findOnDisk(set.firstDisk); err != nil {
			return 0, err
		}
		cfg.Reload = func() (machine.Boot, error) {
			b, _, err := o.findOnDisk(set.firstDisk)
			return b, err
		}
	} else {
		first = files.boot(&o)
	}
	cfg.Kernel, cfg.Initrd, cfg.Cmdline = first.Kernel, first.Initrd, first.Cmdline
	port, err := p.openLine("serial", o.serial, s)
	if err != nil {
		return 0, err
	}
	cfg.Serial = port.line
	if s.vm, err = p.newMachine(cfg); err != nil {
		_ = port.abandon()
		return 0, o.explain(err)
	}
	defer func() { err = errors.Join(err, s.vm.Close()) }()
	close(s.ready)
	if port.terminal || set.terminal {
		if s.terminal, err = console.MakeRaw(p.stdin); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, s.terminal.Restore()) }()
	}
	for _, notice := range append(set.notices, port.notice) {
		if notice != "" {
			fmt.Fprintln(p.stderr, "vmm: "+notice)
		}
	}
	if port.line != nil || o.console.kind != serialNone { // else there would be nothing to end the line
		s.progress = console.NewProgress(p.stderr)
		s.progress.Show(o.bootingText(title))
	}
	status, err = s.run(p)
	s.heard()
	if o.debug {
		printStats(p.stderr, s.vm.Stats(), set.counts)
	}
	return status, err
}

// session is the run of one machine in the foreground.
type session struct {
	vm       virtualMachine
	ready    chan struct{}        // closed when vm is set
	resize   func()               // tells the guest the terminal's size; nil if it has no use for that
	terminal *console.RawTerminal // nil where the serial port is no terminal
	grace    time.Duration
	progress *console.Progress // nil where nobody sees it

	signals chan os.Signal
	quit    chan struct{} // holds a value when the user has typed the key for it
}

// newSession takes over the signals, so that from now on none ends the process and leaves something behind.
func newSession(grace time.Duration) *session {
	s := &session{grace: grace, ready: make(chan struct{}), signals: make(chan os.Signal, 8), quit: make(chan struct{}, 1)}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGCONT, syscall.SIGWINCH} {
		if !signal.Ignored(sig) { // nohup(1) and a shell's & leave some so
			signal.Notify(s.signals, sig)
		}
	}
	return s
}

func (s *session) end() { signal.Stop(s.signals) }

// heard ends the progress line: from now on the guest speaks for itself.
func (s *session) heard() { s.progress.End() }

// onKey returns what acts on the terminal's escape keys. A virtio console reads its line, and with it the keys, already
// before there is a machine.
func (s *session) onKey(p *process) func(console.Key) {
	return func(k console.Key) {
		switch k {
		case console.KeyBreak:
			select {
			case <-s.ready:
				s.vm.SendBreak()
			default:
			}
		case console.KeyHelp:
			s.heard()
			fmt.Fprint(p.stderr, keysHelp)
		case console.KeyQuit:
			select {
			case s.quit <- struct{}{}:
			default:
			}
		}
	}
}

// run runs the machine to its end, or until the user ends it.
//
// The first signal presses the power button; the guest has the grace period to power off. The second signal, and the
// period's end, stop it.
func (s *session) run(p *process) (status int, err error) {
	// What came while the machine was built came too early for the guest.
	for early := true; early; {
		select {
		case sig := <-s.signals:
			if sig != syscall.SIGCONT && sig != syscall.SIGWINCH {
				return 128 + int(sig.(syscall.Signal)), nil
			}
		default:
			early = false
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var (
		exit     machine.Exit
		done     = make(chan struct{})
		deadline <-chan time.Time
		got      syscall.Signal // the first that asked for the end
	)
	go func() {
		defer close(done)
		exit, err = s.vm.Run(ctx)
	}()
	for {
		select {
		case <-done:
			return exitStatus(exit, got), err
		case <-s.quit:
			stop()
		case <-deadline:
			s.heard()
			fmt.Fprintf(p.stderr, "vmm: the guest did not power off within %v of %s: stopped\n", s.grace, unix.SignalName(got))
			stop()
		case sig := <-s.signals:
			switch {
			case sig == syscall.SIGCONT:
				if s.terminal != nil {
					_ = s.terminal.Resume() // the terminal may be gone, which is no reason to stop the guest
				}
			case sig == syscall.SIGWINCH:
				if s.resize != nil {
					s.resize()
				}
			case got != 0:
				stop()
			default:
				got = sig.(syscall.Signal)
				s.vm.PowerButton()
				deadline = time.After(s.grace)
			}
		}
	}
}

// exitStatus is that of a run without an error; got is the signal that asked for its end, or 0.
func exitStatus(exit machine.Exit, got syscall.Signal) int {
	switch {
	case exit.Reason == machine.DebugExit:
		return int(min(exit.Code, 255))
	case exit.Reason == machine.Stopped && got != 0:
		return 128 + int(got)
	}
	return statusOK
}
