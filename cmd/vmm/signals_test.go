package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/machine"
)

// obedient is a guest that powers off when it is asked to.
func obedient(ctx context.Context, vm *fakeVM) (machine.Exit, error) {
	select {
	case <-vm.pressed:
		return machine.Exit{Reason: machine.PowerOff}, nil
	case <-ctx.Done():
		return machine.Exit{Reason: machine.Stopped}, nil
	}
}

// deaf is a guest that does not listen to its power button.
func deaf(ctx context.Context, _ *fakeVM) (machine.Exit, error) {
	<-ctx.Done()
	return machine.Exit{Reason: machine.Stopped}, nil
}

// stubborn is a guest that another signal must follow the power button for.
func stubborn(second syscall.Signal) func(context.Context, *fakeVM) (machine.Exit, error) {
	return func(ctx context.Context, vm *fakeVM) (machine.Exit, error) {
		<-vm.pressed
		if err := syscall.Kill(os.Getpid(), second); err != nil {
			return machine.Exit{}, err
		}
		return deaf(ctx, vm)
	}
}

func TestSignals(t *testing.T) {
	inFiles(t)
	for _, tt := range []struct {
		name   string
		guest  func(context.Context, *fakeVM) (machine.Exit, error)
		grace  string
		first  syscall.Signal
		status int
		stderr string
	}{
		{name: "SIGTERM, obedient", guest: obedient, grace: "1h", first: syscall.SIGTERM},
		{name: "SIGHUP, obedient", guest: obedient, grace: "1h", first: syscall.SIGHUP},
		{name: "SIGINT, obedient", guest: obedient, grace: "1h", first: syscall.SIGINT},
		{
			name: "SIGTERM, deaf", guest: deaf, grace: "1ms", first: syscall.SIGTERM, status: 143,
			stderr: "vmm: the guest did not power off within 1ms of SIGTERM: stopped\n",
		},
		{name: "two signals", guest: stubborn(syscall.SIGHUP), grace: "1h", first: syscall.SIGTERM, status: 143},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestProcess(t)
			p.vm.run = func(ctx context.Context, vm *fakeVM) (machine.Exit, error) {
				if err := syscall.Kill(os.Getpid(), tt.first); err != nil {
					return machine.Exit{}, err
				}
				return tt.guest(ctx, vm)
			}
			require.Equal(t, tt.status, p.run([]string{"-kernel", "bzImage", "-serial", "unix:sock", "-grace", tt.grace}))
			require.Equal(t, tt.stderr, p.stderr.String())
			require.True(t, p.vm.closed)
			require.NoFileExists(t, "sock")
		})
	}
}

// TestSignalBeforeTheGuestRuns: nobody could hear the power button, and nobody need wait for that.
func TestSignalBeforeTheGuestRuns(t *testing.T) {
	inFiles(t)
	p := newTestProcess(t)
	p.vm.run = func(context.Context, *fakeVM) (machine.Exit, error) {
		t.Error("the guest runs")
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	newVM := p.newMachine
	p.newMachine = func(cfg machine.Config) (virtualMachine, error) {
		delivered := make(chan os.Signal, 1)
		signal.Notify(delivered, syscall.SIGTERM)
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
		<-delivered
		signal.Stop(delivered) // returns when all channels have it
		return newVM(cfg)
	}
	require.Equal(t, 143, p.run([]string{"-kernel", "bzImage", "-serial", "unix:sock"}))
	require.True(t, p.vm.closed)
	require.NoFileExists(t, "sock")
}
