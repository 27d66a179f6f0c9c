package pci

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/virtio"
)

// The capability list, byte by byte, as §4.1.4 has it.
func TestCapabilities(t *testing.T) {
	g := newGuest(t, nil)
	le := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	virtCap := func(kind byte, length byte, off, size uint32, more ...byte) []byte {
		b := []byte{0x09, 0, length, kind, 0, 0, 0, 0}
		return append(append(append(b, le(off)...), le(size)...), more...)
	}
	for _, c := range []struct {
		id   int
		want []byte
	}{
		{cfgCommon, virtCap(1, 16, 0x0000, 0x38)},
		{cfgISR, virtCap(3, 16, 0x1000, 1)},
		{cfgDevice, virtCap(4, 16, 0x2000, 0x1000)},
		{cfgNotify, virtCap(2, 20, 0x3000, 8, 4, 0, 0, 0)},
		{cfgPCI, virtCap(5, 20, 0, 0, 0, 0, 0, 0)},
		{-0x11, append([]byte{0x11, 0, 2, 0}, append(le(0x4000), le(0x5000)...)...)},
		{-0x13, []byte{0x13, 0, 6, 3, 0, 0}},
	} {
		at := g.caps[c.id]
		require.NotZero(t, at, "capability %d", c.id)
		got := make([]byte, len(c.want))
		for i := range got {
			got[i] = byte(g.configRead(at+i, 1))
		}
		got[1] = 0 // the next pointer
		require.Equal(t, c.want, got, "capability %d", c.id)
	}
	require.Equal(t, uint64(0x1042_1af4), g.configRead(0, 4))
	require.Equal(t, uint64(0x01800001), g.configRead(8, 4), "class and revision")
	require.Equal(t, uint64(0xc000_0000), g.bar)
}

func TestNegotiation(t *testing.T) {
	const offered = 1<<5 | 1<<9 | virtio.Version1 | virtio.EventIdx | virtio.IndirectDesc
	g := newGuest(t, nil)
	g.write(regDeviceFeatureSelect, 4, 0)
	low := g.read(regDeviceFeature, 4)
	g.write(regDeviceFeatureSelect, 4, 1)
	require.Equal(t, uint64(offered), low|g.read(regDeviceFeature, 4)<<32)
	g.write(regDeviceFeatureSelect, 4, 2)
	require.Zero(t, g.read(regDeviceFeature, 4))

	for _, c := range []struct {
		name     string
		features virtio.Features
		status   uint64
	}{
		{"all", offered, 11},
		{"the least", virtio.Version1, 11},
		{"legacy", 1 << 5, 3},
		{"not offered", virtio.Version1 | 1<<6, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.write(regStatus, 1, 0)
			require.Zero(t, g.status())
			g.negotiate(c.features)
			require.Equal(t, c.status, g.status())
			g.write(regDriverFeatureSelect, 4, 0)
			g.write(regDriverFeature, 4, 0xffffffff)
			if c.status == 11 {
				require.Equal(t, uint64(uint32(c.features)), g.read(regDriverFeature, 4), "fixed by FEATURES_OK")
			}
		})
	}
	t.Run("DRIVER_OK before FEATURES_OK", func(t *testing.T) {
		g.write(regStatus, 1, 0)
		g.write(regStatus, 1, 7)
		require.Equal(t, uint64(3), g.status())
		require.Zero(t, g.dev.times())
	})
}

