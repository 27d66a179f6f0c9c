// Package lab is a machine with a true KVM, for hosts whose own is missing or can't run whole kernels: Debian's cloud kernel
// (L1) in QEMU's TCG, which emulates SVM, so that the kernel's kvm_amd gives /dev/kvm with nested paging. The guests of a
// monitor that runs there are L2.
//
//	l, err := lab.Start(ctx, lab.Config{Files: map[string]string{"/usr/local/bin/vmm": "bin/vmm"}})
//	...
//	defer l.Close()
//	status, err := l.Run(ctx, lab.Shell("vmm probe"))
//
// L1 lives in an initramfs: busybox, the kernel's modules for KVM and virtual networks, an agent, and the files that the
// caller sends along. It has one CPU: with two, QEMU's emulation of SVM isn't reliable. Commands run one beside the other
// as on any machine; a session on L1's terminal is a command as well.
//
// A lab starts in some 5 seconds, and a kernel in it boots in another 5 to 10: share one among tests.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/kernel"
	"vmm/test/lab/wire"
)

// Defaults of [Config].
const (
	DefaultMemory = 4 << 30
	DefaultQEMU   = "qemu-system-x86_64"
)

// GuestDisk is where L1 has the disk that is for its guests.
const GuestDisk = "/dev/guest"

// Config says what the lab is. The zero value is a lab with nothing but busybox.
type Config struct {
	Kernel string // the series of L1's kernel; [kernel.Default] if empty
	Memory uint64 // in bytes; DefaultMemory if 0. Only what L1 touches is taken from the host
	QEMU   string // the program; DefaultQEMU if empty

	// Files are the files and folders carried in: the path in L1, and the one here. They go into L1's memory.
	Files map[string]string

	// Disk is a raw image of an ext4 file system that becomes the root of all commands, if set; scripts/lab-rootfs makes
	// one. What is written to it is lost with the lab. Files, /lab and /boot are laid over it.
	Disk string

	// GuestDisk is a raw image for guests in the lab, if set: L1 has it as the block device [GuestDisk], which can only be
	// read. It may be the same as Disk.
	GuestDisk string

	Console io.Writer // gets what L1's kernel prints, if set
}

// Lab is one running machine. Its methods may be called from any goroutine.
type Lab struct {
	conn    *wire.Conn
	port    *os.File
	machine *machine
	release string

	mu       sync.Mutex // guards the fields below
	sessions map[uint32]*session
	last     uint32
	failure  error // why there are no more frames

	reader  chan struct{} // closed when the reading of frames has ended
	beating sync.WaitGroup
}

// session is the host's side of a command.
type session struct {
	cmd    *Cmd
	ack    chan struct{}    // one element for each Ack
	result chan wire.Result // one, or closed when the lab is gone
	failed error            // of the command's writers; only the reader uses it until result
}

// Start boots a lab and waits until it takes commands. When ctx ends, the lab does.
func Start(ctx context.Context, cfg Config) (_ *Lab, err error) {
	if cfg.Kernel == "" {
		cfg.Kernel = kernel.Default
	}
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.QEMU == "" {
		cfg.QEMU = DefaultQEMU
	}
	kernel, err := kernel.Cloud(ctx, cfg.Kernel)
	if err != nil {
		return nil, err
	}
	initrd, err := buildInitrd(ctx, &cfg, kernel)
	if err != nil {
		return nil, fmt.Errorf("lab's initramfs: %w", err)
	}
	defer func() { _ = os.Remove(initrd) }() // QEMU has read it before the first command
	m, port, err := startMachine(ctx, &cfg, kernel.Image, initrd)
	if err != nil {
		return nil, err
	}
	l := &Lab{
		conn: wire.NewConn(port), port: port, machine: m,
		sessions: map[uint32]*session{}, reader: make(chan struct{}),
	}
	hello, err := l.conn.Read()
	if err == nil && hello.Kind != wire.Hello {
		err = fmt.Errorf("frame of kind %d before the agent's greeting", hello.Kind)
	}
	if err != nil {
		close(l.reader)
		l.Close()
		return nil, fmt.Errorf("start of the lab: %w", l.machine.diagnose(ctx, err))
	}
	l.release = string(hello.Payload)
	go l.read(ctx)
	l.beating.Go(l.beat)
	return l, nil
}

// Release returns the release of L1's kernel.
func (l *Lab) Release() string { return l.release }

// Close turns the lab off, as by its plug. What runs in it is gone. It is idempotent.
func (l *Lab) Close() {
	l.machine.stop()
	_ = l.port.Close()
	<-l.reader
	l.beating.Wait()
}

// beat keeps L1 alive. QEMU's vCPU thread changes the CPU's set of pending interrupts without a lock when a nested guest is
// entered or left, and an interrupt that QEMU raises from another thread at that moment is lost: pending in the local APIC,
// and the CPU asleep. L1 waits for its next timer interrupt then, for ever, as the lost one was it. Any later interrupt
// heals that, so a frame that means nothing brings one every little while.
func (l *Lab) beat() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-l.reader:
			return
		case <-tick.C:
			if l.conn.Write(wire.Beat, 0, nil) != nil {
				return // the reader learns why
			}
		}
	}
}

