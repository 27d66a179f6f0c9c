package i8042

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices"
)

// guest sees a controller through its ports.
type guest struct {
	*Controller
	bus    devices.Bus
	resets int
}

func newGuest(t *testing.T) *guest {
	g := &guest{}
	g.Controller = New(Config{OnReset: func() {
		require.True(t, g.mu.TryLock(), "callback with the lock held")
		g.mu.Unlock()
		g.resets++
	}})
	require.NoError(t, g.bus.Add("i8042 data", DataPort, 1, g.Data()))
	require.NoError(t, g.bus.Add("i8042 command", CommandPort, 1, g.Command()))
	require.NoError(t, g.bus.Add("system control", SystemControlPort, 1, g.SystemControl()))
	return g
}

func (g *guest) in(port uint64) byte {
	p := []byte{0}
	g.bus.Read(port, p)
	return p[0]
}

func (g *guest) out(port uint64, v byte) { g.bus.Write(port, []byte{v}) }

// full reports whether an answer waits; a driver that finds bit 1 set would wait before it writes.
func (g *guest) full(t *testing.T) bool {
	s := g.in(CommandPort)
	require.Zero(t, s&0xa2, "status %#x", s)
	return s&statusOutputFull != 0
}

func TestInitialState(t *testing.T) {
	g := newGuest(t)
	require.Equal(t, byte(statusSystem|statusNotLocked), g.in(CommandPort))
	require.Equal(t, byte(0x02), g.in(SystemControlPort))
	require.Equal(t, byte(0), g.in(DataPort))
	require.Equal(t, byte(0xff), g.in(0x61), "the speaker's port is not ours")
}

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		name      string
		command   byte
		parameter []byte
		want      []byte // what the data port gives, if anything
	}{
		{"read command byte", 0x20, nil, []byte{0x45}},
		{"write command byte", 0x60, []byte{0x10}, nil},
		{"read RAM", 0x3f, nil, []byte{0x00}},
		{"password", 0xa4, nil, nil},
		{"disable mouse", 0xa7, nil, nil},
		{"enable mouse", 0xa8, nil, nil},
		{"test mouse", 0xa9, nil, []byte{0x01}},
		{"self-test", 0xaa, nil, []byte{0x55}},
		{"test keyboard", 0xab, nil, []byte{0x00}},
		{"disable keyboard", 0xad, nil, nil},
		{"enable keyboard", 0xae, nil, nil},
		{"read input port", 0xc0, nil, []byte{0x80}},
		{"read output port", 0xd0, nil, []byte{0x03}},
		{"write output port", 0xd1, []byte{0xdf}, nil},
		{"keyboard loop", 0xd2, []byte{0x5a}, []byte{0x5a}},
		{"mouse loop", 0xd3, []byte{0x5a}, []byte{0x5a}},
		{"write to mouse", 0xd4, nil, nil},
		{"read test inputs", 0xe0, nil, []byte{0x00}},
		{"pulse nothing", 0xff, nil, nil},
		{"pulse A20", 0xfd, nil, nil},
		{"unknown", 0x00, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t)
			g.out(CommandPort, tt.command)
			require.NotZero(t, g.in(CommandPort)&statusCommand)
			for _, v := range tt.parameter {
				require.False(t, g.full(t))
				g.out(DataPort, v)
				require.Zero(t, g.in(CommandPort)&statusCommand)
			}
			for _, v := range tt.want {
				require.True(t, g.full(t))
				require.Equal(t, v, g.in(DataPort))
			}
			require.False(t, g.full(t))
			require.Zero(t, g.resets)
		})
	}
}

func TestResetLine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes [][2]uint64 // port, value
		resets int
	}{
		{"pulse reset", [][2]uint64{{CommandPort, 0xfe}}, 1},
		{"pulse all", [][2]uint64{{CommandPort, 0xf0}}, 1},
		{"pulse others", [][2]uint64{{CommandPort, 0xf1}}, 0},
		{"twice", [][2]uint64{{CommandPort, 0xfe}, {CommandPort, 0xfe}}, 2},
		{"output port low", [][2]uint64{{CommandPort, 0xd1}, {DataPort, 0xde}}, 1},
		{"output port high", [][2]uint64{{CommandPort, 0xd1}, {DataPort, 0x01}}, 0},
		{"output port, no parameter", [][2]uint64{{CommandPort, 0xd1}, {CommandPort, 0xae}, {DataPort, 0x00}}, 0},
		{"keyboard reset", [][2]uint64{{DataPort, 0xfe}}, 0},
		{"system control", [][2]uint64{{SystemControlPort, 0x01}}, 1},
		{"system control, A20 alone", [][2]uint64{{SystemControlPort, 0x02}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t)
			for _, w := range tt.writes {
				g.out(w[0], byte(w[1]))
			}
			require.Equal(t, tt.resets, g.resets)
		})
	}
}

