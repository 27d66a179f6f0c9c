package machine

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/devices/power"
	"vmm/internal/kvmtest"
)

// kernel returns the least that loads as a kernel: an ELF file whose only segment is a jump to itself at 1 MiB.
func kernel() Image {
	f := make([]byte, 64+56+2)
	copy(f, "\x7fELF\x02\x01\x01")
	for off, v := range map[int]byte{
		16: 2, 18: 62, 20: 1, 26: 0x10, 32: 64, 52: 64, 54: 56, 56: 1, // ET_EXEC, EM_X86_64, entry, headers
		64: 1, 68: 5, 72: 120, 82: 0x10, 90: 0x10, 96: 2, 104: 2, 112: 1, // PT_LOAD of two bytes at 0x10_0000
		120: 0xeb, 121: 0xfe,
	} {
		f[off] = v
	}
	return bytes.NewReader(f)
}

// The button may be pressed at any time: also while the board that it is wired to goes away.
func TestPowerButtonDuringRetire(t *testing.T) {
	kvmtest.Require(t)
	const status, enable, button = portPM + power.EventOffset, portPM + power.EventOffset + 2, 1 << 8
	m, err := New(Config{Kernel: kernel(), Memory: MinMemory})
	require.NoError(t, err)
	defer func() { require.NoError(t, m.Close()) }()
	b, err := m.start(func() {})
	require.NoError(t, err)
	b.pio.Write(enable, []byte{0, button >> 8})

	pressing, retired, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		m.PowerButton()
		close(pressing)
		for {
			b.pio.Write(status, []byte{0, button >> 8}) // so that the next press makes the line rise again
			m.PowerButton()
			select {
			case <-retired:
				return
			default:
			}
		}
	}()
	<-pressing
	m.retire(b)
	close(retired)
	<-done
	close(m.done)
}

// New unwinds all that it did, at whichever of its descriptors it fails.
func TestNewUnwinds(t *testing.T) {
	kvmtest.Require(t)
	cfg := Config{Kernel: kernel(), Memory: MinMemory, CPUs: 3}
	before := holdings(t)

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	probe, err := os.Open(os.DevNull)
	require.NoError(t, err)
	first := uint64(probe.Fd()) // the number that New's first descriptor gets
	require.NoError(t, probe.Close())

	const descriptors = 1 + 1 + 3 // the device, the VM, the vCPUs
	for n := range uint64(descriptors) {
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: first + n, Max: limit.Max}))
		m, err := New(cfg)
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
		require.ErrorIs(t, err, unix.EMFILE, "with %d descriptors", n)
		require.Nil(t, m)
		require.Equal(t, before, holdings(t), "with %d descriptors", n)
	}
	cfg.Kernel = strings.NewReader("no kernel")
	_, err = New(cfg)
	require.Error(t, err)
	require.Equal(t, before, holdings(t))
}

// holdings lists the open files and the mappings of KVM's files.
func holdings(t *testing.T) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var held []string
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			held = append(held, fd.Name()+" "+target)
		}
	}
	mappings, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	for line := range strings.Lines(string(mappings)) {
		if strings.Contains(line, "kvm") {
			held = append(held, line)
		}
	}
	return held
}
