package kvm

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "kvm")
	_, err := Open(missing)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, err, "open "+missing+": no such file or directory")

	_, err = Open(os.DevNull)
	require.ErrorIs(t, err, unix.ENOTTY)
	require.EqualError(t, err, "open /dev/null: get kvm api version: inappropriate ioctl for device")

	if os.Getuid() == 0 {
		return // the superuser has permission for everything
	}
	locked := filepath.Join(dir, "locked")
	require.NoError(t, os.WriteFile(locked, nil, 0))
	_, err = Open(locked)
	require.ErrorIs(t, err, fs.ErrPermission)
}

func TestSystem(t *testing.T) {
	sys := openSystem(t)
	for _, c := range []Cap{CapUserMemory, CapIRQChip, CapImmediateExit} {
		n, err := sys.Extension(c)
		require.NoError(t, err)
		require.Positive(t, n, "%v", c)
	}
	n, err := sys.Extension(Cap(9999))
	require.NoError(t, err)
	require.Zero(t, n)
	require.GreaterOrEqual(t, sys.VCPUMmapSize(), os.Getpagesize())

	msrs, err := sys.MSRIndexList()
	require.NoError(t, err)
	require.Contains(t, msrs, uint32(0x174), "SYSENTER_CS")
	features, err := sys.MSRFeatureIndexList()
	require.NoError(t, err)
	require.NotContains(t, features, uint32(0x174))
}

func TestVM(t *testing.T) {
	g := setup(t)
	n, err := g.vm.Extension(CapMaxVCPUs)
	require.NoError(t, err)
	require.Positive(t, n)

	err = g.vm.SetUserMemoryRegion(MemoryRegion{Slot: 2, GuestPhysAddr: 0x1_0000_0001, MemorySize: 0x1000})
	require.ErrorIs(t, err, unix.EINVAL)
	require.EqualError(t, err, "set memslot 2 [0x100000001, +0x1000): invalid argument")

	clock, err := g.vm.GetClock()
	require.NoError(t, err)
	later := ClockData{Clock: clock.Clock + 1e12}
	require.NoError(t, g.vm.SetClock(later))
	clock, err = g.vm.GetClock()
	require.NoError(t, err)
	require.GreaterOrEqual(t, clock.Clock, later.Clock)
	require.EqualError(t, g.vm.SetClock(ClockData{Clock: 1, Flags: 1 << 31}),
		"set clock 1, flags 0x80000000: invalid argument")

	require.NoError(t, g.vm.EnableCap(CapSplitIRQChip, 24))
	require.ErrorIs(t, g.vm.CreateIRQChip(), unix.EEXIST, "half of it is in user space now")
	require.EqualError(t, g.vm.EnableCap(CapSplitIRQChip, 1, 2, 3, 4, 5),
		"enable KVM_CAP_SPLIT_IRQCHIP: 5 arguments, at most 4")

	_, err = g.vm.CreateVCPU(1 << 30)
	require.EqualError(t, err, "create vcpu 1073741824: invalid argument")
}

func TestClose(t *testing.T) {
	sys := openSystem(t)
	vm, err := sys.CreateVM()
	require.NoError(t, err)
	c, err := vm.CreateVCPU(0)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, c.Close())
		require.NoError(t, vm.Close())
		require.NoError(t, sys.Close())
	}
	_, err = sys.CreateVM()
	require.ErrorIs(t, err, unix.EBADF)
}