func TestQueueRegisters(t *testing.T) {
	g := newGuest(t, nil)
	require.Equal(t, uint64(2), g.read(regNumQueues, 2))
	g.negotiate(virtio.Version1)
	g.write(regQueueSelect, 2, 1)
	require.Equal(t, uint64(8), g.read(regQueueSize, 2))
	require.Equal(t, uint64(1), g.read(regQueueNotifyOff, 2))
	for _, bad := range []uint64{0, 3, 16, 0x8000} {
		g.write(regQueueSize, 2, bad)
		require.Equal(t, uint64(8), g.read(regQueueSize, 2), "%d", bad)
	}
	g.write(regQueueDesc, 8, 0x1234_5678_9abc_def0)
	require.Equal(t, uint64(0x1234_5678), g.read(regQueueDesc+4, 4))
	g.write(regQueueDesc+4, 4, 0xffff_ffff)
	require.Equal(t, uint64(0xffff_ffff_9abc_def0), g.read(regQueueDesc, 8))
	g.write(regQueueDesc+2, 2, 0) // not the register's width
	require.Equal(t, uint64(0xffff_ffff_9abc_def0), g.read(regQueueDesc, 8))

	g.enable(1)
	g.write(regQueueSize, 2, 8)
	require.Equal(t, uint64(4), g.read(regQueueSize, 2), "fixed while enabled")

	g.write(regQueueVector, 2, 2)
	require.Equal(t, uint64(2), g.read(regQueueVector, 2))
	g.write(regQueueVector, 2, 3)
	require.Equal(t, uint64(0xffff), g.read(regQueueVector, 2), "three vectors: 0 to 2")

	g.write(regQueueSelect, 2, 2)
	require.Zero(t, g.read(regQueueSize, 2), "no such queue")
	g.write(regQueueSize, 2, 4)
	g.write(regQueueEnable, 2, 1)
	require.Zero(t, g.read(regQueueEnable, 2))
}

func TestMSIX(t *testing.T) {
	for name, refuse := range map[string]bool{"ioeventfd": false, "kicks by exits": true} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, func(_ *device, h *host) { h.refuse = refuse })
			g.negotiate(virtio.Version1)
			g.enable(0)
			g.enable(1)
			for i := range uint64(2) {
				g.write(regQueueSelect, 2, i)
				g.write(regQueueVector, 2, i+1)
			}
			g.msix(0x8000)
			for i, v := range g.host.vectors {
				require.Equal(t, []string{"0xfee00000=0x40", "0xfee01000=0x41", "0xfee02000=0x42"}[i], v.message())
			}
			g.write(regStatus, 1, 15)
			for i := range uint64(2) {
				g.offer(i)
				g.kick(i)
				g.host.vectors[i+1].wait(t)
				require.Equal(t, uint32(1), g.usedIdx(i))
				_, _, used := ring(i)
				require.Equal(t, []byte{0, 0, 0, 0, 7, 0, 0, 0}, g.ram[used-ramStart+4:][:8], "id and length")
			}
			require.False(t, g.line.level())
			require.Zero(t, g.read(isrStart, 1))
		})
	}
}

// While a vector is masked, by itself or with the function, its interrupt is pending, and comes when it is unmasked.
func TestMasking(t *testing.T) {
	g := newGuest(t, nil)
	g.negotiate(virtio.Version1)
	g.enable(0)
	g.write(regQueueSelect, 2, 0)
	g.write(regQueueVector, 2, 1)
	g.msix(0x8000)
	g.write(regStatus, 1, 15)
	v := g.host.vectors[1]
	for name, mask := range map[string][2]func(){
		"entry":    {func() { g.write(tableStart+16+12, 4, 1) }, func() { g.write(tableStart+16+12, 4, 0) }},
		"function": {func() { g.configWrite(g.caps[-0x11]+2, 2, 0xc000) }, func() { g.configWrite(g.caps[-0x11]+2, 2, 0x8000) }},
	} {
		t.Run(name, func(t *testing.T) {
			mask[0]()
			require.Equal(t, "off", v.message())
			require.Zero(t, g.read(pbaStart, 8))
			g.offer(0)
			g.kick(0)
			g.until("pending", func() bool { return g.read(pbaStart, 8) == 2 })
			g.write(tableStart+16+8, 4, 0x99) // the message may change meanwhile
			mask[1]()
			require.Equal(t, "0xfee01000=0x99", v.message())
			require.Zero(t, g.read(pbaStart, 8))
			v.wait(t)
		})
	}
	require.Equal(t, uint64(0xfee01000), g.read(tableStart+16, 4))
	require.Equal(t, uint64(0x99), g.read(tableStart+24, 8))
}

