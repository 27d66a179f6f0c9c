package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

const (
	// stdinTimeout is how long the connection with a process's input may take to come.
	stdinTimeout = 10 * time.Second
	// drainTimeout is how long the pipes of a process that has ended may have nothing, while others, its children, hold them.
	drainTimeout = 100 * time.Millisecond
	// goodbyeTimeout is how long the host has to hear of the main process's end.
	goodbyeTimeout = 5 * time.Second
)

// supervisor runs processes, and reaps all that end in the machine, also those that nobody waits for.
type supervisor struct {
	ended chan struct{}
	once  sync.Once

	mu      sync.Mutex // guards what follows; held while processes are started, so that none is reaped unknown
	running map[int]chan syscall.WaitStatus
	main    int                      // the main process, or 0
	inputs  map[uint64]chan *os.File // by process; a connection waits here for its process, or the other way round
}

func newSupervisor() *supervisor {
	s := &supervisor{ended: make(chan struct{}), running: map[int]chan syscall.WaitStatus{}, inputs: map[uint64]chan *os.File{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			s.reap()
		}
	}()
	return s
}

// end has the machine end.
func (s *supervisor) end() { s.once.Do(func() { close(s.ended) }) }

// reap takes all processes that have ended.
func (s *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		s.mu.Lock()
		if done := s.running[pid]; done != nil {
			delete(s.running, pid)
			done <- status
		}
		s.mu.Unlock()
	}
}

// accept serves the host's connections.
func (s *supervisor) accept(l *listener) {
	for {
		conn, err := l.accept()
		if err != nil {
			fmt.Printf("init: accept: %v\n", err)
			s.end()
			return
		}
		go s.serve(conn)
	}
}

// serve does what the connection is for.
func (s *supervisor) serve(conn *os.File) {
	c := wire.NewConn(conn)
	kind, payload, err := c.Receive()
	if err != nil {
		_ = conn.Close()
		return
	}
	switch kind {
	case wire.TypeStdin:
		var in wire.Stdin
		if json.Unmarshal(payload, &in) == nil {
			s.input(in.ID) <- conn // whose it is from now on
			return
		}
	case wire.TypeStart:
		var p wire.Process
		if err = json.Unmarshal(payload, &p); err == nil {
			if p.Version != wire.Version {
				err = fmt.Errorf("the host speaks version %d, this guest %d", p.Version, wire.Version)
			} else {
				err = s.process(c, &p)
			}
		}
	case wire.TypeSignal:
		var sig wire.Signal
		if err = json.Unmarshal(payload, &sig); err == nil {
			if err = s.signalMain(unix.Signal(sig.Number)); err == nil {
				_ = c.Send(wire.TypeDone, nil)
			}
		}
	default:
		err = fmt.Errorf("a connection that begins with type %d", kind)
	}
	if err != nil {
		failed := &wire.Failed{Message: err.Error()}
		_ = errors.As(err, &failed)
		_ = c.Send(wire.TypeFailed, failed)
	}
	_ = conn.Close()
}

func (s *supervisor) signalMain(sig unix.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == 0 {
		return errors.New("the main process does not run")
	}
	return unix.Kill(s.main, sig)
}

// kill kills a process that has not ended.
func (s *supervisor) kill(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[pid] != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// input is where the connection with the process's input is handed over.
func (s *supervisor) input(id uint64) chan *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inputs[id] == nil {
		s.inputs[id] = make(chan *os.File, 1)
	}
	return s.inputs[id]
}

// process starts a process and serves it to its end. An error is for the host.
func (s *supervisor) process(c *wire.Conn, p *wire.Process) error {
	var stdin *os.File
	if p.Stdin {
		ctx, cancel := context.WithTimeout(context.Background(), stdinTimeout)
		defer cancel()
		select {
		case stdin = <-s.input(p.ID):
			defer stdin.Close()
			s.mu.Lock()
			delete(s.inputs, p.ID)
			s.mu.Unlock()
		case <-ctx.Done():
			return errors.New("no connection for the input came")
		}
	}
	child, err := newChild(p)
	if err != nil {
		return err
	}
	defer child.close()
	done := make(chan syscall.WaitStatus, 1)
	s.mu.Lock()
	pid, err := child.start()
	if err == nil {
		s.running[pid] = done
		if p.Main {
			s.main = pid
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	var out traffic
	send := func(t wire.Type, payload []byte) error { return out.send(c, t, payload) }
	if err := send(wire.TypeStarted, nil); err != nil {
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
	output := child.pump(stdin, send)
	gone := make(chan struct{})
	go func() { // signals, the terminal's size, and the end of who asked for all this
		defer close(gone)
		s.commands(c, child, pid)
		if !p.Main {
			s.kill(pid)
		}
	}()
	status := <-done
	if p.Main {
		s.mu.Lock()
		s.main = 0
		s.mu.Unlock()
		_ = unix.Kill(-1, unix.SIGKILL) // all but this process
	}
	out.settle(output)
	payload, err := json.Marshal(wire.Exited{Status: exitStatus(status)})
	if err == nil {
		err = send(wire.TypeExited, payload)
	}
	if p.Main {
		select {
		case <-gone:
		case <-time.After(goodbyeTimeout):
		}
		s.end()
	}
	return err
}

// traffic is what goes to the host on a process's connection.
type traffic struct {
	mu      sync.Mutex   // held while a frame is sent
	sending atomic.Int64 // frames that wait to be sent, or are
	steps   atomic.Int64 // beginnings and ends of that
}

func (t *traffic) send(c *wire.Conn, kind wire.Type, payload []byte) error {
	t.sending.Add(1)
	t.steps.Add(1)
	defer func() {
		t.steps.Add(1)
		t.sending.Add(-1)
	}()
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.SendBytes(kind, payload)
}

// settle waits until the output is at its end, or has nothing more to send: a host that is slow to read it gets it all.
func (t *traffic) settle(output <-chan struct{}) {
	for {
		before := t.steps.Load()
		select {
		case <-output:
			return
		case <-time.After(drainTimeout):
		}
		if t.sending.Load() == 0 && t.steps.Load() == before {
			return
		}
	}
}

// commands does what the host says on a process's connection, to its end.
func (s *supervisor) commands(c *wire.Conn, child *child, pid int) {
	for {
		kind, payload, err := c.Receive()
		if err != nil {
			return
		}
		switch kind {
		case wire.TypeSignal:
			var sig wire.Signal
			if json.Unmarshal(payload, &sig) == nil {
				_ = unix.Kill(pid, unix.Signal(sig.Number))
			}
		case wire.TypeResize:
			var size wire.Resize
			if json.Unmarshal(payload, &size) == nil {
				child.resize(size)
			}
		}
	}
}

// exitStatus is what a shell would say.
func exitStatus(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// copyFrames sends what r has as frames.
func copyFrames(r io.Reader, t wire.Type, send func(wire.Type, []byte) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(t, buf[:n]) != nil || err != nil {
			return
		}
	}
}
