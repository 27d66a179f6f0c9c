package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/cpio"
	"vmm/kernel"
)

// TestReset has the guest reset itself in each way that a PC knows. By default that is vmm's end.
func TestReset(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, append, command, printed string }{
		{"ACPI", "quiet", "reboot", ""},
		{"triple fault", "quiet reboot=t", "reboot", ""},
		{"keyboard controller", "quiet reboot=k", "reboot", ""},
		{"panic", "quiet", "echo c >/proc/sysrq-trigger", "Kernel panic - not syncing: sysrq triggered crash"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := ownHost(t).boot(t, "vmlinuz-6.1", "-append", c.append)
			require.Zero(t, g.end(c.command))
			require.Contains(t, g.out.from(g.read), c.printed)
		})
	}
}

// TestReboot boots a guest a second time in the same vmm.
func TestReboot(t *testing.T) {
	t.Parallel()
	g := ownHost(t).boot(t, "vmlinuz-6.12", "-append", "quiet", "-reboot", "-mem", "256M", "-cpus", "2")
	first := g.sh("cat /proc/sys/kernel/random/boot_id")
	g.sh("echo lost >/mark")
	g.send("reboot\n")
	g.login()
	require.NotEqual(t, first, g.sh("cat /proc/sys/kernel/random/boot_id"))
	_, status := g.try("cat /mark")
	require.NotZero(t, status, "nothing is left of the first boot")
	require.Equal(t, "2", strings.TrimSpace(g.sh("grep -c processor /proc/cpuinfo")))
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// TestPowerButton sends vmm a SIGTERM, which it passes on as a press of the power button.
func TestPowerButton(t *testing.T) {
	const sigterm = 15
	t.Run("guest powers off", func(t *testing.T) {
		for _, series := range []string{"6.1", "6.12"} {
			t.Run(series, func(t *testing.T) {
				h := kvmHost(t)
				extra := h.carry(t, buttonArchive(t, series))
				initrd := h.dir(t) + "/initrd" // archives may follow each other
				h.output(t, "cat "+h.initramfs()+" "+extra+" >"+initrd)
				g := h.start(t, h.vmm(), "-kernel", h.kernel("vmlinuz-"+series), "-initrd", initrd, "-append", "quiet")
				g.login()
				g.sh("for m in /button/*.ko; do insmod $m; done")
				g.send("/button/powerbutton\n")
				g.expect("powerbutton: waiting on /dev/input/event")
				g.signal("TERM")
				require.Zero(t, g.wait())
				require.Contains(t, g.out.from(g.read), "powerbutton: pressed")
			})
		}
	})
	t.Run("guest does not", func(t *testing.T) {
		g := kvmHost(t).boot(t, "vmlinuz-6.1", "-append", "quiet", "-grace", "2s")
		g.signal("TERM")
		require.Equal(t, 128+sigterm, g.wait())
		require.Contains(t, g.errors.from(0), "vmm: the guest did not power off within 2s of SIGTERM: stopped\n")
	})
	t.Run("second signal", func(t *testing.T) {
		g := kvmHost(t).boot(t, "vmlinuz-6.1", "-append", "quiet", "-grace", "1h")
		g.signal("TERM")
		g.signal("TERM")
		require.Equal(t, 128+sigterm, g.wait())
	})
}

// buttonArchive makes a cpio archive with the program that waits for the power button, and the modules that it needs.
func buttonArchive(t *testing.T, series string) string {
	t.Helper()
	kernel, err := kernel.Cloud(t.Context(), series)
	require.NoError(t, err)
	modules, err := kernel.Load("button", "evdev")
	require.NoError(t, err)
	program, err := os.ReadFile(build(t, "./guest/powerbutton"))
	require.NoError(t, err)
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, m := range modules {
		w.File("button/"+m.Name+".ko", 0o644, m.Data)
	}
	w.File("button/powerbutton", 0o755, program)
	require.NoError(t, w.Close())
	path := filepath.Join(t.TempDir(), "button.cpio")
	require.NoError(t, os.WriteFile(path, archive.Bytes(), 0o644))
	return path
}

// build builds one of the project's programs for the host or its guests.
func build(t *testing.T, pkg string) string {
	t.Helper()
	return gocmd(t, filepath.Base(pkg), "build", "-trimpath", "-ldflags=-s -w", "-o", "OUT", pkg)
}

// gocmd runs the go command in the project, with OUT for a new file of this name, whose path it returns.
func gocmd(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	for i := range args {
		if args[i] == "OUT" {
			args[i] = path
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "go %s\n%s", strings.Join(args, " "), out)
	return path
}
