// Package leak finds what tests leave behind: file descriptors, goroutines, and mappings of kernel objects.
//
//	func TestMain(m *testing.M) { leak.Main(m) }
package leak

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Main runs the tests and exits. A run whose tests pass and leave something behind fails, with a list of it.
func Main(m *testing.M) {
	before := snapshot()
	code := m.Run()
	if code == 0 && !fuzzing() {
		if left := wait(before, 5*time.Second); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "leaked by the tests:\n%s\n", strings.Join(left, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// fuzzing says whether the run is one of `go test -fuzz`, which keeps pipes to its workers.
func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

// A resources is what a process holds: a description of each thing by a key that names it for its whole life.
type resources map[string]string

// snapshot returns what the process holds now.
func snapshot() resources {
	// The runtime's poller opens descriptors of its own at the first pipe or socket. They are no test's leak.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	all := resources{}
	descriptors(all)
	mappings(all)
	goroutines(all)
	return all
}

// wait returns a sorted description of what is held now and was not before. What was told to end may need a moment for
// it, so it looks again until nothing is left or the patience is.
func wait(before resources, patience time.Duration) []string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		now := snapshot()
		maps.DeleteFunc(now, func(key, _ string) bool { _, ok := before[key]; return ok })
		if len(now) == 0 || time.Now().After(end) {
			return slices.Sorted(maps.Values(now))
		}
	}
}

func descriptors(all resources) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err) // without it the check would pass whatever the tests do
	}
	for _, e := range entries {
		// The directory's own descriptor is in the list and closed by now.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			d := "fd " + e.Name() + " " + target
			all[d] = d
		}
	}
}

// mappings adds those of devices and kernel objects, like a vCPU's shared page. Anonymous memory has no identity.
func mappings(all resources) {
	table, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(table)) {
		for _, kind := range []string{"anon_inode:", "/dev/kvm", "/memfd:"} {
			if strings.Contains(line, kind) {
				d := "mapping " + strings.TrimSpace(line)
				all[d] = d
			}
		}
	}
}

func goroutines(all resources) {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	for stack := range strings.SplitSeq(string(buf[:n]), "\n\n") {
		// The first line is "goroutine 7 [state]:", and the state changes.
		key, _, _ := strings.Cut(stack, " [")
		// os/signal starts one goroutine for the rest of the process.
		if !strings.Contains(stack, "os/signal.loop") {
			all[key] = strings.TrimSpace(stack)
		}
	}
}
