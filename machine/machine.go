// Package machine assembles a virtual machine and runs it: the one place that knows both KVM and the devices.
//
// A program fills a [Config], calls [New], and then [Machine.Run], which returns when the guest has ended:
//
//	m, err := machine.New(machine.Config{Kernel: kernel, Initrd: initrd, Cmdline: machine.DefaultCmdline, Serial: line})
//	...
//	defer m.Close()
//	exit, err := m.Run(ctx)
//
// Each vCPU has a thread, and so has each queue of a virtio device. A program on a host with few processors should set
// GOMAXPROCS to their number, and a few more: else a thread that comes back from the kernel may wait for a place in Go's
// scheduler, for as long as a vCPU is in the guest.
//
// Any number of machines may live in one process. The package keeps no state of its own, prints nothing, and touches
// neither the process's signals (but for SIGURG, which it sends to its own threads) nor its standard streams.
package machine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vmm/devices/serial"
	"vmm/kvm"
	"vmm/memory"
)

// Machine is a virtual machine: what outlives a reset of the guest. What a reset renews (KVM's half, the vCPUs, the
// devices without a line to the outside) is a board.
type Machine struct {
	cfg    Config
	sys    *kvm.System
	cpuid  []kvm.CPUIDEntry // what the host offers
	layout layout
	mem    *memory.Memory
	uart   *serial.UART
	irq4   *gsiLine // COM1's wire, led to each board in turn
	trace  *trace   // nil unless Config.Trace

	mu     sync.Mutex // guards what follows
	board  *board     // the board under power; nil between two
	first  *board     // what New built and Run has not taken yet
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned; nil before Run
	ran    bool
	closed bool
	stats  Stats // of the boards before this one
}

// ErrClosed and ErrAlreadyRun are the errors of a [Machine.Run] that cannot be.
var (
	ErrClosed     = errors.New("machine is closed")
	ErrAlreadyRun = errors.New("machine has run: make a new one")
)

// New opens KVM, lays out the guest's memory, loads the kernel and builds the hardware, so that all that can be refused
// is refused here. A wrong value in cfg gives a [*ConfigError]; a host without a usable KVM gives an error that wraps
// fs.ErrNotExist, fs.ErrPermission or errors.ErrUnsupported. When New fails nothing is left behind, and cfg.Serial is
// still the caller's.
func New(cfg Config) (_ *Machine, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, irq4: &gsiLine{gsi: gsiCOM1}}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	if m.sys, err = kvm.Open(kvm.DefaultPath); err != nil {
		return nil, err
	}
	if err := checkHost(m.sys, cfg.CPUs); err != nil {
		return nil, err
	}
	if m.cpuid, err = m.sys.SupportedCPUID(); err != nil {
		return nil, err
	}
	if m.layout, err = newLayout(cfg.Memory, physicalAddressBits(m.cpuid)); err != nil {
		return nil, &ConfigError{Field: "Memory", Err: err}
	}
	if m.mem, err = memory.Map(m.layout.ram...); err != nil {
		return nil, &ConfigError{Field: "Memory", Err: err}
	}
	if cfg.Trace {
		m.trace = newTrace()
	}
	m.uart = serial.New(serial.Config{IRQ: m.irq4})
	if m.first, err = m.newBoard(); err != nil {
		return nil, err
	}
	return m, nil
}

// Run runs the guest until it powers off or resets (unless [Config.RestartOnReset] is set), until it or its vCPUs
// break, which gives a [*CrashError], or until ctx ends, which gives [Stopped]. It can be called once. An error of
// [Config.Serial] does not end the guest; Run returns it beside the [Exit].
func (m *Machine) Run(ctx context.Context) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b, err := m.start(cancel)
	if err != nil {
		return Exit{}, err
	}
	defer close(m.done)

	stopLine := m.serveLine(ctx)
	for {
		exit, err := b.run(ctx)
		m.retire(b)
		if err == nil && exit.Reason == Reset && m.cfg.RestartOnReset {
			if b, err = m.restart(); err == nil {
				continue
			}
			exit = Exit{}
		}
		return exit, errors.Join(err, stopLine())
	}
}

// start takes the board that New has built, once.
func (m *Machine) start(cancel context.CancelFunc) (*board, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrClosed
	case m.ran:
		return nil, ErrAlreadyRun
	}
	m.ran = true
	m.cancel = cancel
	m.done = make(chan struct{})
	m.board, m.first = m.first, nil
	return m.board, nil
}

// serveLine connects COM1 with the outside. What it returns ends that and waits.
func (m *Machine) serveLine(ctx context.Context) (stop func() error) {
	if m.cfg.Serial == nil {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- m.uart.Serve(ctx, m.cfg.Serial) }()
	return func() error {
		cancel()
		return <-served
	}
}

// retire takes the board out of use and keeps its counters.
func (m *Machine) retire(b *board) {
	b.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.add(b.stats())
	m.board = nil
}

// restart does what a reset does to a PC, and clears the RAM besides: the next boot inherits nothing from the last.
func (m *Machine) restart() (*board, error) {
	if err := m.mem.Clear(); err != nil {
		return nil, fmt.Errorf("reset: %w", err)
	}
	m.uart.Reset()
	if m.cfg.Reload != nil {
		boot, err := m.cfg.Reload()
		if err == nil {
			m.cfg.Kernel, m.cfg.Initrd, m.cfg.Cmdline = boot.Kernel, boot.Initrd, boot.Cmdline
			err = m.cfg.complete()
		}
		if err != nil {
			return nil, fmt.Errorf("reset: %w", err)
		}
	}
	b, err := m.newBoard()
	if err != nil {
		return nil, fmt.Errorf("reset: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.board = b
	return b, nil
}

// PowerButton presses the ACPI power button: a guest that listens shuts itself down. It does nothing while no guest
// runs.
func (m *Machine) PowerButton() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.board != nil {
		m.board.power.PressPowerButton()
	}
}

// SendBreak sends a break condition to COM1, which Linux takes for the start of a magic SysRq sequence.
func (m *Machine) SendBreak() { m.uart.Break() }

// Close stops the guest if it runs, waits for [Machine.Run] to return, and releases all that the machine holds. It is
// idempotent.
func (m *Machine) Close() error {
	m.mu.Lock()
	done := m.done
	if m.cancel != nil {
		m.cancel()
	}
	m.closed = true
	m.mu.Unlock()
	if done != nil {
		<-done
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.cfg.Serial != nil {
		// Run's Serve has closed it already; closing twice is what io.Closer leaves undefined.
		if done == nil {
			err = m.cfg.Serial.Close()
		}
		m.cfg.Serial = nil
	}
	return errors.Join(err, m.release())
}

// release gives back what New acquired, in reverse.
func (m *Machine) release() error {
	var errs []error
	if m.first != nil {
		m.first.close()
		m.first = nil
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	if m.sys != nil {
		errs = append(errs, m.sys.Close())
		m.sys = nil
	}
	return errors.Join(errs...)
}
