package kvm

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/kvmtest"
	"vmm/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// The guest of the payload tests: 64 KiB of RAM at address 0, code at codeAddr in 16-bit real mode, a stack below it.
// All other addresses are MMIO; screenSegment reaches some from real mode.
const (
	ramSize       = 0x10000
	codeAddr      = 0x1000
	screenSegment = 0xB800
	screenAddr    = screenSegment << 4
)

// A guest is a VM with RAM and one vCPU.
type guest struct {
	vm  *VM
	cpu *VCPU
	ram []byte
}

// setup makes a VM with RAM. It is closed at the end of the test.
func setup(t testing.TB) *guest {
	t.Helper()
	sys := openSystem(t)
	vm, err := sys.CreateVM()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vm.Close()) })
	ram, err := unix.Mmap(-1, 0, ramSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(ram)) })
	require.NoError(t, vm.SetUserMemoryRegion(MemoryRegion{MemorySize: ramSize, UserspaceAddr: hostAddr(ram)}))
	// Intel's processors without unrestricted guests need both for real mode.
	require.NoError(t, vm.SetTSSAddr(0xFFFB_D000))
	require.NoError(t, vm.SetIdentityMapAddr(0xFFFB_C000))
	return &guest{vm: vm, ram: ram}
}

func openSystem(t testing.TB) *System {
	t.Helper()
	kvmtest.Require(t)
	sys, err := Open(DefaultPath)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sys.Close()) })
	return sys
}

// createVCPU adds a vCPU, which is closed at the end of the test.
func (g *guest) createVCPU(t testing.TB, id int) *VCPU {
	t.Helper()
	c, err := g.vm.CreateVCPU(id)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// load puts code in place for the guest's vCPU, which it makes if there is none yet, to start it in real mode.
func (g *guest) load(t testing.TB, code []byte) {
	t.Helper()
	if g.cpu == nil {
		g.cpu = g.createVCPU(t, 0)
	}
	copy(g.ram[codeAddr:], code)
	s, err := g.cpu.GetSregs()
	require.NoError(t, err)
	s.CS.Base, s.CS.Selector = 0, 0
	require.NoError(t, g.cpu.SetSregs(&s))
	require.NoError(t, g.cpu.SetRegs(&Regs{RIP: codeAddr, RSP: codeAddr, RFLAGS: 2}))
}

// boot makes a guest of code that is in real mode.
func boot(t testing.TB, code []byte) *guest {
	t.Helper()
	g := setup(t)
	g.load(t, code)
	return g
}

// protect puts the vCPU into 32-bit protected mode with flat segments and no paging.
func (g *guest) protect(t testing.TB) {
	t.Helper()
	s, err := g.cpu.GetSregs()
	require.NoError(t, err)
	s.CR0 |= 1 // PE
	data := Segment{Limit: 0xFFFF_FFFF, Selector: 0x10, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CS = data
	s.CS.Selector, s.CS.Type = 0x08, 11
	require.NoError(t, g.cpu.SetSregs(&s))
}

// run runs the vCPU to its next exit, which must be of the reason. Signals of Go's own runtime are no exits.
func (g *guest) run(t testing.TB, want ExitReason) {
	t.Helper()
	err := g.cpu.Run()
	for errors.Is(err, unix.EINTR) {
		err = g.cpu.Run()
	}
	require.NoError(t, err)
	require.Equal(t, want, g.cpu.ExitReason(), "%v", g.cpu.ExitReason())
}

func TestHLT(t *testing.T) {
	g := boot(t, []byte{
		0xF4, // hlt
	})
	g.run(t, ExitHLT)
	r, err := g.cpu.GetRegs()
	require.NoError(t, err)
	require.EqualValues(t, codeAddr+1, r.RIP)
}

func TestPIO(t *testing.T) {
	g := boot(t, []byte{
		0xBA, 0xF8, 0x03, // mov dx, 0x3f8
		0xB8, 0x41, 0x42, // mov ax, 0x4241
		0xEE,       //             out dx, al
		0xEF,       //             out dx, ax
		0x66, 0xED, //       in eax, dx
		0x40,       //       inc ax
		0x66, 0xEF, //       out dx, eax
		0xE6, 0x80, //       out 0x80, al
	})
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 1, Port: 0x3F8, Count: 1, Data: []byte{0x41}}, g.cpu.IO())
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 2, Port: 0x3F8, Count: 1, Data: []byte{0x41, 0x42}}, g.cpu.IO())
	g.run(t, ExitIO)
	in := g.cpu.IO()
	require.Equal(t, IO{Size: 4, Port: 0x3F8, Count: 1, Data: in.Data}, in)
	require.Len(t, in.Data, 4)
	require.Equal(t, 4, cap(in.Data), "an append must not reach the rest of the page")
	binary.LittleEndian.PutUint32(in.Data, 0x1234_5677)
	g.run(t, ExitIO)
	require.Equal(t, []byte{0x78, 0x56, 0x34, 0x12}, g.cpu.IO().Data)
	g.run(t, ExitIO)
	require.Equal(t, IO{Write: true, Size: 1, Port: 0x80, Count: 1, Data: []byte{0x78}}, g.cpu.IO())
}

