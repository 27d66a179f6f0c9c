// Command vmm runs a virtual machine in the foreground, on /dev/kvm; "vmm -help" says how.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"vmm/cmd/vmm/internal/console"
	"vmm/machine"
)

// Exit statuses, besides the one that a guest chooses with the debug-exit port and 128+n for the end by signal n.
const (
	statusOK      = 0 // the guest powered off or reset itself, or the user quit
	statusFailed  = 1 // something failed while it ran, or the host cannot run it
	statusMistake = 2 // the user's: nothing was done
)

// mistake is an error of the user's. It is told in one line, which begins with the flag in question.
type mistake struct{ error }

func mistakef(format string, args ...any) error { return mistake{fmt.Errorf(format, args...)} }

// process is what a command knows of the process that it runs in.
type process struct {
	stdin, stdout *os.File
	stderr        io.Writer
	newMachine    func(machine.Config) (virtualMachine, error)
}

func main() {
	console.GuardMain()
	p := &process{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, newMachine: newMachine}
	os.Exit(p.run(os.Args[1:]))
}

// run runs the command that args name and returns the exit status.
func (p *process) run(args []string) int {
	command := p.boot
	if len(args) > 0 {
		switch args[0] {
		case "probe":
			command, args = p.probe, args[1:]
		case "image":
			command, args = p.image, args[1:]
		case monitorWord:
			command, args = p.monitor, args[1:]
		default:
			if w := findWord(args[0]); w != nil {
				return p.runWord(w, args[1:])
			}
		}
	}
	status, err := command(args)
	if err == nil {
		return status
	}
	fmt.Fprintf(p.stderr, "vmm: %v\n", err)
	if errors.As(err, new(mistake)) {
		return statusMistake
	}
	if crash := (*machine.CrashError)(nil); errors.As(err, &crash) {
		fmt.Fprint(p.stderr, crash.Detail())
	}
	return statusFailed
}

// runWord runs a word about containers or images, whose statuses are Docker's.
func (p *process) runWord(w *word, args []string) int {
	status, err := w.command(p, args)
	if err == nil {
		return status
	}
	fmt.Fprintf(p.stderr, "vmm: %v\n", err)
	return wordStatus(err)
}