func TestINTx(t *testing.T) {
	g := newGuest(t, nil)
	g.configWrite(4, 2, 0x0006)
	g.start()
	g.offer(1)
	g.kick(1)
	<-g.line.rises
	require.NotZero(t, g.configRead(6, 2)&8, "interrupt status")
	g.configWrite(4, 2, 0x0406)
	require.False(t, g.line.level(), "disabled")
	require.NotZero(t, g.configRead(6, 2)&8, "still")
	g.configWrite(4, 2, 0x0006)
	require.True(t, g.line.level())
	require.Equal(t, uint64(isrQueue), g.read(isrStart, 1))
	require.False(t, g.line.level(), "the read acknowledges")
	require.Zero(t, g.configRead(6, 2)&8)
	require.Zero(t, g.read(isrStart, 1))

	// A device half in the host's kernel signals an eventfd.
	g.tr.interrupts[0].Signal()
	require.Equal(t, uint64(isrQueue), g.read(isrStart, 1))
	<-g.line.rises
	require.Equal(t, g.tr.intx.forward.FD(), g.tr.interrupts[0].FD())
	g.tr.intx.forward.Signal()
	<-g.line.rises
	require.Equal(t, uint64(isrQueue), g.read(isrStart, 1))
}

func TestConfigChange(t *testing.T) {
	g := newGuest(t, nil)
	g.dev.changed()
	require.Equal(t, uint64(1), g.read(regGeneration, 1))
	require.Zero(t, g.read(isrStart, 1), "no driver")
	g.start()
	g.dev.changed()
	require.Equal(t, uint64(2), g.read(regGeneration, 1))
	require.Equal(t, uint64(isrConfig), g.read(isrStart, 1))
	g.write(regConfigVector, 2, 0)
	g.msix(0x8000)
	g.dev.changed()
	g.host.vectors[0].wait(t)
	g.write(configStart+2, 2, 0xabcd)
	require.Equal(t, uint64(0xabcd_0000), g.read(configStart, 4))
}

func TestReset(t *testing.T) {
	g := newGuest(t, func(d *device, _ *host) { d.hold = make(chan struct{}) })
	g.start()
	g.until("served", func() bool { return g.dev.times() == 1 })
	require.Equal(t, []bool{true, true}, g.dev.last)
	g.write(regStatus, 1, 0)
	require.Equal(t, uint64(15), g.status(), "the device has I/O in flight")
	require.NotZero(t, g.configRead(g.caps[-0x13]+5, 1), "transactions pending")
	g.write(regStatus, 1, 1)
	g.write(regQueueSelect, 2, 1)
	require.Zero(t, g.read(regStatus, 1)&^15, "nothing is accepted meanwhile")
	close(g.dev.hold)
	g.until("reset", func() bool { return g.status() == 0 })
	require.Zero(t, g.configRead(g.caps[-0x13]+5, 1))
	g.write(regQueueSelect, 2, 0)
	require.Equal(t, uint64(64), g.read(regQueueSize, 2))
	require.Zero(t, g.read(regQueueEnable, 2))

	g.start() // as a driver that is bound again
	g.offer(0)
	g.kick(0)
	g.until("used", func() bool { return g.read(isrStart, 1) == isrQueue })
	require.Equal(t, 2, g.dev.times())
}

func TestFunctionReset(t *testing.T) {
	g := newGuest(t, nil)
	g.start()
	g.msix(0x8000)
	require.Len(t, g.host.doorbells, 2)
	g.configWrite(g.caps[-0x13]+4, 1, 1)
	require.Empty(t, g.host.doorbells)
	require.Zero(t, g.configRead(4, 2), "command")
	require.Equal(t, uint64(4), g.configRead(0x10, 8), "BAR")
	require.Zero(t, g.configRead(g.caps[-0x11]+2, 2)&0xc000, "MSI-X")
	require.Equal(t, "off", g.host.vectors[1].message())
	g.until("stopped", func() bool { return g.configRead(g.caps[-0x13]+5, 1) == 0 })

	g.configWrite(0x10, 4, g.bar) // as Linux restores it
	g.configWrite(4, 2, 6)
	require.Zero(t, g.status())
	require.Equal(t, uint64(1), g.read(tableStart+12, 4), "masked")
	require.Len(t, g.host.doorbells, 2)
}

