package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/machine"
)

// TestSerialTargets: a guest asks a question on its serial port and someone at the other end answers.
func TestSerialTargets(t *testing.T) {
	inFiles(t)
	answer := func(peer io.ReadWriteCloser) error {
		if _, err := io.WriteString(peer, "!"); err != nil {
			return err
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(peer, buf); err != nil || string(buf) != "who?" {
			return fmt.Errorf("the peer got %q: %w", buf, err)
		}
		_, err := io.WriteString(peer, "me!")
		return err
	}
	for _, tt := range []struct {
		target string
		dial   func(stderr string) (io.ReadWriteCloser, error)
	}{
		{"unix:sock", func(string) (io.ReadWriteCloser, error) { return net.Dial("unix", "sock") }},
		{"pty", func(stderr string) (io.ReadWriteCloser, error) {
			said := regexp.MustCompile(`^vmm: serial port is (/dev/pts/\d+)\n$`).FindStringSubmatch(stderr)
			if said == nil {
				return nil, fmt.Errorf("standard error is %q", stderr)
			}
			return os.OpenFile(said[1], os.O_RDWR|unix.O_NOCTTY, 0)
		}},
	} {
		t.Run(tt.target, func(t *testing.T) {
			p := newTestProcess(t)
			p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
				peer, err := tt.dial(p.stderr.String())
				if err != nil {
					return machine.Exit{}, err
				}
				answered := make(chan error, 1)
				go func() { answered <- answer(peer) }()
				buf := make([]byte, 4)
				_, readErr := io.ReadFull(vm.cfg.Serial, buf[:1])
				_, writeErr := io.WriteString(vm.cfg.Serial, "who?")
				_, restErr := io.ReadFull(vm.cfg.Serial, buf[1:])
				if string(buf) != "!me!" {
					err = fmt.Errorf("the guest got %q", buf)
				}
				return machine.Exit{Reason: machine.PowerOff}, errors.Join(readErr, writeErr, restErr, err, <-answered, peer.Close())
			}
			require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-serial", tt.target}), p.stderr.String())
			require.NoFileExists(t, "sock")
		})
	}
}

func TestSerialFile(t *testing.T) {
	inFiles(t)
	for range 2 {
		p := newTestProcess(t)
		p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
			_, err := io.WriteString(vm.cfg.Serial, "Linux version\r\n")
			return machine.Exit{Reason: machine.PowerOff}, err
		}
		require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-serial", "file:log"}), p.stderr.String())
	}
	log, err := os.ReadFile("log")
	require.NoError(t, err)
	require.Equal(t, "Linux version\r\nLinux version\r\n", string(log))
}

// TestPipedInput: without a terminal there are no escape keys, and the end of the input does not end the guest.
func TestPipedInput(t *testing.T) {
	vmm := exec.Command("/proc/self/exe")
	vmm.Env = append(os.Environ(), childVariable+"=1", "GORACE=atexit_sleep_ms=0")
	vmm.Stdin = strings.NewReader("\x01x\x03")
	stdout, err := vmm.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, vmm.Start())
	const want = "ready\nkey 0x1, 0 breaks\nkey 0x78, 0 breaks\nkey 0x3, 0 breaks\n"
	got := make([]byte, len(want))
	_, err = io.ReadFull(stdout, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
	require.NoError(t, vmm.Process.Signal(syscall.SIGTERM))
	require.NoError(t, vmm.Wait())
}

// TestNohup: what the parent had ignored stays ignored.
func TestNohup(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	vmm := exec.Command("/bin/sh", "-c", `trap "" HUP; exec "$0"`, self)
	vmm.Env = append(os.Environ(), childVariable+"=1", "GORACE=atexit_sleep_ms=0")
	stdout, err := vmm.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, vmm.Start())
	_, err = io.ReadFull(stdout, make([]byte, len("ready\n")))
	require.NoError(t, err)

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vmm.Process.Pid))
	require.NoError(t, err)
	mask := regexp.MustCompile(`SigIgn:\t([0-9a-f]+)`).FindSubmatch(status)
	require.NotNil(t, mask)
	ignored, err := strconv.ParseUint(string(mask[1]), 16, 64)
	require.NoError(t, err)
	require.NotZero(t, ignored&(1<<(syscall.SIGHUP-1)))
	require.Zero(t, ignored&(1<<(syscall.SIGTERM-1)))

	require.NoError(t, vmm.Process.Signal(syscall.SIGTERM))
	require.NoError(t, vmm.Wait())
}
