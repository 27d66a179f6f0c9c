package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// shell is a monitor whose guest (package lab's test guest) has its shell on the standard streams.
type shell struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.Reader
	stderr strings.Builder
	cancel context.CancelFunc
	read   []byte // and not looked at yet
	asked  int    // commands so far
}

// startShell starts the monitor and waits for the guest's prompt.
func startShell(ctx context.Context, args []string) (*shell, error) {
	return startGuest(ctx, args, "/ # ", 2*bootLimit)
}

// systemLimit is longer than any boot of a whole system takes in the slowest of labs.
const systemLimit = 20 * time.Minute

// timeUntil returns the seconds from just before the command's fork and exec until the guest has printed text.
func timeUntil(ctx context.Context, args []string, text string) (float64, error) {
	start := time.Now()
	s, err := startGuest(ctx, args, text, systemLimit)
	if err != nil {
		return 0, err
	}
	seconds := time.Since(start).Seconds()
	return seconds, s.end(nil)
}

// startGuest starts the monitor and waits until the guest has printed text. After the limit the monitor is killed.
func startGuest(ctx context.Context, args []string, text string, limit time.Duration) (*shell, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	s := &shell{cmd: exec.CommandContext(ctx, args[0], args[1:]...), cancel: cancel}
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	s.cmd.WaitDelay = time.Second
	var err1, err2 error
	s.stdin, err1 = s.cmd.StdinPipe()
	s.stdout, err2 = s.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, s.cmd.Start()); err != nil {
		cancel()
		return nil, err
	}
	if _, err := s.expect(text); err != nil {
		return nil, s.end(err)
	}
	return s, nil
}

// expect reads until text has come, and returns what came before it.
func (s *shell) expect(text string) (string, error) {
	for {
		if before, after, ok := strings.Cut(string(s.read), text); ok {
			s.read = []byte(after)
			return before, nil
		}
		p := make([]byte, 4096)
		n, err := s.stdout.Read(p)
		if err != nil {
			return "", fmt.Errorf("no %q of the guest's: %w; the last that it said: %q", text, err, s.read)
		}
		s.read = append(s.read, p[:n]...)
	}
}

// run has the guest run a command, and returns what it prints. A command that fails is an error.
func (s *shell) run(command string) (string, error) {
	s.asked++
	// With the quotes, an echo of the command would not be taken for its output.
	_, err := fmt.Fprintf(s.stdin, "echo be''gin-%d; %s; echo en''d-%d $?\n", s.asked, command, s.asked)
	if err != nil {
		return "", err
	}
	if _, err := s.expect(fmt.Sprintf("begin-%d\r\n", s.asked)); err != nil {
		return "", err
	}
	output, err := s.expect(fmt.Sprintf("end-%d ", s.asked))
	if err != nil {
		return "", err
	}
	status, err := s.expect("\r\n")
	if err == nil && status != "0" {
		err = fmt.Errorf("%s: exit status %s: %s", command, status, output)
	}
	return strings.ReplaceAll(output, "\r\n", "\n"), err
}

// end ends the monitor after err or success. To err it adds what the monitor had to say.
func (s *shell) end(err error) error {
	s.cancel()
	_ = s.cmd.Wait() // with an error, of course
	if err != nil {
		err = fmt.Errorf("%w: %s: %s", err, s.cmd.Path, strings.TrimSpace(s.stderr.String()))
	}
	return err
}
