// Command sh is the shell of the guest's initramfs: POSIX shell syntax with Bash's common extensions, line editing and
// history.
//
//	sh [-c COMMAND | FILE [ARGUMENT...]]
//
// It is made for a serial line, which may have a person or a pipe at its far end, and no way to tell:
//
//   - It sends the line no query (cursor position, colours) and waits for no answer.
//   - It changes the line's mode without discarding input, and reads no byte beyond the command at hand: what was sent
//     ahead is there for the next prompt, or for the program that the command runs.
//   - When the shell that init started ends, the machine is turned off: an init whose children are gone can only panic.
//
// There is no job control: a command in the background shares the terminal's process group.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func main() {
	command := flag.String("c", "", "run `COMMAND` and exit")
	flag.Parse()
	if os.Getppid() == 1 {
		takeTerminal()
	}
	status, err := run(*command, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "sh: %v\n", err)
		status = 1
	}
	if os.Getppid() == 1 && *command == "" && flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "sh: the last shell has ended: powering off")
		// What waits in the terminal would be lost. The signals that interrupt are Go's own.
		for unix.IoctlSetInt(unix.Stderr, unix.TCSBRK, 1) == unix.EINTR { // tcdrain(3)
		}
		unix.Sync()
		err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		fmt.Fprintf(os.Stderr, "sh: power off: %v\n", err) // it returns only with an error
	}
	os.Exit(status)
}

// takeTerminal makes the terminal that init gave as the input the output as well. Init's output is a pipe, which it copies
// to every console: programs would see no terminal, and the machine could go off with their last words still in there.
func takeTerminal() {
	if !term.IsTerminal(unix.Stdin) || term.IsTerminal(unix.Stdout) {
		return
	}
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		_ = unix.Dup3(unix.Stdin, fd, 0) // cannot fail: both are open
	}
}

// run runs the command, the file or the standard input, whichever is given, and returns the last command's status.
func run(command string, args []string) (int, error) {
	runner, err := interp.New(interp.Interactive(true), interp.StdIO(os.Stdin, os.Stdout, os.Stderr))
	if err != nil {
		return 0, err
	}
	switch {
	case command != "":
		return runScript(runner, strings.NewReader(command), "-c")
	case len(args) > 0:
		f, err := os.Open(args[0])
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if err := interp.Params(append([]string{"--"}, args[1:]...)...)(runner); err != nil {
			return 0, err
		}
		return runScript(runner, f, args[0])
	case term.IsTerminal(int(os.Stdin.Fd())):
		return converse(runner)
	}
	// Statement by statement, so that a command may read the lines that follow it, and each error is told in its turn.
	return runLines(runner, syntax.NewParser(), byteReader{os.Stdin})
}

func runScript(runner *interp.Runner, r io.Reader, name string) (int, error) {
	file, err := syntax.NewParser().Parse(r, name)
	if err != nil {
		return 0, err
	}
	return exitStatus(runner.Run(context.Background(), file))
}

// converse reads commands from the terminal until the end of input or exit.
func converse(runner *interp.Runner) (int, error) {
	// An interrupt that is caught, rather than ignored, is back to its default in the programs that the shell runs.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, unix.SIGQUIT)
	defer signal.Stop(interrupts)

	parser := syntax.NewParser()
	lines := newLineReader(parser.Incomplete)
	for {
		status, err := runLines(runner, parser, lines)
		if runner.Exited() || err == nil {
			return status, nil
		}
		if !errors.Is(err, errInterrupted) {
			if errors.Is(err, unix.EIO) { // the terminal is gone
				return status, err
			}
			fmt.Fprintf(os.Stderr, "sh: %v\n", err)
		}
	}
}

// runLines runs each statement as soon as its last line is read, until the end of r, an exit, or an error of syntax or
// of r.
func runLines(runner *interp.Runner, parser *syntax.Parser, r io.Reader) (int, error) {
	var status int
	for stmts, err := range parser.InteractiveSeq(r) {
		if err != nil {
			return status, err
		}
		if parser.Incomplete() {
			continue
		}
		for _, stmt := range stmts {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // ends a loop of the shell's own
			err := runner.Run(ctx, stmt)
			interrupted := ctx.Err() != nil
			stop()
			if interrupted {
				status = 128 + int(unix.SIGINT)
				break
			}
			if status, err = exitStatus(err); err != nil || runner.Exited() {
				return status, err
			}
		}
	}
	return status, nil
}

// exitStatus takes a command's status out of the runner's error.
func exitStatus(err error) (int, error) {
	var status interp.ExitStatus
	if errors.As(err, &status) {
		return int(status), nil
	}
	return 0, err
}

// byteReader reads a byte at a time, so as to take no more than is used.
type byteReader struct{ r io.Reader }

func (b byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:min(1, len(p))]) }
