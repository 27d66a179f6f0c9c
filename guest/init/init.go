// Command init is the first process of a container's machine. It loads the kernel's modules, makes the system that the image
// expects out of the first disk, and runs the processes that vmm asks for over vsock (package vmm/container/wire).
//
// It lies as /init in an initramfs, with the modules as /modules/NN-NAME.ko in the order of their loading.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: is for the start of a machine")
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Printf("init: %v\n", err) // to the console, which vmm keeps
	}
	powerOff()
}

func run() error {
	if err := firstMounts(); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	control, err := connect()
	if err != nil {
		return err
	}
	defer control.Close()
	c := wire.NewConn(control)
	if err := c.Send(wire.TypeHello, wire.Hello{Version: wire.Version}); err != nil {
		return err
	}
	var setup wire.Setup
	if err := c.Expect(wire.TypeSetup, &setup); err != nil {
		return err
	}
	listener, err := prepare(&setup)
	if err != nil {
		return errors.Join(err, c.Send(wire.TypeFailed, &wire.Failed{Message: err.Error()}))
	}
	if err := c.Send(wire.TypeReady, nil); err != nil {
		return err
	}
	s := newSupervisor()
	go func() { // the end of the host's side is the end of all
		_, _, _ = c.Receive()
		s.end()
	}()
	go s.accept(listener)
	<-s.ended
	return nil
}

// prepare makes the system that processes run in.
func prepare(s *wire.Setup) (*listener, error) {
	l, err := listen()
	if err != nil {
		return nil, err
	}
	if err := mountRoot(s); err != nil {
		return nil, err
	}
	if err := setUpNetwork(s); err != nil {
		return nil, err
	}
	return l, writeNames(s)
}

// loadModules loads the modules in the folder, in the order of their names. What the kernel has already is no error.
func loadModules(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	slices.Sort(paths)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// powerOff ends the machine, and all that runs in it.
func powerOff() {
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	unmount()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Minute) // the first process must not end
}
