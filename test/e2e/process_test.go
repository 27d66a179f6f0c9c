package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// timeLimit is for one step of the conversation with a process. A boot takes a second on real hardware, and some ten in
// the lab.
const timeLimit = 5 * time.Minute

// process is a program that runs on a host, and the conversation with it: a vmm with its guest's console, as a rule.
type process struct {
	t    *testing.T
	host *host

	limit *time.Timer // ends the process; set anew by each step
	quiet bool        // its guest's shell doesn't echo

	stdin       *io.PipeWriter
	out, errors *transcript
	pid         string

	ended  chan struct{} // closed after status and err are set
	status int
	err    error

	read    int // how much of out the conversation has got through
	markers int // how many it has used to tell the answers from the rest
}

// start runs the program until the test's end at the latest. A test that fails shows the end of what it has printed.
func (h *host) start(t *testing.T, args ...string) *process {
	t.Helper()
	return h.startOn(t, nil, nil, args...)
}

// startOn is start on a terminal, if there is a size for one. Only the lab has terminals.
func (h *host) startOn(t *testing.T, tty *lab.Size, resize <-chan lab.Size, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	tooLong := fmt.Errorf("nothing for %v", timeLimit)
	stdin, typist := io.Pipe()
	p := &process{
		t: t, host: h, stdin: typist, limit: time.AfterFunc(timeLimit, func() { cancel(tooLong) }), ended: make(chan struct{}),
		out: newTranscript(), errors: newTranscript(),
	}
	cmd := &lab.Cmd{
		Args: append([]string{"/bin/sh", "-c", `echo $$ >&2; exec "$0" "$@"`}, args...), Dir: "/tmp",
		Stdin: stdin, Stdout: p.out, Stderr: p.errors, TTY: tty, Resize: resize,
	}
	errors := p.errors
	if tty != nil {
		errors = p.out
		cmd.Stdout = &oneReturn{w: p.out}
	}
	go func() {
		defer close(p.ended)
		p.status, p.err = h.Run(ctx, cmd)
		if p.err != nil && ctx.Err() != nil {
			p.err = context.Cause(ctx)
		}
	}()
	t.Cleanup(func() {
		p.limit.Stop()
		end := "was running"
		select {
		case <-p.ended:
			end = fmt.Sprintf("had ended: status %d, %v", p.status, p.err)
		default:
		}
		cancel(nil)
		_ = typist.Close()
		<-p.ended
		if t.Failed() {
			t.Logf("%s\n%s, printed last:\n%s\nand on standard error:\n%s", strings.Join(args, " "), end, p.out.tail(), p.errors.tail())
		}
	})
	end, ok := p.await(errors, 0, "\n")
	require.True(t, ok, "no process: %v", p.err)
	p.pid = strings.TrimSpace(errors.from(0)[:end])
	return p
}

// boot starts vmm with the kernel, the standard initramfs and these arguments, and waits for the guest's shell.
func (h *host) boot(t *testing.T, kernel string, args ...string) *process {
	t.Helper()
	p := h.start(t, append([]string{h.vmm(), "-kernel", h.kernel(kernel), "-initrd", h.initramfs()}, args...)...)
	p.login()
	return p
}

// oneReturn takes away the carriage returns that a terminal puts before those of the guest's own.
type oneReturn struct {
	w    io.Writer
	last byte
}

func (o *oneReturn) Write(p []byte) (int, error) {
	kept := make([]byte, 0, len(p))
	for _, b := range p {
		if b != '\r' || o.last != '\r' {
			kept = append(kept, b)
		}
		o.last = b
	}
	_, err := o.w.Write(kept)
	return len(p), err
}

// during makes t the test that the conversation fails, until t's end.
func (p *process) during(t *testing.T) {
	outer := p.t
	p.t = t
	t.Cleanup(func() { p.t = outer })
}

const prompt = "/ # "

// login waits for the shell's prompt, and keeps the kernel from printing between its answers.
func (p *process) login() {
	p.t.Helper()
	p.expect(prompt)
	p.sh("echo 1 >/proc/sys/kernel/printk")
}

// alive gives the process its time anew, where the conversation goes on elsewhere.
func (p *process) alive() { p.limit.Reset(timeLimit) }

