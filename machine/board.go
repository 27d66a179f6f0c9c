package machine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"vmm/bootparam"
	"vmm/bootparam/acpi"
	"vmm/devices"
	"vmm/devices/debugport"
	"vmm/devices/i8042"
	"vmm/devices/pci"
	"vmm/devices/power"
	"vmm/devices/rtc"
	"vmm/devices/serial"
	"vmm/kvm"
	virtiopci "vmm/virtio/pci"
)

// board is the machine from one power-on or reset to the next: KVM's VM with its vCPUs and interrupt controllers, the
// buses, and the devices that start afresh with it. A reset throws the board away and builds another, so that no
// device's reset can forget a register.
type board struct {
	m          *Machine
	vm         *kvm.VM
	vcpus      []*vcpu
	lines      []*gsiLine // all that lead to vm
	router     *router
	transports []*virtiopci.Transport
	pio        devices.Bus
	mmio       devices.Bus
	power      *power.Controller
	rtc        *rtc.RTC
	com1       *polledUART

	stopping atomic.Bool   // vCPUs look at it before each entry to the guest
	ended    chan struct{} // closed with the first outcome
	once     sync.Once     // guards exit and err until ended is closed
	exit     Exit
	err      error
}

// newBoard builds a board with the kernel loaded and the first vCPU about to enter it.
func (m *Machine) newBoard() (_ *board, err error) {
	b := &board{m: m, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.vm, err = m.sys.CreateVM(); err != nil {
		return nil, err
	}
	for slot, r := range m.mem.Regions() {
		err := b.vm.SetUserMemoryRegion(kvm.MemoryRegion{
			Slot:          uint32(slot),
			GuestPhysAddr: uint64(r.Start),
			MemorySize:    uint64(len(r.Bytes)),
			UserspaceAddr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes)))),
		})
		if err != nil {
			return nil, err
		}
	}
	if err := b.addInterruptControllers(); err != nil {
		return nil, err
	}
	entry, err := b.load()
	if err != nil {
		return nil, err
	}
	if err := b.addVCPUs(entry); err != nil {
		return nil, err
	}
	if err := b.addDevices(); err != nil {
		return nil, err
	}
	return b, nil
}

// addInterruptControllers makes KVM emulate the PICs, the I/O APIC, the local APICs and the PIT.
func (b *board) addInterruptControllers() error {
	if err := b.vm.SetIdentityMapAddr(kvmIDMap); err != nil {
		return err
	}
	if err := b.vm.SetTSSAddr(kvmTSS); err != nil {
		return err
	}
	if err := b.vm.CreateIRQChip(); err != nil {
		return err
	}
	// Port 0x61 belongs to the PIT as well: with a dummy speaker KVM handles it, and Linux calibrates timers with it.
	if err := b.vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
		return err
	}
	var err error
	b.router, err = newRouter(b.vm)
	return err
}

