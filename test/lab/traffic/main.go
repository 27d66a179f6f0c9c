// Command traffic moves bytes over connections and looks at each of them, at both ends of a virtual network or socket: one
// end serves, the other connects.
//
//	traffic serve ADDRESS
//	traffic connect [-n 1] [-parallel 1] [-up 64] [-down 64] ADDRESS
//
// connect makes n connections, parallel of them at a time, and on each sends up bytes and receives down bytes, both at once.
// A wrong byte, a missing one or one too many is an error at either end. An ADDRESS is one of
//
//	tcp:HOST:PORT
//	unix:PATH
//	vsock:CID:PORT      AF_VSOCK; serve takes vsock:PORT
//	hybrid:PATH:PORT    the guest's vsock port behind a monitor's Unix socket, which is told "CONNECT PORT"
//
// When it is ready, serve prints "serving ADDRESS". It ends with a signal.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "traffic: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) > 1 && args[0] == "connect":
		var c client
		var up, down int64
		flags := flag.NewFlagSet("traffic connect", flag.ContinueOnError)
		flags.IntVar(&c.n, "n", 1, "make this `number` of connections")
		flags.IntVar(&c.parallel, "parallel", 1, "this `number` of them at a time")
		flags.Int64Var(&up, "up", 64, "send `bytes` on each")
		flags.Int64Var(&down, "down", 64, "receive `bytes` on each")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if flags.NArg() != 1 || up < 0 || down < 0 || c.n < 1 || c.parallel < 1 {
			return errors.New("usage: traffic connect [-n N] [-parallel N] [-up BYTES] [-down BYTES] ADDRESS")
		}
		c.address, c.up, c.down = flags.Arg(0), uint64(up), uint64(down)
		return c.run()
	}
	return errors.New("usage: traffic serve ADDRESS, or traffic connect ADDRESS")
}

func serve(address string) error {
	l, err := listen(address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	fmt.Println("serving", address)
	for {
		conn, err := l.accept()
		if err != nil {
			return fmt.Errorf("accept on %s: %w", address, err)
		}
		go func() {
			err := answer(conn)
			if err := errors.Join(err, conn.Close()); err != nil {
				fmt.Fprintf(os.Stderr, "traffic: serving: %v\n", err)
			}
		}()
	}
}

type client struct {
	address  string
	n        int
	parallel int
	up, down uint64
}

func (c *client) run() error {
	started := time.Now()
	var next atomic.Int64
	var running sync.WaitGroup
	failures := make([]error, c.parallel)
	for i := range c.parallel {
		running.Go(func() {
			for failures[i] == nil {
				number := next.Add(1)
				if number > int64(c.n) {
					return
				}
				if err := c.one(); err != nil {
					failures[i] = fmt.Errorf("connection %d of %d to %s: %w", number, c.n, c.address, err)
				}
			}
		})
	}
	running.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	fmt.Printf("%d connections, each %d bytes up and %d down, in %.2f s\n", c.n, c.up, c.down, time.Since(started).Seconds())
	return nil
}

// one makes one connection, from its begin to the other end's close.
func (c *client) one() (err error) {
	conn, err := dial(c.address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := ask(conn, c.up, c.down); err != nil {
		return err
	}
	var rest [1]byte
	if n, err := conn.Read(rest[:]); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w where the other end should have closed", n, err)
	}
	return nil
}