// read hands the frames that come to their sessions.
func (l *Lab) read(ctx context.Context) {
	defer close(l.reader)
	for {
		f, err := l.conn.Read()
		if err != nil {
			err = l.machine.diagnose(ctx, err)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.failure = fmt.Errorf("the lab has ended: %w", err)
			for _, s := range l.sessions {
				close(s.result)
			}
			return
		}
		l.mu.Lock()
		s := l.sessions[f.Session]
		l.mu.Unlock()
		if s != nil {
			s.handle(f)
		}
	}
}

func (s *session) handle(f wire.Frame) {
	switch f.Kind {
	case wire.Ack:
		s.ack <- struct{}{}
	case wire.Stdout:
		s.output(s.cmd.Stdout, f.Payload)
	case wire.Stderr:
		s.output(s.cmd.Stderr, f.Payload)
	case wire.Exit:
		var r wire.Result
		if err := json.Unmarshal(f.Payload, &r); err != nil {
			r = wire.Result{Status: 127, Error: err.Error()}
		}
		s.result <- r
	}
}

// output writes to the command's writer, which a failure cuts off from the rest.
func (s *session) output(w io.Writer, p []byte) {
	if w == nil || s.failed != nil {
		return
	}
	_, s.failed = w.Write(p)
}

// Cmd is a command for L1.
type Cmd struct {
	Args []string
	Dir  string   // /lab if empty
	Env  []string // in addition to L1's own

	// Stdin is the input, until its end or the command's; none if nil. A Read that has begun is not interrupted when the
	// command ends, and what it returns later is lost.
	Stdin io.Reader
	// Stdout and Stderr get the output byte for byte, and nothing after Run has returned; nil discards. A writer that
	// blocks holds up all commands of the lab.
	Stdout, Stderr io.Writer

	// TTY, if set, gives the command a terminal of this size; its output is then all Stdout. Each value of Resize is the
	// terminal's new size.
	TTY    *Size
	Resize <-chan Size
}

// Size is that of a terminal, in characters.
type Size = wire.Size

// Shell returns the command that L1's shell makes of script.
func Shell(script string) *Cmd { return &Cmd{Args: []string{"/bin/sh", "-c", script}} }

// Run runs the command and returns its exit status, which is 128 and the signal's number if a signal has ended it. When ctx
// ends, the command and its process group are killed, and the error is the context's.
func (l *Lab) Run(ctx context.Context, cmd *Cmd) (int, error) {
	req := wire.Request{Args: cmd.Args, Dir: cmd.Dir, Env: cmd.Env, TTY: cmd.TTY}
	if req.Dir == "" {
		req.Dir = "/lab"
	}
	s := &session{cmd: cmd, ack: make(chan struct{}, 1), result: make(chan wire.Result, 1)}
	id, err := l.register(s)
	if err != nil {
		return 0, err
	}
	defer l.unregister(id)
	if err := l.conn.WriteJSON(wire.Exec, id, req); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	defer close(ended)
	go l.feed(id, s, ended)

	cancelled := ctx.Done()
	for {
		select {
		case r, ok := <-s.result:
			switch {
			case ctx.Err() != nil:
				return 0, ctx.Err()
			case !ok:
				return 0, l.err()
			case r.Error != "":
				return 0, fmt.Errorf("run %s in the lab: %s", strings.Join(cmd.Args, " "), r.Error)
			}
			return r.Status, s.failed
		case size := <-cmd.Resize:
			if err := l.conn.WriteJSON(wire.Resize, id, size); err != nil {
				return 0, err
			}
		case <-cancelled:
			if err := l.conn.Write(wire.Signal, id, []byte{byte(unix.SIGKILL)}); err != nil {
				return 0, ctx.Err()
			}
			cancelled = nil // now the result comes
		}
	}
}

func (l *Lab) register(s *session) (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return 0, l.failure
	}
	l.last++
	l.sessions[l.last] = s
	return l.last, nil
}

func (l *Lab) unregister(id uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, id)
}

func (l *Lab) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// feed sends the command's input and its end, each piece when the one before has been taken.
func (l *Lab) feed(id uint32, s *session, ended <-chan struct{}) {
	send := func(p []byte) bool {
		if l.conn.Write(wire.Stdin, id, p) != nil {
			return false
		}
		select {
		case <-s.ack:
			return true
		case <-ended:
			return false
		}
	}
	buf := make([]byte, 32<<10)
	for s.cmd.Stdin != nil {
		n, err := s.cmd.Stdin.Read(buf)
		if n > 0 && !send(buf[:n]) {
			return
		}
		if err != nil { // like the end of input, as exec.Cmd has it for a pipe that breaks
			break
		}
	}
	send(nil)
}

// Output runs the command and returns its standard output. A status other than 0 is an error that holds the standard
// error. It uses the command's Stdout and Stderr itself.
func (l *Lab) Output(ctx context.Context, cmd *Cmd) (string, error) {
	if cmd.Stdout != nil || cmd.Stderr != nil {
		return "", errors.New("the command's output goes elsewhere")
	}
	var stdout, stderr strings.Builder
	c := *cmd
	c.Stdout, c.Stderr = &stdout, &stderr
	status, err := l.Run(ctx, &c)
	if err == nil && status != 0 {
		err = fmt.Errorf("%s: exit status %d: %s", strings.Join(cmd.Args, " "), status, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}
