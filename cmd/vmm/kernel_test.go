package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/tooltest"
	"vmm/machine"
)

// systemDisk makes a raw image of one file system with a system on it, and qcow2 ones of it.
func systemDisk(t *testing.T, commandLine string) {
	t.Helper()
	tree := t.TempDir()
	for name, text := range map[string]string{
		"vmlinuz": "kernel 1", "initrd": "initrd 1",
		"grub/grub.cfg": "menuentry 'The System' { linux /boot/vmlinuz " + commandLine + "; initrd /boot/initrd; }",
	} {
		path := filepath.Join(tree, "boot", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	tooltest.Run(t, "e2fsprogs", "mke2fs", "-q", "-t", "ext4", "-d", tree, "system", "8M")
	qemuImg(t, "convert", "-O", "qcow2", "system", "system.qcow2")
	qemuImg(t, "create", "-f", "qcow2", "-b", "system.qcow2", "-F", "qcow2", "over.qcow2")
}

func contents(t *testing.T, i machine.Image) string {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
	require.NoError(t, err)
	return string(p)
}

// TestBootFromDisk looks at what the machine is given to start.
func TestBootFromDisk(t *testing.T) {
	t.Chdir(t.TempDir())
	systemDisk(t, "root=/dev/vda ro")
	for _, tt := range []struct {
		args   string
		want   string // the command line
		reboot bool
	}{
		{"-disk system", "root=/dev/vda ro console=ttyS0", true},
		{"-disk system.qcow2", "root=/dev/vda ro console=ttyS0", true},
		{"-disk over.qcow2,snapshot -no-reboot", "root=/dev/vda ro console=ttyS0", false},
		{"-disk system,snapshot=on -append quiet", "root=/dev/vda ro console=ttyS0 quiet", true},
		{"-disk system,readonly -console stdio", "root=/dev/vda ro console=hvc0", true},
		{"-disk system -cmdline root=x -append y", "root=x y", true},
	} {
		p := newTestProcess(t)
		p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
			require.Equal(t, tt.want, vm.cfg.Cmdline)
			require.Equal(t, tt.reboot, vm.cfg.RestartOnReset)
			require.Equal(t, "kernel 1", contents(t, vm.cfg.Kernel))
			require.Equal(t, "initrd 1", contents(t, vm.cfg.Initrd))
			again, err := vm.cfg.Reload()
			require.NoError(t, err)
			require.Equal(t, tt.want, again.Cmdline)
			require.Equal(t, "kernel 1", contents(t, again.Kernel))
			return machine.Exit{Reason: machine.PowerOff}, nil
		}
		require.Equal(t, statusOK, p.run(strings.Fields(tt.args)), "%s: %s", tt.args, &p.stderr)
		require.Empty(t, p.stderr.String())
	}
}

// TestDiskNamesConsole: a command line that has the console already, with a speed, stays as it is.
func TestDiskNamesConsole(t *testing.T) {
	t.Chdir(t.TempDir())
	systemDisk(t, "root=LABEL=r console=tty0 console=ttyS0,115200")
	p := newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-disk", "system.qcow2"}), p.stderr.String())
	require.Equal(t, "root=LABEL=r console=tty0 console=ttyS0,115200", p.vm.cfg.Cmdline)
}

// TestKernelOnDisk: with -kernel the disk is a disk, and nothing of it is booted.
func TestKernelOnDisk(t *testing.T) {
	inFiles(t)
	systemDisk(t, "x")
	p := newTestProcess(t)
	p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
		require.Equal(t, "kernel", contents(t, vm.cfg.Kernel))
		require.Nil(t, vm.cfg.Initrd)
		require.Nil(t, vm.cfg.Reload)
		require.False(t, vm.cfg.RestartOnReset)
		require.Equal(t, machine.DefaultCmdline, vm.cfg.Cmdline)
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-disk", "system"}))
}

// TestSnapshotLeavesImage writes to a disk with snapshot, and looks at the image.
func TestSnapshotLeavesImage(t *testing.T) {
	t.Chdir(t.TempDir())
	systemDisk(t, "x")
	for _, name := range []string{"system", "system.qcow2"} {
		before, err := os.ReadFile(name)
		require.NoError(t, err)
		i, err := (&disk{path: name, snapshot: true, queues: 1}).openImage()
		require.NoError(t, err)
		_, err = i.Disk.WriteAt([]byte("something else"), 4096)
		require.NoError(t, err)
		p := make([]byte, 14)
		_, err = i.Disk.ReadAt(p, 4096)
		require.NoError(t, err)
		require.Equal(t, "something else", string(p))
		require.NoError(t, i.Close())
		after, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
}

// TestNothingOnDisk: the error says what was looked for, and what to do.
func TestNothingOnDisk(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("blank", make([]byte, 1<<20), 0o600))
	p := newTestProcess(t)
	require.Equal(t, statusFailed, p.run([]string{"-disk", "blank", "-serial", "file:log"}))
	require.Equal(t, "vmm: -disk blank: no kernel found: no partition table, and no file system that is known (-kernel names one)\n", p.stderr.String())
	require.NoFileExists(t, "log")
	require.Nil(t, p.vm.cfg.Kernel)
}
