// Package kvmtest is for tests that need KVM.
package kvmtest

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// Path is the device that [Require] looks for.
const Path = "/dev/kvm"

// RequireEnv is the environment variable that, set to 1, makes the lack of KVM a failure.
const RequireEnv = "REQUIRE_KVM"

// Require skips the test where /dev/kvm does not open. With REQUIRE_KVM=1, as on a machine that is known to have it,
// the test fails instead: a suite that skipped everything must not look like one that passed.
func Require(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(Path, os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%v, and %s=1; %s", err, RequireEnv, remedy(err))
	}
	t.Skipf("%v; %s", err, remedy(err))
}

// remedy says what a developer can do about the error of opening the device.
func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "load the module with: modprobe kvm_intel, or: modprobe kvm_amd (virtualization must be on in the firmware); " +
			"`vmm probe` says more"
	case errors.Is(err, fs.ErrPermission):
		return "join the group kvm with: sudo usermod -aG kvm $USER, and log in again"
	}
	return "`vmm probe` says more"
}
