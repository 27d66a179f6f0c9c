package main

import (
	"context"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/machine"
	"vmm/virtio"
)

// TestDevices: which flags make which devices, in which order, and that what is behind them goes at the end.
func TestDevices(t *testing.T) {
	inFiles(t)
	require.NoError(t, os.WriteFile("a,b", make([]byte, 4096), 0o600))
	require.NoError(t, os.WriteFile("c", make([]byte, 4096), 0o600))
	peer, err := net.Listen("unix", "passt")
	require.NoError(t, err)
	defer peer.Close()
	p := newTestProcess(t)
	p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
		var ids []virtio.DeviceID
		for _, d := range vm.cfg.Virtio {
			ids = append(ids, d.ID())
		}
		require.Equal(t, []virtio.DeviceID{
			virtio.Block, virtio.Block, virtio.Net, virtio.Entropy, virtio.Console, virtio.Balloon, virtio.Vsock,
		}, ids)
		require.FileExists(t, "guest.sock")
		require.NotZero(t, vm.cfg.Virtio[1].Features()&(1<<5), "read-only")
		var size [4]byte
		vm.cfg.Virtio[5].ReadConfig(0, size[:])
		require.Equal(t, [4]byte{0, 1, 0, 0}, size, "the balloon's 256 pages")
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	require.Equal(t, statusOK, p.run([]string{
		"-kernel", "bzImage", "-vsock", "path=guest.sock,cid=7", "-balloon=1M", "-console", "file:log", "-rng",
		"-net", "stream=unix:passt,mac=52:54:00:12:34:56", "-disk", "a,,b,queues=2,discard", "-disk", "c,readonly", "-debug",
	}), "%s", &p.stderr)
	for _, line := range []string{"disk a,b: Reads:0 Writes:0 ", "net stream=unix:passt,", "rng: Requests:0 ", "balloon, in pages: Inflated:0 "} {
		require.Contains(t, p.stderr.String(), "\nvmm: "+line)
	}
	require.NoFileExists(t, "guest.sock")
	require.FileExists(t, "log")
}

// Without flags there are no devices.
func TestNoDevices(t *testing.T) {
	inFiles(t)
	p := newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage"}))
	require.Empty(t, p.vm.cfg.Virtio)
}

// The virtio console on standard input and output takes the place of the serial port.
func TestConsoleOnStdio(t *testing.T) {
	inFiles(t)
	p := newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-console", "stdio"}))
	require.Equal(t, "console=hvc0 panic=-1", p.vm.cfg.Cmdline)
	require.Nil(t, p.vm.cfg.Serial)
	p = newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-console", "stdio", "-serial", "file:log", "-cmdline", "quiet"}))
	require.Equal(t, "quiet", p.vm.cfg.Cmdline)
	require.NotNil(t, p.vm.cfg.Serial)
}
