package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/container"
	"vmm/container/wire"
)

type psOptions struct{ all, quiet bool }

func psWord() *word {
	return &word{
		name: "ps", short: "List the containers that run.",
		flags: func(f *pflag.FlagSet) any {
			o := &psOptions{}
			f.BoolVarP(&o.all, "all", "a", false, "those too that have ended")
			f.BoolVarP(&o.quiet, "quiet", "q", false, "IDs alone")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			o := w.options.(*psOptions)
			s, err := openContainers()
			if err != nil {
				return 0, err
			}
			list, err := s.List()
			if err != nil {
				return 0, err
			}
			t := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
			if !o.quiet {
				fmt.Fprintln(t, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES")
			}
			for _, c := range list {
				if !c.Alive && !o.all {
					continue
				}
				if o.quiet {
					fmt.Fprintln(t, c.Spec.ID)
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Spec.ID, c.Spec.Image, shownCommand(c.Spec.Args), ago(c.Spec.Created), shownStatus(c), shownPorts(&c.Spec), c.Spec.Name)
			}
			return statusOK, t.Flush()
		},
	}
}

// shownCommand is the start of a command, in quotes and on one line.
func shownCommand(args []string) string {
	const most = 20
	r := []rune(strings.Join(args, " "))
	if len(r) > most {
		r = append(r[:most-1], '…')
	}
	return strconv.Quote(string(r))
}

func shownStatus(c *container.Container) string {
	switch {
	case c.Alive:
		return "Up " + roughly(time.Since(c.State.Started))
	case c.State.Finished.IsZero():
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s", c.State.Status, ago(c.State.Finished))
}

func shownPorts(spec *container.Spec) string {
	var list []string
	for _, f := range spec.Ports {
		list = append(list, f.String())
	}
	return strings.Join(list, ", ")
}

type logsOptions struct{ follow bool }

func logsWord() *word {
	return &word{
		name: "logs", operands: "CONTAINER", short: "Print what a container has said, each stream to its own.", least: 1, most: 1,
		flags: func(f *pflag.FlagSet) any {
			o := &logsOptions{}
			f.BoolVarP(&o.follow, "follow", "f", false, "go on with what it says, until it ends")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			c, err := findContainer(w.operands[0])
			if err != nil {
				return 0, err
			}
			ctx, stop := interruptible()
			defer stop()
			return statusOK, c.Logs(ctx, p.stdout, p.stderr, w.options.(*logsOptions).follow)
		},
	}
}

func findContainer(name string) (*container.Container, error) {
	s, err := openContainers()
	if err != nil {
		return nil, err
	}
	return s.Get(name)
}

type execOptions struct {
	interactive, tty bool
	env              []string
	workdir, user    string
}

func execWord() *word {
	return &word{
		name: "exec", operands: "CONTAINER COMMAND [ARG...]", short: "Run one more command in a container.", least: 2, most: -1, raw: true,
		flags: func(f *pflag.FlagSet) any {
			o := &execOptions{}
			f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
			f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
			f.StringArrayVarP(&o.env, "env", "e", nil, "set a `VARIABLE`: NAME=VALUE")
			f.StringVarP(&o.workdir, "workdir", "w", "", "the working `DIRECTORY`")
			f.StringVarP(&o.user, "user", "u", "", "the `USER`: name or UID, with :GROUP or :GID")
			return o
		},
		run: func(p *process, w *parsedWord) (status int, err error) {
			o := w.options.(*execOptions)
			if o.tty && !term.IsTerminal(int(p.stdin.Fd())) {
				return 0, wordMistake{errors.New("exec -t: standard input is not a terminal (leave -t out)")}
			}
			c, err := findContainer(w.operands[0])
			if err != nil {
				return 0, err
			}
			env, err := (&runOptions{env: o.env}).environment(c.Spec.Env)
			if err != nil {
				return 0, err
			}
			pr := wire.Process{Args: w.operands[1:], Env: env, Dir: c.Spec.Dir, User: c.Spec.User, TTY: o.tty}
			if o.workdir != "" {
				pr.Dir = o.workdir
			}
			if o.user != "" {
				pr.User = o.user
			}
			streams, done, err := p.streams(o.interactive, o.tty)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, done()) }()
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, passedOn...)
			defer signal.Stop(signals)
			ctx, end := context.WithCancel(context.Background())
			defer end()
			toGuest := make(chan int)
			streams.Signals = toGuest
			go func() {
				for {
					select {
					case <-ctx.Done():
						return
					case sig := <-signals:
						select {
						case toGuest <- int(sig.(syscall.Signal)):
						case <-ctx.Done():
						}
					}
				}
			}()
			return c.Exec(ctx, pr, streams)
		},
	}
}

type stopOptions struct {
	seconds int
	given   func() bool
}

