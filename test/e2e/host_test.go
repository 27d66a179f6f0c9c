// Package e2e boots unmodified Debian kernels with vmm, and asks them what they see: on this machine, where its KVM can run
// them, and else in the nested lab, which all tests share.
package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/machine/probe"
	"vmm/test/lab"
)

// root is the project's folder.
const root = "../.."

// host is where a test's vmm runs.
type host struct {
	runner
	files map[string]string // the standard files: the path in the lab, and the one here
	lab   *lab.Lab          // nil on this machine

	// disk is the path of the disk that test guests have for their root: Debian, with the tools that devices are proved
	// with. In the lab it is the root of all commands too. Without it there is noDisk.
	disk   string
	noDisk error
}

// runner runs commands; *lab.Lab is one.
type runner interface {
	Run(ctx context.Context, cmd *lab.Cmd) (int, error)
}

// path returns where the host has the standard file that the lab has as name.
func (h *host) path(name string) string {
	if h.lab != nil {
		return name
	}
	return h.files[name]
}

func (h *host) vmm() string               { return h.path("/usr/local/bin/vmm") }
func (h *host) initramfs() string         { return h.path("/boot/u-root.cpio") }
func (h *host) kernel(name string) string { return h.path("/boot/" + name) }
func (h *host) dir(t *testing.T) string   { return strings.TrimSpace(h.output(t, "mktemp -d")) }
func (h *host) emulated() bool            { return h.lab != nil }
func (h *host) shell(script string) *lab.Cmd {
	return &lab.Cmd{Args: []string{"/bin/sh", "-c", script}, Dir: "/tmp"}
}

// carry gives the host the file, or the folder, that is at path here, and returns where it is there.
func (h *host) carry(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	if h.lab == nil {
		return path
	}
	to := h.dir(t) + "/" + filepath.Base(path)
	require.NoError(t, h.lab.Put(t.Context(), path, to))
	return to
}

// output returns what the script prints, which must succeed.
func (h *host) output(t *testing.T, script string) string {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := h.shell(script)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	status, err := h.Run(t.Context(), cmd)
	require.NoError(t, err)
	require.Zero(t, status, "%s\n%s%s", script, &stdout, &stderr)
	return stdout.String()
}

// here runs commands on this machine.
type here struct{}

func (here) Run(ctx context.Context, c *lab.Cmd) (int, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if c.Stdin != nil {
		// Not cmd.Stdin, whose end Wait would wait for.
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		go func() {
			_, _ = io.Copy(stdin, c.Stdin) // a program that reads no more lets the rest go by
			_ = stdin.Close()
		}()
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// shared is the host of all tests that run one after the other; the first that needs it makes it, and TestMain ends it.
var shared struct {
	once   sync.Once
	host   *host
	rootfs string // the disk of labs
	err    error
}

// idle has the hosts that no parallel test uses.
var idle struct {
	once  sync.Once
	hosts chan *host
	labs  []*lab.Lab // that were started besides that of shared
}

// machineHere is this machine, whatever its KVM can do.
func machineHere(t *testing.T) *host {
	t.Helper()
	files, err := lab.Standard(t.Context(), root, lab.Series()...)
	require.NoError(t, err)
	for name, path := range files {
		if files[name], err = filepath.Abs(path); err != nil {
			t.Fatal(err)
		}
	}
	return &host{runner: here{}, files: files}
}

// kvmHost returns the host whose KVM runs stock kernels.
func kvmHost(t *testing.T) *host {
	t.Helper()
	report := probe.Host("/dev/kvm")
	if !report.OK() {
		if _, err := exec.LookPath(lab.DefaultQEMU); err != nil {
			t.Skip("no KVM here that runs stock kernels, and no QEMU for the lab: " +
				"apt-get install --no-install-recommends qemu-system-x86")
		}
	}
	shared.once.Do(func() {
		h := machineHere(t)
		h.disk, h.noDisk = lab.Rootfs(t.Context(), root)
		shared.rootfs = h.disk
		if !report.OK() {
			shared.err = h.startLab()
		}
		shared.host = h
	})
	require.NoError(t, shared.err)
	require.NotNil(t, shared.host, "the host could not be prepared, as an earlier test says")
	return shared.host
}

// startLab replaces this machine by a lab.
func (h *host) startLab() (err error) {
	h.lab, err = lab.Start(context.Background(), lab.Config{Files: h.files, Disk: h.disk, GuestDisk: h.disk})
	h.runner, h.disk = h.lab, lab.GuestDisk
	return err
}

// ownHost returns a host with a KVM for a parallel test, which nobody else uses until that has ended. There are two of them
// where they are labs, which have a processor each; this machine there is once.
//
// Tests whose assertions depend on how long things take are not parallel.
func ownHost(t *testing.T) *host {
	t.Helper()
	first := kvmHost(t)
	idle.once.Do(func() {
		idle.hosts = make(chan *host, 2)
		idle.hosts <- first
		if first.lab == nil || runtime.NumCPU() < 2 {
			return
		}
		h := machineHere(t)
		h.disk, h.noDisk = shared.rootfs, first.noDisk
		if err := h.startLab(); err != nil {
			t.Errorf("second lab: %v", err)
			return
		}
		idle.labs = append(idle.labs, h.lab)
		idle.hosts <- h
	})
	h := <-idle.hosts
	t.Cleanup(func() { idle.hosts <- h })
	return h
}

func TestMain(m *testing.M) {
	status := m.Run()
	if shared.host != nil && shared.host.lab != nil {
		shared.host.lab.Close()
	}
	for _, l := range idle.labs {
		l.Close()
	}
	os.Exit(status)
}
