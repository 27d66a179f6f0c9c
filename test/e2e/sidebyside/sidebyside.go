// Command sidebyside runs two guests at once in its one process, as a program that uses package machine may.
//
//	sidebyside KERNEL INITRD
//
// Each guest is told to power off only after both have answered.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"vmm/machine"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "sidebyside: %v\n", err)
		os.Exit(1)
	}
}

func run(kernelPath, initrdPath string) error {
	kernel, err := open(kernelPath)
	if err != nil {
		return err
	}
	initrd, err := open(initrdPath)
	if err != nil {
		return err
	}
	const guests = 2
	var lines [guests]*line
	var machines [guests]*machine.Machine
	for i := range guests {
		lines[i] = newLine(fmt.Sprintf("guest-%d answers\r\n", i+1))
		machines[i], err = machine.New(machine.Config{
			Kernel: kernel, Initrd: initrd, Memory: uint64(i+1) << 28, CPUs: i + 1,
			Cmdline: fmt.Sprintf("%s quiet guest=%d", machine.DefaultCmdline, i+1), Serial: lines[i],
		})
		if err != nil {
			return err
		}
		defer machines[i].Close()
	}
	var exits [guests]machine.Exit
	var failures [guests]error
	var running sync.WaitGroup
	for i := range guests {
		running.Go(func() {
			exits[i], failures[i] = machines[i].Run(context.Background())
			lines[i].end()
		})
	}
	for i, l := range lines {
		// The quotes keep the echo of the command from being the answer.
		l.send(fmt.Sprintf("cat /proc/cmdline; grep MemTotal /proc/meminfo; grep processor /proc/cpuinfo; echo guest''-%d answers\n", i+1))
	}
	for _, l := range lines {
		<-l.answered
	}
	for _, l := range lines {
		l.send("poweroff\n")
	}
	running.Wait()
	for i, l := range lines {
		fmt.Printf("guest %d: %v by %s\n%s\n", i+1, exits[i].Reason, exits[i].Source, strings.ReplaceAll(l.printed(), "\r\n", "\n"))
	}
	return errors.Join(failures[:]...)
}

func open(path string) (machine.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(f, 0, info.Size()), nil
}

// line is a guest's serial line. It keeps what the guest prints.
type line struct {
	io.Reader // what the guest receives
	typist    *io.PipeWriter

	wait     string
	answered chan struct{} // closed when the guest has printed wait, or has ended

	mu   sync.Mutex // guards text and the closing of answered
	text bytes.Buffer
	done bool
}

func newLine(wait string) *line {
	r, w := io.Pipe()
	return &line{Reader: r, typist: w, wait: wait, answered: make(chan struct{})}
}

func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.text.Write(p)
	if strings.Contains(l.text.String(), l.wait) {
		l.answer()
	}
	return n, err
}

// answer is called with mu held.
func (l *line) answer() {
	if !l.done {
		l.done = true
		close(l.answered)
	}
}

// end says that no more comes from the guest.
func (l *line) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer()
}

func (l *line) Close() error { return l.typist.Close() }

// send types text, which the guest reads when it likes.
func (l *line) send(text string) {
	go func() { _, _ = io.WriteString(l.typist, text) }() // until the line is closed
}

func (l *line) printed() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