// A kernel that was started by kexec has the memory for itself as soon as the bus master bit is clear.
func TestBusMaster(t *testing.T) {
	g := newGuest(t, nil)
	g.start()
	g.configWrite(4, 2, 2)
	g.until("stopped", func() bool { return g.status() == 11 })
	g.write(regStatus, 1, 15)
	require.Equal(t, uint64(11), g.status(), "not without the right")
	g.configWrite(4, 2, 6)
	g.write(regStatus, 1, 0)
	g.start()
	require.Equal(t, uint64(15), g.status())
}

func TestNeedsReset(t *testing.T) {
	t.Run("broken ring", func(t *testing.T) {
		g := newGuest(t, nil)
		g.start()
		g.advance(0, 100)
		g.kick(0)
		g.until("needs reset", func() bool { return g.status() == 15|64 })
		require.Equal(t, uint64(isrConfig), g.read(isrStart, 1))
		g.write(regStatus, 1, 0)
		require.Zero(t, g.status())
		g.start()
		require.Equal(t, uint64(15), g.status())
	})
	t.Run("the device's error", func(t *testing.T) {
		g := newGuest(t, nil)
		g.start()
		g.dev.fail <- errors.New("no more")
		g.until("needs reset", func() bool { return g.status() == 15|64 })
	})
	t.Run("it returns", func(t *testing.T) {
		g := newGuest(t, nil)
		g.start()
		g.dev.fail <- nil
		g.until("needs reset", func() bool { return g.status() == 15|64 })
	})
	t.Run("a ring that is not in RAM", func(t *testing.T) {
		g := newGuest(t, nil)
		g.negotiate(virtio.Version1)
		g.enable(0)
		g.write(regQueueSelect, 2, 1)
		g.write(regQueueDesc, 8, 0x7fff_0000)
		g.write(regQueueEnable, 2, 1)
		g.write(regStatus, 1, 15)
		require.Equal(t, uint64(15|64), g.status())
		require.Zero(t, g.dev.times())
	})
}

// Firmware that has not mapped the BAR reaches it through configuration space.
func TestPCIAccess(t *testing.T) {
	g := newGuest(t, nil)
	at := g.caps[cfgPCI]
	access := func(off, n uint64) {
		g.configWrite(at+8, 4, off)
		g.configWrite(at+12, 4, n)
	}
	access(regStatus, 1)
	g.configWrite(at+16, 1, 1)
	require.Equal(t, uint64(1), g.status())
	require.Equal(t, uint64(1), g.configRead(at+16, 1))
	access(regNumQueues, 2)
	require.Equal(t, uint64(2), g.configRead(at+16, 2))
	for _, bad := range [][2]uint64{{barSize, 1}, {0, 8}, {0, 0}, {2, 4}, {0xffff_fffe, 2}} {
		access(bad[0], bad[1])
		g.configWrite(at+16, 4, 0)
		g.configRead(at+16, 4)
	}
	require.Equal(t, uint64(1), g.status())
}

func TestPartsUnknown(t *testing.T) {
	g := newGuest(t, nil)
	for off := uint64(0); off < barSize; off += 8 {
		if off < commonSize || off >= tableStart && off < tableStart+48 {
			continue
		}
		require.Zero(t, g.read(off, 8), "%#x", off)
		g.write(off, 8, 0) // also kicks
	}
}

func TestNewUnwinds(t *testing.T) {
	dev := newDevice()
	_, err := New(Config{Device: dev, Host: &host{failAfter: 2}, INTx: &line{}})
	require.ErrorContains(t, err, "no more") // and TestMain looks for what is left
}

// FuzzRegisters lets a guest write anything anywhere.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{1, regStatus, 0, 1, 1, regStatus, 0, 3, 4, regDriverFeatureSelect, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		g := newGuest(t, nil)
		g.start()
		for len(program) >= 4 {
			n := 1 << (program[0] & 3)
			off := uint64(program[1]) | uint64(program[2]&0x7f)<<8
			v := uint64(program[3])
			if program[0]&4 != 0 {
				v *= 0x0101_0101_0101_0101
			}
			switch program[0] >> 4 & 3 {
			case 0:
				g.write(off, n, v)
			case 1:
				g.read(off, n)
			case 2:
				g.configWrite(int(off&0xfc), min(n, 4), v)
			case 3:
				g.kick(off & 1)
			}
			program = program[4:]
		}
	})
}
