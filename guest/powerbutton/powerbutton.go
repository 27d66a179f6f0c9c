// Command powerbutton waits until the machine's power button is pressed, and turns the machine off: what acpid or
// systemd-logind do in a whole system. It needs the kernel's modules button and evdev.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "powerbutton: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	device, err := find()
	if err != nil {
		return err
	}
	events, err := os.Open(device)
	if err != nil {
		return err
	}
	fmt.Println("powerbutton: waiting on", device)
	if err := waitForKey(events); err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	fmt.Println("powerbutton: pressed")
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// find returns the button's device file.
func find() (string, error) {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return "", err
	}
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(string(name)) == "Power Button" {
			event := filepath.Base(filepath.Dir(filepath.Dir(file)))
			return filepath.Join("/dev/input", event), nil
		}
	}
	return "", errors.New("no input device is called Power Button")
}

// event is struct input_event of linux/input.h, on 64-bit machines.
type event struct {
	Sec, Usec  int64
	Type, Code uint16
	Value      int32
}

// From linux/input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// waitForKey reads events until the one of the power key going down.
func waitForKey(r io.Reader) error {
	for {
		var e event
		if err := binary.Read(r, binary.LittleEndian, &e); err != nil {
			return err
		}
		if e.Type == evKey && e.Code == keyPower && e.Value == 1 {
			return nil
		}
	}
}