// addDevices populates the buses.
func (b *board) addDevices() error {
	m := b.m
	b.lead(m.irq4)
	if m.trace != nil {
		b.pio.OnUnclaimed = m.trace.unclaimedPort
		b.mmio.OnUnclaimed = m.trace.unclaimedMMIO
	}
	coalesces, err := b.vm.Extension(kvm.CapCoalescedPIO)
	if err != nil {
		return err
	}
	var ring coalescer
	if coalesces != 0 {
		ring = vmCoalescer{vm: b.vm, VCPU: b.vcpus[0].VCPU}
		if err := ring.CoalescePorts(pci.AddressPort, 4, true); err != nil {
			return err
		}
	}
	b.com1 = newPolledUART(m.uart, ring, func(port uint16, data []byte) { b.pio.Write(uint64(port), data) })
	b.rtc = rtc.New(rtc.Config{IRQ: b.lead(&gsiLine{gsi: rtc.IRQ})})
	b.power = power.New(power.Config{
		SCI:        b.lead(&gsiLine{gsi: gsiSCI}),
		OnPowerOff: func() { b.end(Exit{Reason: PowerOff, Source: "ACPI S5"}, nil) },
		OnReset:    b.resetBy("ACPI reset register"),
	})
	keyboard := i8042.New(i8042.Config{OnReset: b.resetBy("keyboard controller")})
	root, err := pci.NewRoot(pci.Config{
		PIO:         &b.pio,
		MMIO:        &b.mmio,
		PIOWindows:  []pci.Window{{Start: portPCIWindow, Size: pciWindowSize}},
		MMIOWindows: m.layout.pciWindows(),
	})
	if err != nil {
		return err
	}
	type place struct {
		bus         *devices.Bus
		name        string
		start, size uint64
		dev         devices.Device
	}
	places := []place{
		{&b.pio, "i8042 data", i8042.DataPort, 1, keyboard.Data()},
		{&b.pio, "i8042 command", i8042.CommandPort, 1, keyboard.Command()},
		{&b.pio, "system control port A", i8042.SystemControlPort, 1, keyboard.SystemControl()},
		{&b.pio, "RTC", rtc.Port, rtc.Size, b.rtc},
		{&b.pio, "POST code", debugport.POSTPort, debugport.POSTSize, &debugport.POST{}},
		{&b.pio, "COM1", portCOM1, serial.Size, b.com1},
		{&b.pio, "ACPI PM", portPM, power.BlockSize, b.power},
		{&b.pio, "PCI address", pci.AddressPort, 4, root.ConfigAddress()},
		{&b.pio, "PCI data", pci.DataPort, 4, root.ConfigData()},
		{&b.mmio, "PCI ECAM", ecamStart, ecamSize, root.ECAM()},
	}
	if m.cfg.DebugExit {
		exit := &debugport.Exit{OnExit: func(code uint32) { b.end(Exit{Reason: DebugExit, Code: code}, nil) }}
		places = append(places, place{&b.pio, "debug exit", debugport.ExitPort, debugport.ExitSize, exit})
	}
	for _, p := range places {
		if err := p.bus.Add(p.name, p.start, p.size, p.dev); err != nil {
			return err
		}
	}
	return b.addVirtio(root)
}

// lead connects a wire to this board, until its end.
func (b *board) lead(l *gsiLine) *gsiLine {
	l.connect(b.vm)
	b.lines = append(b.lines, l)
	return l
}

// resetBy returns what a device calls when the guest has asked it for a reset.
func (b *board) resetBy(source string) func() {
	return func() { b.end(Exit{Reason: Reset, Source: source}, nil) }
}

// load writes the ACPI tables and the kernel into the guest's memory.
func (b *board) load() (bootparam.Entry, error) {
	m := b.m
	ids := make([]uint32, m.cfg.CPUs)
	for i := range ids {
		ids[i] = uint32(i)
	}
	tables, err := acpi.Build(acpi.Config{
		Base:          acpiStart,
		LAPICIDs:      ids,
		LocalAPICAddr: lapicAddr,
		IOAPICAddr:    ioapicAddr,
		SCI:           gsiSCI,
		PM: acpi.PM{
			Event:   portPM + power.EventOffset,
			Control: portPM + power.ControlOffset,
			Timer:   portPM + power.TimerOffset,
		},
		Reset:       acpi.Reset{Port: portPM + power.ResetOffset, Value: power.ResetValue},
		SleepTypeS5: power.SleepTypeS5,
		ECAM:        acpi.Range{Start: ecamStart, Size: ecamSize},
		IO:          acpi.Range{Start: portPCIWindow, Size: pciWindowSize},
		MMIO32:      acpi.Range{Start: pciMMIO32, Size: pciMMIO32Size},
		MMIO64:      acpi.Range{Start: m.layout.mmio64, Size: m.layout.mmio64Size},
		INTxGSI:     gsiINTx,
		COM1:        acpi.Port{Start: portCOM1, Size: serial.Size, IRQ: gsiCOM1},
		RTC:         acpi.Port{Start: rtc.Port, Size: rtc.Size, IRQ: rtc.IRQ},
	})
	if err != nil {
		return bootparam.Entry{}, err
	}
	if n := len(tables.Bytes); n > highStart-acpiStart {
		return bootparam.Entry{}, fmt.Errorf("ACPI tables: %d bytes, more than the %d below 1 MiB", n, highStart-acpiStart)
	}
	dst, err := m.mem.Slice(acpiStart, uint64(len(tables.Bytes)))
	if err != nil {
		return bootparam.Entry{}, err
	}
	copy(dst, tables.Bytes)

	entry, err := bootparam.Load(m.mem, bootparam.Config{
		Kernel:  m.cfg.Kernel,
		Initrd:  m.cfg.Initrd,
		Cmdline: m.cfg.Cmdline,
		E820:    m.layout.e820(),
		RSDP:    tables.RSDP,
	})
	var bad *bootparam.Error
	if errors.As(err, &bad) {
		return entry, &ConfigError{Field: configField(bad.Input), Err: bad.Err}
	}
	return entry, err
}

