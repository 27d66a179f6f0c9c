package machine

import (
	"errors"
	"fmt"
	"io"

	"vmm/virtio"
)

// Image is a file that the guest boots from. *io.SectionReader, *bytes.Reader and *strings.Reader are Images. It is
// read while the machine starts (and again at each restart), straight into guest memory, and must stay readable until
// [Machine.Close].
type Image interface {
	io.ReaderAt
	Size() int64
}

// Config describes a virtual machine. The zero value of a field has the meaning that its comment says.
type Config struct {
	// Kernel is a Linux/x86 bzImage or an ELF file (vmlinux). It must be set.
	Kernel Image
	// Initrd is handed to the kernel as its initial RAM disk; nil for none.
	Initrd Image
	// Cmdline is the kernel's command line, as it is; see [DefaultCmdline].
	Cmdline string

	// Memory is the guest's RAM in bytes, a multiple of 4096. Zero is [DefaultMemory].
	Memory uint64
	// CPUs is the number of vCPUs, 1 to [MaxCPUs]. Zero is 1.
	CPUs int

	// Serial is what COM1 is connected to; nil for a port with nothing attached. The machine reads what the guest
	// shall receive and writes what the guest sends; a reader's end (io.EOF) only means that no more input comes. A
	// Write that blocks stalls the guest's port, as hardware flow control would, and never a vCPU. The machine owns
	// Serial from a successful New on: Close closes it, which must end a pending Read or Write (as net.Conn's does).
	Serial io.ReadWriteCloser

	// Virtio are the virtio devices, in the order in which they are on the PCI bus. They are borrowed until
	// [Machine.Close] has returned: whoever made them closes what is behind them. A device can be in one machine at a
	// time; it outlives resets of the guest.
	Virtio []virtio.Device

	// RestartOnReset boots the guest again, in place, when it resets itself. Otherwise Run returns [Reset].
	RestartOnReset bool
	// Reload, when set, is asked at each restart what to boot, instead of the same as before: for a guest that has
	// replaced the kernel on its disk. Its error ends Run.
	Reload func() (Boot, error)
	// DebugExit adds a port (0xF4, write-only) whose write ends the machine with [DebugExit] and the value written.
	// For tests: any program in the guest with port access can use it.
	DebugExit bool
	// Trace counts each access to a port or address that reaches the monitor, for [Machine.Stats]. It costs a little on
	// each exit and some memory.
	Trace bool
}

// Boot is what [Config.Reload] returns, with the meaning that the fields of [Config] have.
type Boot struct {
	Kernel, Initrd Image
	Cmdline        string
}

// Defaults and limits of a [Config].
const (
	DefaultMemory = 1 << 30
	MinMemory     = 2 << 20 // bytes: the first MiB holds what the boot protocol needs, a kernel goes above it
	MaxCPUs       = 64

	// DefaultCmdline gives a Linux guest its console on COM1 and makes a panic end the machine instead of hanging it.
	DefaultCmdline = "console=ttyS0 panic=-1"
)

const pageSize = 4096

// ConfigError reports a value of a [Config] that [New] refuses.
type ConfigError struct {
	Field string // the field's name
	Err   error
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// complete fills in the defaults and checks what can be checked without KVM and without reading a file.
func (c *Config) complete() error {
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	switch {
	case c.Kernel == nil:
		return &ConfigError{"Kernel", errors.New("not set")}
	case c.Memory%pageSize != 0:
		return &ConfigError{"Memory", fmt.Errorf("%d bytes is not a multiple of %d", c.Memory, pageSize)}
	case c.Memory < MinMemory:
		return &ConfigError{"Memory", fmt.Errorf("%d KiB is less than the least possible, %d KiB", c.Memory>>10, MinMemory>>10)}
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return &ConfigError{"CPUs", fmt.Errorf("%d is not between 1 and %d", c.CPUs, MaxCPUs)}
	case len(c.Virtio) > maxVirtio:
		return &ConfigError{"Virtio", fmt.Errorf("%d devices, at most %d", len(c.Virtio), maxVirtio)}
	}
	return nil
}