func TestRAM(t *testing.T) {
	g := newGuest(t)
	for n := byte(0); n < 0x20; n++ {
		g.out(CommandPort, 0x60+n)
		g.out(DataPort, n^0xa5)
	}
	for n := byte(0); n < 0x20; n++ {
		g.out(CommandPort, 0x20+n)
		require.Equal(t, n^0xa5, g.in(DataPort))
	}
}

func TestCommandByte(t *testing.T) {
	g := newGuest(t)
	read := func() byte { g.out(CommandPort, 0x20); return g.in(DataPort) }
	g.out(CommandPort, 0x60)
	g.out(DataPort, 0x00)
	require.Equal(t, byte(0x00), read())
	require.Zero(t, g.in(CommandPort)&statusSystem)
	g.out(CommandPort, 0xad)
	require.Equal(t, byte(0x10), read())
	g.out(CommandPort, 0xae)
	require.Equal(t, byte(0x00), read())
	g.out(CommandPort, 0xaa)
	require.Equal(t, byte(0x55), g.in(DataPort))
	require.NotZero(t, g.in(CommandPort)&statusSystem)
	require.Equal(t, byte(0x04), read())
}

func TestNoKeyboard(t *testing.T) {
	g := newGuest(t)
	g.out(DataPort, 0xf2) // identify
	require.True(t, g.full(t))
	require.NotZero(t, g.in(CommandPort)&statusTimeout)
	require.Equal(t, byte(0xfe), g.in(DataPort))
	require.Zero(t, g.in(CommandPort)&(statusTimeout|statusOutputFull))
	// The next answer is not a timeout, even where the last was left unread.
	g.out(DataPort, 0xf2)
	g.out(CommandPort, 0xaa)
	require.Zero(t, g.in(CommandPort)&statusTimeout)
	require.Equal(t, byte(0x55), g.in(DataPort))
}

func TestA20(t *testing.T) {
	g := newGuest(t)
	outputPort := func() byte { g.out(CommandPort, 0xd0); return g.in(DataPort) }
	g.out(CommandPort, 0xdd)
	require.Equal(t, byte(0x01), outputPort())
	require.Equal(t, byte(0x00), g.in(SystemControlPort))
	g.out(CommandPort, 0xdf)
	require.Equal(t, byte(0x03), outputPort())
	g.out(SystemControlPort, 0x00)
	require.Equal(t, byte(0x01), outputPort())
	g.out(SystemControlPort, 0x02)
	require.Equal(t, byte(0x03), outputPort())
	g.out(CommandPort, 0xd1)
	g.out(DataPort, 0xdd)
	require.Equal(t, byte(0x00), g.in(SystemControlPort))
	require.Equal(t, byte(0xcd), outputPort())
	g.out(CommandPort, 0xaa) // leaves an answer unread, which the output port shows
	require.Equal(t, byte(0xdd), outputPort())
	require.Zero(t, g.resets)
}

// TestLinuxRestart does what Linux's native_machine_emergency_restart does.
func TestLinuxRestart(t *testing.T) {
	g := newGuest(t)
	require.Zero(t, g.in(CommandPort)&0x02, "kb_wait")
	g.out(CommandPort, 0xfe)
	require.Equal(t, 1, g.resets)
}

func TestNoCallback(t *testing.T) {
	c := New(Config{})
	require.NotPanics(t, func() { c.Command().Write(0, []byte{0xfe}) })
}

func FuzzI8042(f *testing.F) {
	f.Add([]byte{0, 0xd1, 1, 0xde, 2, 3, 3, 0, 4, 0, 5, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newGuest(t)
		for len(ops) >= 2 {
			op, v := ops[0], ops[1]
			ops = ops[2:]
			before, pending := g.resets, g.state.pending
			port := []uint64{CommandPort, DataPort, SystemControlPort}[op%3]
			if op&0x80 != 0 {
				g.in(port)
				require.Equal(t, before, g.resets)
			} else {
				g.out(port, v)
				reset := port == CommandPort && v >= 0xf0 && v&1 == 0 ||
					port == DataPort && pending == 0xd1 && v&1 == 0 ||
					port == SystemControlPort && v&1 != 0
				require.Equal(t, reset, g.resets > before)
			}
			g.full(t)
			require.NotZero(t, g.in(CommandPort)&statusNotLocked)
			require.Zero(t, g.in(SystemControlPort)&^2)
		}
	})
}
