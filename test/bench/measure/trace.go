package measure

import (
	"bufio"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tracefs is where the kernel's tracing is mounted (Linux Documentation/trace/ftrace.rst).
const tracefs = "/sys/kernel/tracing"

// trace is a ring buffer of the kernel's, beside all others.
type trace struct {
	dir  string
	pipe *os.File
}

// event is a line of the trace.
type event struct {
	thread int
	time   float64 // in seconds
	name   string
	args   string
}

// marker is the name of the events that mark makes.
const marker = "tracing_mark_write"

// startTrace begins to record the events, each with a filter or an empty one.
func startTrace(events map[string]string) (_ *trace, err error) {
	instances := filepath.Join(tracefs, "instances")
	if errors.Is(unix.Access(instances, unix.F_OK), unix.ENOENT) {
		// A small system may leave it to whoever needs it.
		if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount tracefs at %s: %w: run as root", tracefs, err)
		}
	}
	if err := unix.Access(instances, unix.W_OK); err != nil {
		return nil, fmt.Errorf("%s: %w: run as root", tracefs, err)
	}
	t := &trace{}
	if t.dir, err = os.MkdirTemp(filepath.Join(tracefs, "instances"), "vmm-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	settings := [][2]string{
		{"trace_clock", "mono"},
		{"buffer_size_kb", "16384"}, // for each CPU: some hundred thousand events
	}
	for name, filter := range events {
		if filter != "" {
			settings = append(settings, [2]string{"events/" + name + "/filter", filter})
		}
		settings = append(settings, [2]string{"events/" + name + "/enable", "1"})
	}
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join(t.dir, s[0]), []byte(s[1]), 0); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open(filepath.Join(t.dir, "trace_pipe"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t.pipe = os.NewFile(uintptr(fd), "trace_pipe") // blocking, as a reader of this file is woken best
	return t, nil
}

// mark writes an event of our own into the trace.
func (t *trace) mark() error {
	return os.WriteFile(filepath.Join(t.dir, "trace_marker"), []byte("end"), 0)
}

// events returns the events of a running process, up to a marker, as they come.
func (t *trace) events(process int) iter.Seq2[event, error] {
	mine := map[int]bool{} // by thread
	return func(yield func(event, error) bool) {
		lines := bufio.NewScanner(t.pipe)
		for lines.Scan() {
			e, err := parseEvent(lines.Text())
			if err == nil && e.name == marker {
				return
			}
			is, known := mine[e.thread]
			if err == nil && !known {
				is = unix.Access(fmt.Sprintf("/proc/%d/task/%d", process, e.thread), unix.F_OK) == nil
				mine[e.thread] = is
			}
			if (err != nil || is) && !yield(e, err) {
				return
			}
		}
		yield(event{}, errors.Join(lines.Err(), errors.New("end of the trace before its marker")))
	}
}

// parseEvent parses a line like "  vmm-4711  [001] d..2.  1234.567890: kvm_userspace_exit: reason KVM_EXIT_IO (2)". A
// thread's name may hold anything but brackets. System calls look like calls: "sys_ioctl(fd: 3, cmd: 0xae80, arg: 0)".
func parseEvent(line string) (event, error) {
	bad := fmt.Errorf("line of the trace: %q", line) // one that tells of lost events as well
	head, rest, _ := strings.Cut(line, " [")
	_, rest, _ = strings.Cut(rest, "] ")
	stamp, rest, _ := strings.Cut(rest, ": ")
	end := strings.IndexAny(rest, ":(")
	thread, err1 := strconv.Atoi(strings.TrimSpace(head[strings.LastIndexByte(head, '-')+1:]))
	seconds, err2 := strconv.ParseFloat(stamp[strings.LastIndexByte(stamp, ' ')+1:], 64)
	if err1 != nil || err2 != nil || end < 0 {
		return event{}, bad
	}
	return event{thread: thread, time: seconds, name: rest[:end], args: rest[end+1:]}, nil
}

// close ends the recording.
func (t *trace) close() error {
	var err error
	if t.pipe != nil {
		err = t.pipe.Close()
	}
	return errors.Join(err, os.Remove(t.dir)) // the folder of an instance goes with all that is in it
}
