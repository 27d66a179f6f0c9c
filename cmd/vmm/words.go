package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"vmm/container"
	"vmm/container/oci"
	"vmm/container/wire"
	"vmm/kernel"
)

// statusContainer is that of a word about containers that failed itself, as docker run has it: other numbers are the container's.
const statusContainer = 125

// word is a command about containers or images, with flags as Docker has them.
type word struct {
	name, operands, short string
	run                   func(p *process, w *parsedWord) (status int, err error)
	flags                 func(f *pflag.FlagSet) any // sets up the flags, and returns where they go
	least, most           int                        // operands; -1 for any number
	raw                   bool                       // what follows the first operand is somebody else's
}

// parsedWord is a word with its arguments.
type parsedWord struct {
	*word
	options  any
	operands []string
}

// words are all of them, in the order of the help.
func words() []*word {
	return []*word{
		runWord(), startWord(), execWord(), psWord(), logsWord(), stopWord(), killWord(), waitWord(), rmWord(),
		pullWord(), loadWord(), imagesWord(), rmiWord(), kernelWord(),
	}
}

// noValue is how pflag prints a switch's value.
const noValue = "[=true|false]"

// findWord returns the word of that name, or nil.
func findWord(name string) *word {
	for _, w := range words() {
		if w.name == name {
			return w
		}
	}
	return nil
}

// command runs the word.
func (w *word) command(p *process, args []string) (status int, err error) {
	flags := pflag.NewFlagSet(w.name, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.SetInterspersed(!w.raw)
	flags.Usage = func() {}
	help := flags.Bool("help", false, "this help")
	var options any
	if w.flags != nil {
		options = w.flags(flags)
	}
	if err := flags.Parse(args); err != nil {
		return 0, wordMistake{fmt.Errorf("%s: %w (vmm %[1]s --help)", w.name, err)}
	}
	if *help {
		_, err := fmt.Fprintf(p.stdout, "Usage: vmm %s\n\n%s\n\n%s", strings.TrimSpace(w.name+" [OPTIONS] "+w.operands), w.short,
			// Every switch takes a value too, which nobody needs to be told.
			strings.ReplaceAll(flags.FlagUsages(), noValue, strings.Repeat(" ", len(noValue))))
		return statusOK, err
	}
	if n := flags.NArg(); n < w.least || w.most >= 0 && n > w.most {
		return 0, wordMistake{fmt.Errorf("%s takes %s, not %d arguments (vmm %[1]s --help)", w.name, strings.TrimSpace(w.operands+" "), n)}
	}
	return w.run(p, &parsedWord{w, options, flags.Args()})
}

// wordMistake is a mistake of the user's in a word, whose status is Docker's.
type wordMistake struct{ error }

// statusError is an error that comes with the status that the process is to end with.
type statusError struct {
	error
	status int
}

func (e *statusError) Unwrap() error { return e.error }

// wordStatus is the status for an error of a word.
func wordStatus(err error) int {
	var s *statusError
	var failed *wire.Failed
	switch {
	case errors.As(err, &s):
		return s.status
	case errors.As(err, &failed) && failed.Status != 0:
		return failed.Status
	}
	return statusContainer
}

// openImages opens the store of images.
func openImages() (*oci.Store, error) {
	cache, err := kernel.CacheDir()
	if err != nil {
		return nil, err
	}
	return oci.Open(filepath.Join(cache, "images"))
}

// openContainers opens the store of containers.
func openContainers() (*container.Store, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, err
		}
		state = filepath.Join(home, ".local", "state")
	}
	return container.Open(filepath.Join(state, "vmm", "containers"))
}

// each does the same for each operand, and prints the operand where that went well, as Docker does. It goes on after an error.
func (p *process) each(operands []string, do func(operand string) error) error {
	var errs []error
	for _, o := range operands {
		if err := do(o); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintln(p.stdout, o); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}
