package machine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/kvmtest"
	"vmm/internal/leak"
	"vmm/machine"
)

func TestMain(m *testing.M) { leak.Main(m) }

// boot makes a machine that runs p and closes it after the test.
func boot(t *testing.T, p payload, change func(*machine.Config)) *machine.Machine {
	t.Helper()
	kvmtest.Require(t)
	cfg := machine.Config{Kernel: p.image(), Memory: 16 << 20}
	if change != nil {
		change(&cfg)
	}
	m, err := machine.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func TestExits(t *testing.T) {
	debug := func(c *machine.Config) { c.DebugExit = true }
	tests := []struct {
		name    string
		payload payload
		change  func(*machine.Config)
		want    machine.Exit
	}{
		{"S5", powerOff, nil, machine.Exit{Reason: machine.PowerOff, Source: "ACPI S5"}},
		{"ACPI reset register", resetACPI, nil, machine.Exit{Reason: machine.Reset, Source: "ACPI reset register"}},
		{"keyboard controller", resetKeyboard, nil, machine.Exit{Reason: machine.Reset, Source: "keyboard controller"}},
		{"port 0x92", resetPort92, nil, machine.Exit{Reason: machine.Reset, Source: "keyboard controller"}},
		{"triple fault", tripleFault, nil, machine.Exit{Reason: machine.Reset, Source: "triple fault"}},
		{"debug exit", debugExit, debug, machine.Exit{Reason: machine.DebugExit, Code: 42}},
		{"reads of nothing are ones", holes, debug, machine.Exit{Reason: machine.DebugExit, Code: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := boot(t, tt.payload, tt.change).Run(t.Context())
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestSerialOutput(t *testing.T) {
	line := newTerminal()
	exit, err := boot(t, hello, func(c *machine.Config) { c.Serial = line }).Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, machine.PowerOff, exit.Reason)
	require.Equal(t, "hello, world\n", line.String(), "all that the guest sent before it powered off")
}

// Polled output is coalesced: the first character of a burst leaves the guest, the others wait in KVM for the next exit.
func TestSerialOutputModes(t *testing.T) {
	line := newTerminal()
	m := boot(t, outputModes, func(c *machine.Config) { c.Serial, c.Trace = line, true })
	_, err := m.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, "abcdefgh", line.String())
	exits := make(map[uint64]uint64)
	for _, c := range m.Stats().Ports {
		exits[c.Addr] = c.Count
	}
	require.Equal(t, map[uint64]uint64{
		0x3f8: 1 + 2 + 1, // a; d and e; f
		0x3f9: 2,
		0x604: 1,
	}, exits)
}

func TestSerialOutputOfAGuestThatSpins(t *testing.T) {
	line := newTerminal()
	m := boot(t, spinAfterOutput, func(c *machine.Config) { c.Serial = line })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		line.waitFor("xxx")
		cancel()
	}()
	_, err := m.Run(ctx)
	require.NoError(t, err)
}

func TestSerialEcho(t *testing.T) {
	line := newTerminal()
	m := boot(t, echo, func(c *machine.Config) { c.Serial = line })
	text := strings.Repeat("0123456789abcdefghijklmnoprstuvwxyz\n", 1<<7) + "q"
	go func() { _, _ = io.WriteString(line.typed, text) }()
	exit, err := m.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, machine.PowerOff, exit.Reason)
	require.Equal(t, text, line.String(), "nothing lost, nothing twice")
}

func TestPowerButton(t *testing.T) {
	line := newTerminal()
	m := boot(t, button, func(c *machine.Config) { c.Serial = line })
	m.PowerButton() // before Run there is nobody to press it for
	go func() {
		line.waitFor("r")
		m.PowerButton()
	}()
	exit, err := m.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, machine.PowerOff, exit.Reason)
}

func TestRestartInPlace(t *testing.T) {
	line := newTerminal()
	m := boot(t, bootMark, func(c *machine.Config) {
		c.Serial = line
		c.RestartOnReset = true
		c.Trace = true
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		line.waitFor("bbbbb")
		cancel()
	}()
	exit, err := m.Run(ctx)
	require.NoError(t, err)
	require.Equal(t, machine.Stopped, exit.Reason)
	resets := uint64(0)
	for _, c := range m.Stats().Ports {
		if c.Addr == 0x64 {
			resets = c.Count
		}
	}
	require.GreaterOrEqual(t, resets, uint64(4), "the counts go on over resets")
}

// TestReload: the first boot resets, and the next gets another kernel; then the disk has none any more.
func TestReload(t *testing.T) {
	for _, tt := range []struct {
		name   string
		reload func() (machine.Boot, error)
		want   machine.Exit
		err    string
	}{
		{
			name:   "another kernel",
			reload: func() (machine.Boot, error) { return machine.Boot{Kernel: powerOff.image()}, nil },
			want:   machine.Exit{Reason: machine.PowerOff, Source: "ACPI S5"},
		},
		{
			name:   "no kernel any more",
			reload: func() (machine.Boot, error) { return machine.Boot{}, errors.New("no kernel on the disk") },
			err:    "reset: no kernel on the disk",
		},
		{
			name:   "no kernel, and no error either",
			reload: func() (machine.Boot, error) { return machine.Boot{}, nil },
			err:    "reset: Kernel: not set",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := boot(t, bootMark, func(c *machine.Config) { c.RestartOnReset, c.Reload = true, tt.reload })
			exit, err := m.Run(t.Context())
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, tt.want, exit)
		})
	}
}

