package machine_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/internal/kvmtest"
	"vmm/machine"
	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/blk"
	"vmm/virtio/rng"
	"vmm/virtio/virtiotest"
)

// virtioDriver is a driver of queue 0 of the device 00:01.0, in ring 3: code that a KVM which emulates kernel code runs
// natively too. It makes the same chains available again and again, all of them with one kick, and polls until they are
// used. It exits with the byte at 0x105000.
//
//	start:  # ring 0: let ring 3 have all pages, and the device the bus
//	        mov $0x4000,%edi; mov $0xc00,%ecx               # the six pages of page tables
//	1:      testb $1,(%rdi); jz 2f; orb $4,(%rdi)
//	2:      add $8,%edi; loop 1b; mov %cr3,%rax; mov %rax,%cr3
//	        mov $0xcf8,%edx; mov $0x80000804,%eax; out %eax,%dx
//	        mov $0xcfc,%edx; mov $6,%eax; out %ax,%dx       # memory, bus master
//	        mov $0xc0000000,%ebx                            # where the first BAR is
//	        movb $1,0x14(%rbx); movb $3,0x14(%rbx)          # ACKNOWLEDGE, DRIVER
//	        movl $1,0x08(%rbx); movl $1,0x0c(%rbx)          # VIRTIO_F_VERSION_1
//	        movb $11,0x14(%rbx)                             # FEATURES_OK
//	        movw $0,0x16(%rbx); movw $128,0x18(%rbx)        # queue 0, its size
//	        movl $0x101000,0x20(%rbx); movl $0x102000,0x28(%rbx); movl $0x103000,0x30(%rbx)
//	        movw $1,0x1c(%rbx); movb $15,0x14(%rbx)         # the queue's enable, DRIVER_OK
//	        mov $0x180000,%esp; lgdt gdtr(%rip)
//	        push $0x1b; push $0x180000; push $0x3002; push $0x23; lea user(%rip),%rax; push %rax; iretq
//	user:   mov count(%rip),%r12d; mov depth(%rip),%r13d
//	        mov $0x102002,%esi; mov $0x103002,%edi; xor %eax,%eax   # avail.idx, used.idx
//	3:      add %r13d,%eax; mov %ax,(%rsi)
//	        movw $0,0x3000(%rbx)                            # the kick
//	4:      pause; cmp %ax,(%rdi); jne 4b
//	        dec %r12d; jnz 3b
//	        movzbl 0x105000,%eax; out %eax,$0xf4
//	5:      jmp 5b
//	        .balign 8; gdtr: .word 0x27; .quad gdt
//	        .balign 8; gdt: .quad 0,0,0, 0x00cff3000000ffff, 0x00affb000000ffff   # ring 3's data and 64-bit code
//	count:  .long 0
//	depth:  .long 0
const virtioDriver = "bf00400000b9000c0000f607017403800f0483c708e2f30f20d80f22d8" +
	"baf80c0000b804080080efbafc0c0000b80600000066ef" +
	"bb000000c0c6431401c6431403c7430801000000c7430c01000000c643140b66c74316000066c743188000" +
	"c7432000101000c7432800201000c743300030100066c7431c0100c643140f" +
	"bc000018000f01155e0000006a1b680000180068023000006a23488d05030000005048cf" +
	"448b2577000000448b2d74000000be02201000bf0230100031c0" +
	"4401e866890666c783003000000000f39066390775f941ffcc75e5" +
	"0fb6042500501000e7f4ebfe0f1f440000" +
	"2700f800100000000000660f1f440000" +
	"000000000000000000000000000000000000000000000000ffff000000f3cf00ffff000000fbaf00"

// Where the driver has its things, from the start of the payload on, which is at 1 MiB.
const (
	driverCount   = 0x120
	driverDescs   = 0x1000
	driverAvail   = 0x2000
	driverHeaders = 0x4000
	driverExit    = 0x5000 // the byte that it exits with
	driverSize    = 0x6000
	payloadStart  = 0x10_0000
	driverData    = 0x20_0000 // in the guest's memory, a page for each chain
	driverRing    = 128       // entries of the queue
)

// drive returns the driver with chains of these descriptors. Headers are what is at driverHeaders.
func drive(rounds uint32, chains [][]virtiotest.Desc, headers []byte) payload {
	code, err := hex.DecodeString(virtioDriver)
	if err != nil {
		panic(err)
	}
	image := make([]byte, driverSize)
	copy(image, code)
	binary.LittleEndian.PutUint32(image[driverCount:], rounds)
	binary.LittleEndian.PutUint32(image[driverCount+4:], uint32(len(chains)))
	var heads []uint16
	next := 0
	for _, chain := range chains {
		heads = append(heads, uint16(next))
		for i, d := range chain {
			if i+1 < len(chain) {
				d.Flags |= virtiotest.Next
				d.Next = uint16(next + 1)
			}
			copy(image[driverDescs+16*next:], d.Bytes())
			next++
		}
	}
	image[driverAvail] = 1 // no interrupts
	for i := range driverRing {
		binary.LittleEndian.PutUint16(image[driverAvail+4+2*i:], heads[i%len(heads)])
	}
	copy(image[driverHeaders:], headers)
	return payload(hex.EncodeToString(image))
}

