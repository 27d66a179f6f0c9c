package kvm

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	lapicAddr = 0xFEE0_0000 // also where a message to the APIC with id 0 goes
	lapicSVR  = 0xF0
	lapicISR  = 0x100 // eight registers of 32 vectors each: those whose handler runs
)

// handlerPort is the port to which the interrupt handlers of sleeper write their vector.
const handlerPort = 0x80

// sleeper makes a guest in real mode that sleeps, with the kernel's interrupt controllers, the local APIC on, and a
// handler for each vector which tells the vector. No handler ends its interrupt, so that only vectors of a higher
// priority class, the upper four bits, get through after it.
func sleeper(t *testing.T, vectors ...uint8) *guest {
	t.Helper()
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	g.load(t, []byte{
		0xFB,       // sti
		0xF4,       // hlt
		0xEB, 0xFD, // jmp to the hlt
	})
	for _, v := range vectors {
		handler := 0x2000 + uint16(v)*16
		binary.LittleEndian.PutUint16(g.ram[int(v)*4:], handler) // the segment after it is 0
		copy(g.ram[handler:], []byte{
			0xB0, v, //           mov al, v
			0xE6, handlerPort, // out 0x80, al
			0xCF, //              iret
		})
	}
	lapic, err := g.cpu.GetLAPIC()
	require.NoError(t, err)
	binary.LittleEndian.PutUint32(lapic.Regs[lapicSVR:], 0x1FF)
	require.NoError(t, g.cpu.SetLAPIC(&lapic))
	return g
}

// expect runs the guest until its handler tells a vector.
func (g *guest) expect(t *testing.T, vector uint8) {
	t.Helper()
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 1, Port: handlerPort, Count: 1, Data: []byte{vector}}, g.cpu.IO())
}

func TestMessages(t *testing.T) {
	g := sleeper(t, 0x40, 0x50, 0x60)
	const lineGSI, fdGSI = 24, 25
	routes := []GSIRoute{
		MSIRoute(lineGSI, lapicAddr, 0x50),
		MSIRoute(fdGSI, lapicAddr, 0x60),
	}
	require.EqualValues(t, lineGSI, routes[0].GSI())
	require.NoError(t, g.vm.SetGSIRouting(routes))

	delivered, err := g.vm.SignalMSI(MSI{Addr: lapicAddr, Data: 0x40})
	require.NoError(t, err)
	require.True(t, delivered)
	g.expect(t, 0x40)

	require.NoError(t, g.vm.IRQLine(lineGSI, true))
	g.expect(t, 0x50)

	event := eventfd(t)
	bind := IRQFD{FD: int(event.Fd()), GSI: fdGSI}
	require.NoError(t, g.vm.IRQFD(bind))
	signal(t, event)
	g.expect(t, 0x60)
	bind.Flags = IRQFDDeassign
	require.NoError(t, g.vm.IRQFD(bind))
}

// TestUndeliveredMessage sends a message to an APIC that does not exist.
func TestUndeliveredMessage(t *testing.T) {
	g := sleeper(t)
	delivered, err := g.vm.SignalMSI(MSI{Addr: lapicAddr | 9<<12, Data: 0x40})
	require.NoError(t, err)
	require.False(t, delivered)
}

// TestResample sends a level-triggered interrupt through the IOAPIC. The line falls, and the resampling eventfd tells
// it, when the interrupt ends.
func TestResample(t *testing.T) {
	const (
		gsi     = 33
		pin     = 20
		vector  = 0x40
		handler = 0x2000
		idt     = 0x3000
		gdt     = 0x3800
	)
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	require.NoError(t, g.vm.SetGSIRouting([]GSIRoute{IRQChipRoute(gsi, IOAPIC, pin)}))
	g.load(t, []byte{
		// The IOAPIC's registers are an index at 0xfec00000 and a window at 0xfec00010.
		0xC7, 0x05, 0x00, 0x00, 0xC0, 0xFE, 0x10 + 2*pin, 0, 0, 0, // mov dword [0xfec00000], 0x10+2*pin
		0xC7, 0x05, 0x10, 0x00, 0xC0, 0xFE, vector, 0x80, 0, 0, //    mov dword [0xfec00010], level | vector
		0xC7, 0x05, 0xF0, 0x00, 0xE0, 0xFE, 0xFF, 0x01, 0, 0, //      mov dword [0xfee000f0], 0x1ff: APIC on
		0xE6, 0x10, //                                                out 0x10, al
		0xFB,       //                                                sti
		0xEB, 0xFE, //                                                jmp to itself
	})
	copy(g.ram[handler:], []byte{
		0xE6, 0x11, //                                              out 0x11, al
		0xC7, 0x05, 0xB0, 0x00, 0xE0, 0xFE, 0x00, 0x00, 0x00, 0x00, // mov dword [0xfee000b0], 0: end of interrupt
		0xE6, 0x12, //                                              out 0x12, al
	})
	g.protect(t)
	// The interrupt loads its segment from the descriptor at 0x08: code, 32 bits, flat. Its gate is one of 8 bytes.
	binary.LittleEndian.PutUint64(g.ram[gdt+0x08:], 0x00CF_9B00_0000_FFFF)
	binary.LittleEndian.PutUint64(g.ram[idt+vector*8:], 0x0000_8E00_0008_0000|handler)
	s, err := g.cpu.GetSregs()
	require.NoError(t, err)
	s.GDT = DTable{Base: gdt, Limit: 0x0F}
	s.IDT = DTable{Base: idt, Limit: 0x7FF}
	require.NoError(t, g.cpu.SetSregs(&s))
	g.expectPort(t, 0x10)

	event, resample := eventfd(t), eventfd(t)
	require.NoError(t, g.vm.IRQFD(IRQFD{
		FD: int(event.Fd()), GSI: gsi, Flags: IRQFDResample, ResampleFD: int(resample.Fd()),
	}))
	signal(t, event)
	g.expectPort(t, 0x11)
	lapic, err := g.cpu.GetLAPIC()
	require.NoError(t, err)
	var told uint64
	if binary.LittleEndian.Uint32(lapic.Regs[lapicISR+vector/32*0x10:]) == 0 {
		told = 1 // a KVM that emulates kernel code may end an interrupt as it delivers it
	}
	require.Equal(t, told, count(t, resample))
	g.expectPort(t, 0x12)
	require.Equal(t, 1-told, count(t, resample))
}