// TestStringPIO accepts any division of a string of accesses into exits.
func TestStringPIO(t *testing.T) {
	const from, to = 0x2000, 0x3000
	g := boot(t, []byte{
		0xFC,             // cld
		0xBA, 0x70, 0x00, // mov dx, 0x70
		0xBE, 0x00, 0x20, // mov si, 0x2000
		0xB9, 0x08, 0x00, // mov cx, 8
		0xF3, 0x6F, //       rep outsw
		0xBF, 0x00, 0x30, // mov di, 0x3000
		0xB9, 0x08, 0x00, // mov cx, 8
		0xF3, 0x6D, //       rep insw
		0xF4, //             hlt
	})
	want := []byte("sixteen bytes...")
	copy(g.ram[from:], want)
	var out []byte
	in := want
	for len(out) < len(want) {
		g.run(t, ExitIO)
		e := g.cpu.IO()
		require.True(t, e.Write)
		require.Equal(t, 2, e.Size)
		require.Len(t, e.Data, e.Size*e.Count)
		out = append(out, e.Data...)
	}
	require.Equal(t, want, out)
	for len(in) > 0 {
		g.run(t, ExitIO)
		e := g.cpu.IO()
		require.False(t, e.Write)
		require.Len(t, e.Data, e.Size*e.Count)
		in = in[copy(e.Data, in):]
	}
	g.run(t, ExitHLT)
	require.Equal(t, want, g.ram[to:to+len(want)])
}

func TestMMIO(t *testing.T) {
	g := boot(t, []byte{
		0xB8, 0x00, 0xB8, //                   mov ax, 0xb800
		0x8E, 0xD8, //                         mov ds, ax
		0xC6, 0x06, 0x10, 0x00, 0x5A, //       mov byte [0x10], 0x5a
		0x66, 0xA1, 0x20, 0x00, //             mov eax, [0x20]
		0x66, 0x40, //                         inc eax
		0x66, 0xA3, 0x24, 0x00, //             mov [0x24], eax
		0xF4, //                               hlt
	})
	g.run(t, ExitMMIO)
	require.Equal(t, MMIO{Write: true, Addr: screenAddr + 0x10, Data: []byte{0x5A}}, g.cpu.MMIO())
	g.run(t, ExitMMIO)
	read := g.cpu.MMIO()
	require.Equal(t, MMIO{Addr: screenAddr + 0x20, Data: read.Data}, read)
	require.Len(t, read.Data, 4)
	require.Equal(t, 4, cap(read.Data))
	binary.LittleEndian.PutUint32(read.Data, 0x00FF_FFFF)
	g.run(t, ExitMMIO)
	require.Equal(t, MMIO{Write: true, Addr: screenAddr + 0x24, Data: []byte{0, 0, 0, 1}}, g.cpu.MMIO())
	g.run(t, ExitHLT)
}

func TestReadonlyMemory(t *testing.T) {
	g := boot(t, []byte{
		0xB8, 0x00, 0xB8, //             mov ax, 0xb800
		0x8E, 0xD8, //                   mov ds, ax
		0xA0, 0x00, 0x00, //             mov al, [0]
		0xA2, 0x01, 0x00, //             mov [1], al
		0xF4, //                         hlt
	})
	rom, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(rom)) }()
	rom[0] = 0x77
	slot := MemoryRegion{Slot: 1, Flags: MemReadonly, GuestPhysAddr: screenAddr, MemorySize: 0x1000,
		UserspaceAddr: hostAddr(rom)}
	require.NoError(t, g.vm.SetUserMemoryRegion(slot))
	g.run(t, ExitMMIO)
	require.Equal(t, MMIO{Write: true, Addr: screenAddr + 1, Data: []byte{0x77}}, g.cpu.MMIO())
	g.run(t, ExitHLT)
	require.Zero(t, rom[1])

	slot.MemorySize = 0
	require.NoError(t, g.vm.SetUserMemoryRegion(slot), "delete the slot")
	g.load(t, []byte{
		0xA0, 0x00, 0x00, //             mov al, [0]
	})
	g.run(t, ExitMMIO)
}