// await waits until text is in what the transcript has from offset on, and returns where it ends there. It is false if
// the process ends or its time is up.
func (p *process) await(tr *transcript, offset int, text string) (int, bool) {
	p.limit.Reset(timeLimit)
	for {
		changed := tr.next()
		if i := strings.Index(tr.from(offset), text); i >= 0 {
			return i + len(text), true
		}
		select {
		case <-changed:
		case <-p.ended:
			i := strings.Index(tr.from(offset), text) // what came last
			return i + len(text), i >= 0
		}
	}
}

// expect waits until the process has printed text, and returns what came before it.
func (p *process) expect(text string) string {
	p.t.Helper()
	end, ok := p.await(p.out, p.read, text)
	if !ok {
		p.t.Fatalf("no %q before the end of the process: status %d, %v", text, p.status, p.err)
	}
	before := p.out.from(p.read)[:end-len(text)]
	p.read += end
	return before
}

// send types text.
func (p *process) send(text string) {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, text)
	require.NoError(p.t, err)
}

// try has the guest's shell run the command, and returns what it prints and its status.
func (p *process) try(command string) (output string, status int) {
	p.t.Helper()
	p.markers++
	// The echo of what is typed has the quotes, and so isn't taken for the output.
	p.send(fmt.Sprintf("echo begin''-%d; %s; echo end''-%d $?\n", p.markers, command, p.markers))
	p.expect(fmt.Sprintf("begin-%d\r\n", p.markers))
	output = p.expect(fmt.Sprintf("end-%d ", p.markers))
	status, err := strconv.Atoi(strings.TrimSpace(p.expect("\n")))
	require.NoError(p.t, err)
	p.expect(prompt)
	return strings.ReplaceAll(output, "\r\n", "\n"), status
}

// sh is try for commands that succeed.
func (p *process) sh(command string) string {
	p.t.Helper()
	output, status := p.try(command)
	require.Zero(p.t, status, "%s\n%s", command, output)
	return output
}

// script has the guest's shell run a script, and returns what it prints. Unlike commands, which the shell's editor echoes
// key by key, it is sent without an echo: on the lab's serial lines that is ten times as fast.
func (p *process) script(text string) string {
	p.t.Helper()
	if p.quiet {
		output, _ := p.try("(" + text + "\n)")
		return output
	}
	const endOfTransmission = "\x04"
	p.send("stty ~echo >/dev/null; echo send''-it; sh -c \"$(cat)\"; stty echo >/dev/null; echo script''-done\n")
	p.expect("send-it\r\n")
	p.send(text + "\n" + endOfTransmission)
	output := p.expect("script-done\r\n")
	p.expect(prompt)
	return strings.ReplaceAll(output, "\r\n", "\n")
}

// run has the shell of a test guest run a script, and returns what it prints. The first command that fails ends it, and
// the test. Other than script, it is for a shell that doesn't echo.
func (p *process) run(text string) string {
	p.t.Helper()
	return p.sh("(set -e\n" + text + "\n)")
}

// wait waits for the process's end and returns its exit status.
func (p *process) wait() int {
	p.t.Helper()
	p.limit.Reset(timeLimit)
	<-p.ended
	require.NoError(p.t, p.err)
	return p.status
}

// end has the guest run its last command, and returns vmm's exit status.
func (p *process) end(command string) int {
	p.t.Helper()
	p.send(command + "\n")
	return p.wait()
}

// signal sends the process a signal, by its name.
func (p *process) signal(name string) {
	p.t.Helper()
	p.host.output(p.t, "kill -"+name+" "+p.pid)
}

// transcript keeps what a process prints.
type transcript struct {
	mu      sync.Mutex // guards the fields below
	text    []byte
	changed chan struct{} // closed, and replaced, at each change
}

func newTranscript() *transcript { return &transcript{changed: make(chan struct{})} }

func (tr *transcript) Write(b []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.text = append(tr.text, b...)
	close(tr.changed)
	tr.changed = make(chan struct{})
	return len(b), nil
}

// next returns what is closed at the next change.
func (tr *transcript) next() <-chan struct{} {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.changed
}

func (tr *transcript) from(offset int) string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return string(tr.text[offset:])
}

func (tr *transcript) tail() string {
	const most = 6 << 10
	text := []byte(tr.from(0))
	return string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}