func stopWord() *word {
	return &word{
		name: "stop", operands: "CONTAINER...", short: "Ask containers to end, and end those that do not in time.", least: 1, most: -1,
		flags: func(f *pflag.FlagSet) any {
			o := &stopOptions{}
			f.IntVarP(&o.seconds, "time", "t", defaultStopTimeout, "`SECONDS` to wait, instead of what run --stop-timeout said")
			o.given = func() bool { return f.Changed("time") }
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			o := w.options.(*stopOptions)
			return statusOK, p.each(w.operands, func(name string) error {
				c, err := findContainer(name)
				if err != nil {
					return err
				}
				patience := c.Spec.StopTimeout
				if o.given() {
					patience = time.Duration(o.seconds) * time.Second
				}
				return stopContainer(c, c.Spec.StopSignal, patience)
			})
		},
	}
}

// killPatience is what a guest has for a SIGKILL, until its machine is killed.
const killPatience = 15 * time.Second

// stopContainer sends the signal, after patience SIGKILL, and then ends the machine. It returns when the container has ended.
func stopContainer(c *container.Container, sig int, patience time.Duration) error {
	if !c.Alive {
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	monitor := c.State.Monitor
	for _, step := range []struct {
		do       func(ctx context.Context) error
		patience time.Duration
	}{
		{func(ctx context.Context) error { return c.Signal(ctx, sig) }, patience},
		{func(ctx context.Context) error { return c.Signal(ctx, int(unix.SIGKILL)) }, killPatience},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), min(step.patience, killPatience)+time.Second)
		err := step.do(ctx)
		cancel()
		if err != nil { // it may have ended meanwhile, or not be up yet
			select {
			case err := <-ended:
				return err
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(step.patience):
		}
	}
	if monitor > 1 {
		_ = unix.Kill(monitor, unix.SIGKILL)
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(killPatience):
		return fmt.Errorf("container %s: its process %d does not end", c.Spec.Name, monitor)
	}
}

type killOptions struct{ signal string }

func killWord() *word {
	return &word{
		name: "kill", operands: "CONTAINER...", short: "Send containers' main processes a signal.", least: 1, most: -1,
		flags: func(f *pflag.FlagSet) any {
			o := &killOptions{}
			f.StringVarP(&o.signal, "signal", "s", "KILL", "the `SIGNAL`")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			n, err := parseSignal(w.options.(*killOptions).signal)
			if err != nil {
				return 0, wordMistake{fmt.Errorf("kill --signal %w", err)}
			}
			return statusOK, p.each(w.operands, func(name string) error {
				c, err := findContainer(name)
				if err != nil {
					return err
				}
				if !c.Alive {
					return fmt.Errorf("container %s does not run", name)
				}
				if n == int(unix.SIGKILL) {
					return stopContainer(c, n, killPatience)
				}
				ctx, cancel := context.WithTimeout(context.Background(), killPatience)
				defer cancel()
				return c.Signal(ctx, n)
			})
		},
	}
}

func waitWord() *word {
	return &word{
		name: "wait", operands: "CONTAINER...", short: "Wait until containers have ended, and print their statuses.", least: 1, most: -1,
		run: func(p *process, w *parsedWord) (int, error) {
			for _, name := range w.operands {
				c, err := findContainer(name)
				if err != nil {
					return 0, err
				}
				if err := c.Wait(); err != nil {
					return 0, err
				}
				if _, err := fmt.Fprintln(p.stdout, c.State.Status); err != nil {
					return 0, err
				}
			}
			return statusOK, nil
		},
	}
}

type rmOptions struct{ force bool }

func rmWord() *word {
	return &word{
		name: "rm", operands: "CONTAINER...", short: "Remove containers, with what they have written.", least: 1, most: -1,
		flags: func(f *pflag.FlagSet) any {
			o := &rmOptions{}
			f.BoolVarP(&o.force, "force", "f", false, "kill those that run; no error for one that is not there")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			force := w.options.(*rmOptions).force
			return statusOK, p.each(w.operands, func(name string) error {
				s, err := openContainers()
				if err != nil {
					return err
				}
				c, err := s.Get(name)
				if errors.Is(err, container.ErrNotFound) && force {
					return nil
				}
				if err != nil {
					return err
				}
				if force {
					if err := stopContainer(c, int(unix.SIGKILL), killPatience); err != nil {
						return err
					}
				}
				return s.Remove(c)
			})
		},
	}
}

type startOptions struct{ attach, interactive bool }

func startWord() *word {
	return &word{
		name: "start", operands: "CONTAINER...", short: "Start containers again that have ended, with what they have written.", least: 1, most: -1,
		flags: func(f *pflag.FlagSet) any {
			o := &startOptions{}
			f.BoolVarP(&o.attach, "attach", "a", false, "in the foreground")
			f.BoolVarP(&o.interactive, "interactive", "i", false, "in the foreground, with standard input")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			o := w.options.(*startOptions)
			if o.attach || o.interactive {
				if len(w.operands) > 1 {
					return 0, wordMistake{errors.New("start -a: one container at a time")}
				}
				c, err := findContainer(w.operands[0])
				if err != nil {
					return 0, err
				}
				boot, err := openBoot(c.Spec.Kernel)
				if err != nil {
					return 0, err
				}
				defer boot.close()
				return p.foreground(c, boot)
			}
			return statusOK, p.each(w.operands, func(name string) error {
				c, err := findContainer(name)
				if err != nil || c.Alive {
					return err
				}
				return p.launch(c)
			})
		},
	}
}
