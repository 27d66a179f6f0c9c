// Package tooltest runs the programs whose word tests take for what is right: qemu-img, e2fsck and the like.
package tooltest

import (
	"errors"
	"os"
	"os/exec"
	"testing"
)

// Need returns the path of a program of a Debian package. Without it the test is skipped, or fails in CI, which installs it.
func Need(t testing.TB, debian, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	// Debian's system programs are not on everybody's path.
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("no %s (scripts/setup %s)", name, debian)
	}
	t.Skipf("no %s: install Debian's %s", name, debian)
	return ""
}

// Status runs such a program, and returns what it printed and its exit status.
func Status(t testing.TB, debian, name string, args ...string) (output string, status int) {
	t.Helper()
	out, err := exec.Command(Need(t, debian, name), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	if exit != nil {
		status = exit.ExitCode()
	}
	return string(out), status
}

// Run runs such a program, which has to succeed, and returns what it printed.
func Run(t testing.TB, debian, name string, args ...string) string {
	t.Helper()
	out, status := Status(t, debian, name, args...)
	if status != 0 {
		t.Fatalf("%s %q: status %d: %s", name, args, status, out)
	}
	return out
}