func TestStop(t *testing.T) {
	for _, cpus := range []int{1, 5} {
		for name, p := range map[string]payload{"spinning": spin, "halted": halt} {
			t.Run(fmt.Sprintf("%s with %d vCPUs", name, cpus), func(t *testing.T) {
				m := boot(t, p, func(c *machine.Config) { c.CPUs = cpus })
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				exit, err := m.Run(ctx)
				require.NoError(t, err)
				require.Equal(t, machine.Exit{Reason: machine.Stopped}, exit)
			})
		}
	}
}

func TestCloseWhileRunning(t *testing.T) {
	line := newTerminal()
	m := boot(t, echo, func(c *machine.Config) { c.Serial = line })
	done := make(chan machine.Exit)
	go func() {
		exit, _ := m.Run(t.Context())
		done <- exit
	}()
	_, err := line.typed.Write([]byte("a")) // taken only when Run serves the line
	require.NoError(t, err)
	require.NoError(t, m.Close())
	require.Equal(t, machine.Stopped, (<-done).Reason)
	_, err = m.Run(t.Context())
	require.ErrorIs(t, err, machine.ErrClosed)
}

func TestRunTwice(t *testing.T) {
	m := boot(t, powerOff, nil)
	_, err := m.Run(t.Context())
	require.NoError(t, err)
	_, err = m.Run(t.Context())
	require.ErrorIs(t, err, machine.ErrAlreadyRun)
}

func TestSideBySide(t *testing.T) {
	const n = 4
	exits := make(chan error, n)
	for i := range n {
		line := newTerminal()
		m := boot(t, echo, func(c *machine.Config) { c.Serial = line })
		text := strings.Repeat(strconv.Itoa(i), 200) + "q"
		go func() { _, _ = io.WriteString(line.typed, text) }()
		go func() {
			_, err := m.Run(t.Context())
			if err == nil && line.String() != text {
				err = fmt.Errorf("machine %d: wrote %.20q", i, line.String())
			}
			exits <- err
		}()
	}
	for range n {
		require.NoError(t, <-exits)
	}
}

func TestCrash(t *testing.T) {
	_, err := boot(t, unemulatable, nil).Run(t.Context())
	var crash *machine.CrashError
	require.ErrorAs(t, err, &crash)
	require.Equal(t, 0, crash.CPU)
	require.NotNil(t, crash.Regs)
	require.Equal(t, uint64(0xd000_0000), crash.Regs.RAX)
	require.NotEmpty(t, crash.Diagnosis)
	require.NotContains(t, crash.Error(), "\n")
	require.Contains(t, crash.Detail(), "RAX 00000000d0000000")
	if len(crash.Instruction) > 0 { // an older KVM does not tell
		require.Equal(t, []byte{0xd9, 0x00}, crash.Instruction[:2])
		require.Contains(t, crash.Detail(), "instruction: d9 00")
	}
}

func TestUnclaimedAccesses(t *testing.T) {
	m := boot(t, holes, func(c *machine.Config) { c.DebugExit, c.Trace = true, true })
	_, err := m.Run(t.Context())
	require.NoError(t, err)
	s := m.Stats()
	require.Equal(t, uint64(4), s.Unclaimed)
	require.Equal(t, []machine.AccessCount{{Addr: 0x5555, Port: true, Count: 2}, {Addr: 0xd000_0000, Count: 2}}, s.Holes)
	require.Contains(t, s.Ports, machine.AccessCount{Addr: 0xf4, Port: true, Count: 1})
	require.Equal(t, uint64(3), s.Exits["KVM_EXIT_IO"])
	require.Equal(t, uint64(2), s.Exits["KVM_EXIT_MMIO"])
}

func TestConfigErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(*machine.Config)
		field  string
		want   string
	}{
		{"no kernel", func(c *machine.Config) { c.Kernel = nil }, "Kernel", "not set"},
		{"not a kernel", func(c *machine.Config) { c.Kernel = bytes.NewReader(make([]byte, 8192)) }, "Kernel", "not a kernel"},
		{"odd memory", func(c *machine.Config) { c.Memory = 16<<20 + 1 }, "Memory", "not a multiple of 4096"},
		{"too little memory", func(c *machine.Config) { c.Memory = 1 << 20 }, "Memory", "less than the least possible, 2048 KiB"},
		{"too much memory", func(c *machine.Config) { c.Memory = 1 << 62 }, "Memory", "physical addresses"},
		{"negative CPUs", func(c *machine.Config) { c.CPUs = -1 }, "CPUs", "between 1 and 64"},
		{"too many CPUs", func(c *machine.Config) { c.CPUs = 65 }, "CPUs", "between 1 and 64"},
		{"a huge initrd", func(c *machine.Config) { c.Initrd = hugeImage{} }, "Initrd", "too large"},
		{"a long command line", func(c *machine.Config) { c.Cmdline = strings.Repeat("x", 1<<20) }, "Cmdline", "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kvmtest.Require(t)
			cfg := machine.Config{Kernel: powerOff.image(), Memory: 16 << 20}
			tt.change(&cfg)
			_, err := machine.New(cfg)
			var bad *machine.ConfigError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, tt.field, bad.Field)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// hugeImage is a file of one exbibyte.
type hugeImage struct{}

func (hugeImage) ReadAt([]byte, int64) (int, error) { return 0, errors.New("must not be read") }
func (hugeImage) Size() int64                       { return 1 << 60 }
