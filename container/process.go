package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmm/container/wire"
	"vmm/virtio/vsock"
)

// Streams are what a process reads and writes. Nil ones are closed, or thrown away.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Size           wire.Resize // of the terminal, if it has one
	Signals        <-chan int
	Resizes        <-chan wire.Resize
	Started        func() // called when the process runs; nil for none
}

// dialer connects to the container's init.
type dialer func(ctx context.Context) (vsock.Conn, error)

// runProcess has the container's init run a process, moves its streams, and returns its status when it has ended. An error of
// type *wire.Failed says why it was not started.
func runProcess(ctx context.Context, dial dialer, p wire.Process, s Streams) (status int, err error) {
	p.Version, p.ID, p.Size = wire.Version, rand.Uint64(), s.Size
	p.Stdin = s.Stdin != nil
	defer func() {
		if err != nil && ctx.Err() != nil { // which closed the connections
			err = ctx.Err()
		}
	}()
	conn, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c := wire.NewConn(conn)
	if err := c.Send(wire.TypeStart, p); err != nil {
		return 0, err
	}
	if p.Stdin {
		in, err := dial(ctx)
		if err != nil {
			return 0, err
		}
		defer in.Close()
		if err := wire.NewConn(in).Send(wire.TypeStdin, wire.Stdin{ID: p.ID}); err != nil {
			return 0, err
		}
		go func() { // a read that never returns stays behind: the streams are the caller's
			_, _ = io.Copy(in, s.Stdin)
			_ = in.CloseWrite()
		}()
	}
	if err := c.Expect(wire.TypeStarted, nil); err != nil {
		return 0, err
	}
	if s.Started != nil {
		s.Started()
	}
	var telling sync.WaitGroup
	done := make(chan struct{})
	defer telling.Wait()
	defer close(done)
	telling.Go(func() { tell(c, s, done) })
	for {
		kind, payload, err := c.Receive()
		if err != nil {
			return 0, fmt.Errorf("the machine is gone: %w", err)
		}
		switch kind {
		case wire.TypeStdout:
			err = writeTo(s.Stdout, payload)
		case wire.TypeStderr:
			err = writeTo(s.Stderr, payload)
		case wire.TypeExited:
			var e wire.Exited
			if err = json.Unmarshal(payload, &e); err == nil && (e.Status < 0 || e.Status > 255) {
				err = fmt.Errorf("the guest's status %d", e.Status)
			}
			return e.Status & 0xff, err
		}
		if err != nil {
			return 0, err
		}
	}
}

func writeTo(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(p)
	return err
}

// tell passes signals and sizes on. Receive, which runs meanwhile, uses other parts of the connection.
func tell(c *wire.Conn, s Streams, done <-chan struct{}) {
	for {
		var err error
		select {
		case <-done:
			return
		case n := <-s.Signals:
			err = c.Send(wire.TypeSignal, wire.Signal{Number: n})
		case size := <-s.Resizes:
			err = c.Send(wire.TypeResize, size)
		}
		if err != nil {
			return
		}
	}
}

// dial connects to the init of a container that runs in another process, by the socket that its monitor has for that.
func (c *Container) dial(ctx context.Context) (vsock.Conn, error) {
	path, release, err := shortPath(c.path("vsock"))
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Spec.Name, err)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(dialTimeout)
	}
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, "CONNECT "+strconv.Itoa(wire.Port)+"\n"); err == nil {
		var answer string
		if answer, err = readLine(conn); err == nil && !strings.HasPrefix(answer, "OK ") {
			err = errors.New(answer)
		}
		if err == nil {
			return conn.(vsock.Conn), conn.SetDeadline(time.Time{})
		}
	}
	return nil, errors.Join(fmt.Errorf("container %s does not answer: %w", c.Spec.Name, err), conn.Close())
}

// dialTimeout is how long a guest may take to accept.
const dialTimeout = 10 * time.Second

// readLine reads a line and not a byte more.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 256; {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("a line without an end")
}

// Exec runs one more process in the container.
func (c *Container) Exec(ctx context.Context, p wire.Process, s Streams) (status int, err error) {
	if !c.Alive {
		return 0, fmt.Errorf("container %s does not run", c.Spec.Name)
	}
	return runProcess(ctx, c.dial, p, s)
}

// Signal sends the main process a signal.
func (c *Container) Signal(ctx context.Context, number int) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	w := wire.NewConn(conn)
	if err := w.Send(wire.TypeSignal, wire.Signal{Number: number}); err != nil {
		return err
	}
	return w.Expect(wire.TypeDone, nil)
}
