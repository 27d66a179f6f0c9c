// Command agent runs in the lab's machine (L1): it takes commands from the host over a virtio-serial port, runs each, and
// sends back what it prints and how it ends. Package vmm/test/lab/wire has the protocol. It is built for the lab when one
// starts.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/test/lab/wire"
)

func main() {
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "agent: %v\n", err)
		os.Exit(1)
	}
}

// serve answers the host on the port until the host closes it.
func serve(port string) error {
	// The port's reads and writes block, each a thread of its own: that is all the waiting there is.
	fd, err := unix.Open(port, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", port, err)
	}
	a := &agent{conn: wire.NewConn(os.NewFile(uintptr(fd), port)), sessions: map[uint32]*session{}}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	if err := a.conn.Write(wire.Hello, 0, []byte(unix.ByteSliceToString(name.Release[:]))); err != nil {
		return err
	}
	for {
		f, err := a.conn.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.handle(f); err != nil {
			return err
		}
	}
}

type agent struct {
	conn *wire.Conn

	mu       sync.Mutex // guards sessions
	sessions map[uint32]*session
}

// session is one command that runs.
type session struct {
	pid   int
	stdin chan []byte // one at most is on its way: the host waits for its Ack
	tty   *os.File    // the terminal's master, or nil
}

func (a *agent) session(id uint32) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions[id]
}

// handle does what the frame says. What is meant for a session that has ended meanwhile is dropped.
func (a *agent) handle(f wire.Frame) error {
	if f.Kind == wire.Exec {
		var req wire.Request
		if err := json.Unmarshal(f.Payload, &req); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		if err := a.start(f.Session, &req); err != nil {
			return a.conn.WriteJSON(wire.Exit, f.Session, wire.Result{Status: 127, Error: err.Error()})
		}
		return nil
	}
	s := a.session(f.Session)
	if s == nil {
		return nil
	}
	switch f.Kind {
	case wire.Stdin:
		select {
		case s.stdin <- f.Payload:
		default:
			return errors.New("input sent before the last was taken")
		}
	case wire.Resize:
		var size wire.Size
		if err := json.Unmarshal(f.Payload, &size); err != nil {
			return fmt.Errorf("size: %w", err)
		}
		return resize(s.tty, &size)
	case wire.Signal:
		if len(f.Payload) == 1 {
			_ = unix.Kill(-s.pid, unix.Signal(f.Payload[0])) // ESRCH: it has just ended
		}
	}
	return nil
}

// start starts the command; its Exit is sent when it has ended.
func (a *agent) start(id uint32, req *wire.Request) error {
	if len(req.Args) == 0 {
		return errors.New("no command")
	}
	cmd := exec.Command(req.Args[0], req.Args[1:]...)
	cmd.Dir, cmd.Env = req.Dir, append(os.Environ(), req.Env...)
	streams, err := open(req.TTY)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.childIn, streams.childOut, streams.childErr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: req.TTY != nil}
	err = cmd.Start()
	streams.closeChild()
	if err != nil {
		streams.close()
		return err
	}
	s := &session{pid: cmd.Process.Pid, stdin: make(chan []byte, 1), tty: streams.tty}
	a.mu.Lock()
	a.sessions[id] = s
	a.mu.Unlock()

	done := make(chan struct{})
	go a.feed(id, s, streams, done)
	go a.finish(id, cmd, streams, done)
	return nil
}

// feed hands the input to the command, until the end of either.
func (a *agent) feed(id uint32, s *session, streams *streams, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case p := <-s.stdin:
			if len(p) == 0 {
				streams.endInput()
			} else {
				// A command that reads no more lets the rest of its input go by.
				_, _ = streams.in.Write(p)
			}
			if a.conn.Write(wire.Ack, id, nil) != nil {
				return
			}
		}
	}
}

// finish sends what the command prints, and its status after all of it.
func (a *agent) finish(id uint32, cmd *exec.Cmd, streams *streams, done chan<- struct{}) {
	var exited atomic.Bool
	var copying sync.WaitGroup
	copying.Go(func() { drain(a.conn.Output(wire.Stdout, id), streams.out, &exited) })
	if streams.err != nil {
		copying.Go(func() { drain(a.conn.Output(wire.Stderr, id), streams.err, &exited) })
	}
	waitErr := cmd.Wait()
	exited.Store(true)
	for _, f := range []*os.File{streams.out, streams.err} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(leftover))
		}
	}
	copying.Wait()
	close(done)
	streams.close()
	a.mu.Lock()
	delete(a.sessions, id)
	a.mu.Unlock()
	_ = a.conn.WriteJSON(wire.Exit, id, result(cmd, waitErr)) // if the host is gone, the reader ends the agent
}

func result(cmd *exec.Cmd, err error) wire.Result {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return wire.Result{Status: 127, Error: err.Error()}
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return wire.Result{Status: 128 + int(status.Signal())}
	}
	return wire.Result{Status: status.ExitStatus()}
}

// leftover is how long an output may stay silent after the command's end, until it counts as ended: a process that the
// command left behind may hold it open for ever.
const leftover = 100 * time.Millisecond

// drain copies the command's output until its end.
func drain(to io.Writer, from *os.File, exited *atomic.Bool) {
	buf := make([]byte, 32<<10)
	for {
		if exited.Load() {
			_ = from.SetReadDeadline(time.Now().Add(leftover))
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && !exited.Load() {
				continue
			}
			return // also EIO: a terminal that nobody has open any more
		}
	}
}