// configField names the field of Config that an input of bootparam's comes from.
func configField(in bootparam.Input) string {
	switch in {
	case bootparam.InputKernel:
		return "Kernel"
	case bootparam.InputInitrd:
		return "Initrd"
	}
	return "Cmdline"
}

// addVCPUs creates the vCPUs. The first will start at the kernel's entry; the others wait for its INIT and SIPI.
func (b *board) addVCPUs(entry bootparam.Entry) error {
	m := b.m
	tscDeadline, err := m.sys.Extension(kvm.CapTSCDeadlineTimer)
	if err != nil {
		return err
	}
	for id := range m.cfg.CPUs {
		v, err := b.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		b.vcpus = append(b.vcpus, &vcpu{VCPU: v, board: b})
		if err := v.SetCPUID2(guestCPUID(m.cpuid, id, m.cfg.CPUs, tscDeadline != 0)); err != nil {
			return err
		}
		if err := setBootMSRs(v); err != nil {
			return err
		}
	}
	first := b.vcpus[0].VCPU
	return errors.Join(setVirtualWire(first), setBootState(first, entry))
}

// run lets the vCPUs go until one of them ends the board or ctx does, and returns when all of them have stopped.
func (b *board) run(ctx context.Context) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	var threads, services sync.WaitGroup
	services.Go(func() { b.rtc.Serve(ctx) })
	services.Go(func() { b.power.Serve(ctx) })
	services.Go(func() { b.com1.serve(ctx) })
	for _, v := range b.vcpus {
		threads.Go(v.loop)
	}
	select {
	case <-b.ended:
	case <-ctx.Done():
		b.end(Exit{Reason: Stopped}, nil)
	}
	b.stopping.Store(true)
	for _, v := range b.vcpus {
		v.kick()
	}
	threads.Wait()
	b.com1.drain()
	cancel()
	services.Wait()
	return b.exit, b.err
}

// end records how the board ended; the first outcome counts. Any goroutine may call it, from inside a device too.
func (b *board) end(exit Exit, err error) {
	b.once.Do(func() {
		b.exit, b.err = exit, err
		b.stopping.Store(true)
		close(b.ended)
	})
}

// close releases KVM's half. It is fine on a board that is built only in part, and no vCPU may run.
func (b *board) close() {
	for _, t := range b.transports {
		t.Close()
	}
	for _, l := range b.lines {
		l.connect(nil) // someone may press the power button still, or type
	}
	for _, v := range b.vcpus {
		_ = v.Close() // an error of close(2) on KVM's files would leave nothing to do
	}
	if b.vm != nil {
		_ = b.vm.Close()
	}
}