// driveReads has each chain read a page of a disk. The driver exits with the disk's first byte.
func driveReads(rounds uint32, depth int) payload {
	const statuses = driverHeaders + 0x800
	var chains [][]virtiotest.Desc
	headers := make([]byte, 16*depth) // of type IN
	for i := range depth {
		binary.LittleEndian.PutUint64(headers[16*i+8:], uint64(8*i))
		data := memory.GPA(driverData + 4096*i)
		if i == 0 {
			data = payloadStart + driverExit
		}
		chains = append(chains, []virtiotest.Desc{
			{Addr: memory.GPA(payloadStart + driverHeaders + 16*i), Len: 16},
			{Addr: data, Len: 4096, Flags: virtiotest.Write},
			{Addr: memory.GPA(payloadStart + statuses + i), Len: 1, Flags: virtiotest.Write},
		})
	}
	return drive(rounds, chains, headers)
}

// disk makes a disk whose bytes are all 0x5a.
func disk(t testing.TB) *blk.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{0x5a}, 1<<20), 0o600))
	f, err := block.Open(path, block.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	dev, err := blk.New(blk.Config{Backend: f})
	require.NoError(t, err)
	return dev
}

// run runs the payload with the device to its end.
func run(t testing.TB, p payload, dev ...virtio.Device) (machine.Exit, machine.Stats) {
	t.Helper()
	kvmtest.Require(t)
	m, err := machine.New(machine.Config{Kernel: p.image(), Memory: 16 << 20, DebugExit: true, Virtio: dev})
	require.NoError(t, err)
	defer func() { require.NoError(t, m.Close()) }()
	exit, err := m.Run(t.Context())
	require.NoError(t, err)
	return exit, m.Stats()
}

// However many requests there are, their kicks leave the guest without an exit to the monitor: those that there are set
// the device up.
func TestVirtioWithoutExits(t *testing.T) {
	var setUp uint64
	for _, rounds := range []uint32{1, 500} {
		dev := disk(t)
		exit, stats := run(t, driveReads(rounds, 4), dev)
		require.Equal(t, machine.Exit{Reason: machine.DebugExit, Code: 0x5a}, exit)
		require.Equal(t, blk.Stats{Reads: 4 * uint64(rounds), Direct: dev.Stats().Direct}, dev.Stats())
		if rounds == 1 {
			setUp = stats.Exits["KVM_EXIT_MMIO"]
			require.NotZero(t, setUp)
		}
		require.Equal(t, setUp, stats.Exits["KVM_EXIT_MMIO"])
	}
}

func TestVirtioRNG(t *testing.T) {
	p := drive(1, [][]virtiotest.Desc{{{Addr: payloadStart + driverExit, Len: 16, Flags: virtiotest.Write}}}, nil)
	dev := rng.New(rng.Config{Source: bytes.NewReader(bytes.Repeat([]byte{7}, 16))})
	exit, _ := run(t, p, dev)
	require.Equal(t, machine.Exit{Reason: machine.DebugExit, Code: 7}, exit)
}

// A device serves one boot after the other, and a machine that was never run.
func TestVirtioDeviceOutlivesMachines(t *testing.T) {
	kvmtest.Require(t)
	dev := disk(t)
	for range 2 {
		exit, _ := run(t, driveReads(1, 1), dev)
		require.Equal(t, uint32(0x5a), exit.Code)
		m, err := machine.New(machine.Config{Kernel: powerOff.image(), Memory: 16 << 20, Virtio: []virtio.Device{dev}})
		require.NoError(t, err)
		require.NoError(t, m.Close())
	}
}

// More devices than a bus has places become further functions; more than that are refused.
func TestManyVirtioDevices(t *testing.T) {
	kvmtest.Require(t)
	var devices []virtio.Device
	for range 249 {
		devices = append(devices, rng.New(rng.Config{}))
	}
	for n, ok := range map[int]bool{40: true, 248: true, 249: false} {
		m, err := machine.New(machine.Config{Kernel: powerOff.image(), Memory: 16 << 20, Virtio: devices[:n]})
		if ok {
			require.NoError(t, err)
			require.NoError(t, m.Close())
			continue
		}
		require.ErrorContains(t, err, "Virtio: 249 devices, at most 248")
	}
}

// BenchmarkVirtioRead reads pages that are in the host's cache, with a driver that polls: a kick and the requests' way
// through the device, without an interrupt's cost.
func BenchmarkVirtioRead(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("QD%d", depth), func(b *testing.B) {
			dev := disk(b)
			rounds := uint32(b.N/depth + 1)
			p := driveReads(rounds, depth)
			b.ReportAllocs()
			b.ResetTimer()
			var before, after unix.Rusage
			require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
			exit, _ := run(b, p, dev)
			require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
			require.Equal(b, uint32(0x5a), exit.Code)
			requests := float64(rounds) * float64(depth)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/requests, "ns/request")
			b.ReportMetric(float64(after.Stime.Nano()-before.Stime.Nano())/requests, "system-ns/request")
		})
	}
}