// expectPort runs the guest to its next port access.
func (g *guest) expectPort(t *testing.T, port uint16) {
	t.Helper()
	g.run(t, ExitIO)
	require.Equal(t, port, g.cpu.IO().Port)
}

func TestIOEventFD(t *testing.T) {
	const code = 0xAA
	g := boot(t, []byte{
		0xB0, code, //                        mov al, 0xaa
		0xE6, 0x70, //                        out 0x70, al
		0xB8, 0x00, 0xB8, //                  mov ax, 0xb800
		0x8E, 0xD8, //                        mov ds, ax
		0xC7, 0x06, 0x10, 0x00, 0x01, 0x00, // mov word [0x10], 1
		0xC7, 0x06, 0x10, 0x00, 0x02, 0x00, // mov word [0x10], 2
		0xE6, 0x70, //                        out 0x70, al
		0xF4, //                              hlt
	})
	port, memory := eventfd(t), eventfd(t)
	onPort := IOEvent{Addr: 0x70, Len: 1, FD: int(port.Fd()), Flags: IOEventPIO}
	require.NoError(t, g.vm.IOEventFD(onPort))
	require.NoError(t, g.vm.IOEventFD(IOEvent{
		Addr: screenAddr + 0x10, Len: 2, FD: int(memory.Fd()), Match: 2, Flags: IOEventDatamatch,
	}))
	g.run(t, ExitMMIO)
	require.Equal(t, []byte{1, 0}, g.cpu.MMIO().Data, "a value that does not match is an exit")
	require.EqualValues(t, 1, count(t, port))
	require.Zero(t, count(t, memory))

	onPort.Flags |= IOEventDeassign
	require.NoError(t, g.vm.IOEventFD(onPort))
	g.run(t, ExitIO)
	require.EqualValues(t, 0x70, g.cpu.IO().Port)
	require.EqualValues(t, 1, count(t, memory))
	g.run(t, ExitHLT)
	require.Zero(t, count(t, port))
}

func TestIRQErrors(t *testing.T) {
	g := setup(t)
	require.NoError(t, g.vm.CreateIRQChip())
	require.EqualError(t, g.vm.CreateIRQChip(), "create irqchip: file exists")
	require.NoError(t, g.vm.CreatePIT2(PITSpeakerDummy))
	require.EqualError(t, g.vm.CreatePIT2(PITSpeakerDummy), "create pit, flags 0x1: file exists")
	require.EqualError(t, g.vm.SetGSIRouting([]GSIRoute{IRQChipRoute(0, 9, 0)}),
		"set gsi routing, 1 routes: invalid argument")
	require.NoError(t, g.vm.SetGSIRouting(nil), "no routes at all")

	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer file.Close()
	require.ErrorIs(t, g.vm.IRQFD(IRQFD{FD: int(file.Fd()), GSI: 1}), unix.EINVAL, "not an eventfd")
	require.ErrorIs(t, g.vm.IOEventFD(IOEvent{Addr: 1, Len: 3, FD: int(file.Fd())}), unix.EINVAL)
}

// eventfd returns one that does not block. It is closed at the end of the test.
func eventfd(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), "eventfd")
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func signal(t *testing.T, event *os.File) {
	t.Helper()
	_, err := event.Write(binary.NativeEndian.AppendUint64(nil, 1))
	require.NoError(t, err)
}

// count returns how often the eventfd was signalled since the last count.
func count(t *testing.T, event *os.File) uint64 {
	t.Helper()
	var b [8]byte
	_, err := unix.Read(int(event.Fd()), b[:])
	if err == unix.EAGAIN {
		return 0
	}
	require.NoError(t, err)
	return binary.NativeEndian.Uint64(b[:])
}
