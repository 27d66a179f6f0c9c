package machine_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"
	"sync"

	"vmm/machine"
)

// payload is a program for the guest in the place of a kernel: 64-bit code, entered with the first 4 GiB mapped to
// themselves. The comments give the source of the bytes, in the syntax of the GNU assembler.
type payload string

const (
	// hello writes a line to COM1, with one string instruction, and powers off.
	//
	//	mov $0x3f8,%edx; lea msg(%rip),%rsi; mov $13,%ecx; rep outsb
	//	mov $0x604,%edx; mov $0x3400,%eax; out %ax,%dx
	//	1: hlt; jmp 1b
	//	msg: .ascii "hello, world\n"
	hello payload = "baf8030000488d3516000000b90d000000f36e ba04060000b80034000066ef f4ebfd 68656c6c6f2c20776f726c640a"

	// powerOff enters S5: mov $0x604,%edx; mov $0x3400,%eax; out %ax,%dx; 1: hlt; jmp 1b.
	powerOff payload = "ba04060000b80034000066ef f4ebfd"

	// Four ways to a reset.
	resetACPI     payload = "ba0c060000b001ee f4ebfd" // mov $0x60c,%edx; mov $1,%al; out %al,%dx
	resetKeyboard payload = "b0fee664 f4ebfd"         // mov $0xfe,%al; out %al,$0x64
	resetPort92   payload = "b001e692 f4ebfd"         // mov $1,%al; out %al,$0x92
	tripleFault   payload = "0f0b"                    // ud2, with no IDT

	// bootMark writes a 'b' to COM1 and resets: mov $0x3f8,%edx; mov $'b',%al; out %al,%dx; mov $0xfe,%al; out %al,$0x64.
	bootMark payload = "baf8030000b062ee b0fee664 f4ebfd"

	// debugExit writes 42 to the debug-exit port: mov $0x2a,%eax; out %eax,$0xf4.
	debugExit payload = "b82a000000e7f4 f4ebfd"

	// spin never leaves the guest: jmp . ; halt leaves it to KVM: 1: cli; hlt; jmp 1b.
	spin payload = "ebfe"
	halt payload = "faf4ebfc"

	// unemulatable loads a floating-point number from an address without memory, which KVM's emulator does not know:
	// mov $0xd0000000,%eax; flds (%rax); jmp .
	unemulatable payload = "b8000000d0 d900 ebfe"

	// holes reads and writes where there is nothing, in both spaces, and exits with 1 if the port read as ones.
	//
	//	mov $0xd0000000,%ebx; mov (%rbx),%eax; mov %eax,(%rbx)
	//	mov $0x5555,%edx; in %dx,%eax; out %eax,%dx
	//	cmp $-1,%eax; sete %al; movzbl %al,%eax; out %eax,$0xf4
	holes payload = "bb000000d08b038903 ba55550000edef 83f8ff0f94c00fb6c0e7f4 f4ebfd"

	// echo sends back what COM1 receives, until a 'q', then powers off.
	//
	//	1: mov $0x3fd,%edx; in %dx,%al; test $1,%al; jz 1b
	//	mov $0x3f8,%edx; in %dx,%al; out %al,%dx; cmp $'q',%al; jne 1b
	//	mov $0x604,%edx; mov $0x3400,%eax; out %ax,%dx
	echo payload = "bafd030000eca80174f6 baf8030000ecee3c7175eb ba04060000b80034000066ef f4ebfd"

	// spinAfterOutput writes three characters and never leaves the guest again:
	// mov $0x3f8,%edx; mov $'x',%al; out %al,%dx; out %al,%dx; out %al,%dx; jmp .
	spinAfterOutput payload = "baf8030000b078eeeeee ebfe"

	// outputModes sends characters polled, then with the transmitter's interrupt enabled, then polled, and powers off.
	//
	//	mov $0x3f8,%edx; mov $'a',%al; out %al,%dx; inc %al; out %al,%dx; inc %al; out %al,%dx
	//	inc %edx; mov %al,%bl; mov $2,%al; out %al,%dx; dec %edx; mov %bl,%al
	//	inc %al; out %al,%dx; inc %al; out %al,%dx
	//	inc %edx; mov %al,%bl; mov $0,%al; out %al,%dx; dec %edx; mov %bl,%al
	//	inc %al; out %al,%dx; inc %al; out %al,%dx; inc %al; out %al,%dx
	//	mov $0x604,%edx; mov $0x3400,%eax; out %ax,%dx
	outputModes payload = "baf8030000b061eefec0eefec0ee ffc288c3b002eeffca88d8 fec0eefec0ee ffc288c3b000eeffca88d8" +
		"fec0eefec0eefec0ee ba04060000b80034000066ef f4ebfd"

	// button enables the power button's event, writes an 'r' to COM1, polls for the event and powers off.
	//
	//	mov $0x602,%edx; mov $0x100,%eax; out %ax,%dx
	//	mov $0x3f8,%edx; mov $'r',%al; out %al,%dx
	//	mov $0x600,%edx; 1: in %dx,%ax; test $0x100,%eax; jz 1b
	//	mov $0x604,%edx; mov $0x3400,%eax; out %ax,%dx
	button payload = "ba02060000b80001000066ef baf8030000b072ee ba0006000066eda90001000074f7 ba04060000b80034000066ef f4ebfd"
)

// image wraps the payload as a kernel: an ELF file of one segment at 1 MiB, entered at its start.
func (p payload) image() machine.Image {
	code, err := hex.DecodeString(strings.ReplaceAll(string(p), " ", ""))
	if err != nil {
		panic(err)
	}
	const load, headers = 0x10_0000, 64 + 56
	var f bytes.Buffer
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: load, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: headers, Vaddr: load, Paddr: load,
		Filesz: uint64(len(code)), Memsz: uint64(len(code)), Align: 1,
	}
	for _, part := range []any{header, segment, code} {
		if err := binary.Write(&f, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return bytes.NewReader(f.Bytes())
}

// terminal is the outside of a serial line in memory: the guest's output collects in it, and what is written to typed is its input.
type terminal struct {
	in     *io.PipeReader
	typed  *io.PipeWriter
	mu     sync.Mutex // guards out
	out    bytes.Buffer
	wrote  chan struct{} // has a token when out has grown
	closed sync.Once
}

func newTerminal() *terminal {
	t := &terminal{wrote: make(chan struct{}, 1)}
	t.in, t.typed = io.Pipe()
	return t
}

func (t *terminal) Read(p []byte) (int, error) { return t.in.Read(p) }

func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.out.Write(p)
	select {
	case t.wrote <- struct{}{}:
	default:
	}
	return n, err
}

func (t *terminal) Close() error {
	t.closed.Do(func() { t.typed.Close() })
	return nil
}

func (t *terminal) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.String()
}

// waitFor waits until the guest has written s.
func (t *terminal) waitFor(s string) {
	for !strings.Contains(t.String(), s) {
		<-t.wrote
	}
}