func TestTripleFault(t *testing.T) {
	g := boot(t, []byte{
		0x0F, 0x0B, // ud2
	})
	g.protect(t)
	s, err := g.cpu.GetSregs()
	require.NoError(t, err)
	s.IDT = DTable{} // no vector is inside it: not of the invalid opcode, nor of the faults that follow
	require.NoError(t, g.cpu.SetSregs(&s))
	g.run(t, ExitShutdown)
}

// TestInternalError lets an instruction access MMIO that no KVM's emulator knows: such an access must be emulated by
// every KVM, whatever its hardware runs natively.
func TestInternalError(t *testing.T) {
	fld := []byte{0xD9, 0x06, 0x10, 0x00} // fld dword [0x10]
	g := boot(t, append([]byte{
		0xB8, 0x00, 0xB8, //             mov ax, 0xb800
		0x8E, 0xD8, //                   mov ds, ax
	}, fld...))
	g.run(t, ExitInternalError)
	e := g.cpu.InternalError()
	require.Equal(t, SuberrorEmulation, e.Suberror)
	require.GreaterOrEqual(t, len(e.Instruction()), len(fld))
	require.Equal(t, fld, e.Instruction()[:len(fld)])
}

func TestInstruction(t *testing.T) {
	const bytes, more = 0x0706050403020103, 0x0F0E0D0C0B0A0908 // a length of 3, then the bytes 1, 2, ...
	for _, c := range []struct {
		name string
		e    InternalError
		want []byte
	}{
		{"three", InternalError{SuberrorEmulation, []uint64{1, bytes, more}}, []byte{1, 2, 3}},
		{"as long as can be", InternalError{SuberrorEmulation, []uint64{1, bytes | 0xFF, more, 9}},
			[]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
		{"no flag", InternalError{SuberrorEmulation, []uint64{2, bytes, more}}, nil},
		{"short", InternalError{SuberrorEmulation, []uint64{1, bytes}}, nil},
		{"another error", InternalError{SuberrorDelivery, []uint64{1, bytes, more}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.e.Instruction()) })
	}
}

// TestExitRecords reads exits that no test can provoke on every machine from a page made by hand: the offsets are the
// kernel's, see TestABI.
func TestExitRecords(t *testing.T) {
	page := make([]uint64, 0x1000/8)
	c := &VCPU{run: runPageAt(page)}
	page[1] = uint64(ExitFailEntry)
	page[4], page[5] = 0x8000_0021, 7
	require.Equal(t, ExitFailEntry, c.ExitReason())
	require.Equal(t, FailEntry{HardwareReason: 0x8000_0021, CPU: 7}, c.FailEntry())

	page[4], page[5], page[6] = uint64(SystemEventReset)|2<<32, 0x11, 0x22
	require.Equal(t, SystemEvent{Type: SystemEventReset, Data: []uint64{0x11, 0x22}}, c.SystemEvent())

	page[4] = uint64(SuberrorSimultaneous) | 0xFFFF_FFFF<<32
	require.Len(t, c.InternalError().Data, 16, "a count beyond the array")
}

// TestAllocations runs a guest that never stops accessing a port.
func TestAllocations(t *testing.T) {
	g := boot(t, []byte{
		0xE4, 0x80, //             in al, 0x80
		0xB8, 0x00, 0xB8, //       mov ax, 0xb800
		0x8E, 0xD8, //             mov ds, ax
		0xA2, 0x00, 0x00, //       mov [0], al
		0xEB, 0xF4, //             jmp to the start
	})
	var ports, writes int
	allocs := testing.AllocsPerRun(1000, func() {
		if g.cpu.Run() != nil {
			return
		}
		switch g.cpu.ExitReason() {
		case ExitIO:
			g.cpu.IO().Data[0] = 0xFF
			ports++
		case ExitMMIO:
			if g.cpu.MMIO().Write {
				writes++
			}
		}
	})
	require.Zero(t, allocs)
	require.Positive(t, ports)
	require.Positive(t, writes)
}

func BenchmarkExit(b *testing.B) {
	g := boot(b, []byte{
		0xE4, 0x80, //             in al, 0x80
		0xEB, 0xFC, //             jmp to the start
	})
	for b.Loop() {
		if err := g.cpu.Run(); err != nil && !errors.Is(err, unix.EINTR) {
			b.Fatal(err)
		}
	}
}
