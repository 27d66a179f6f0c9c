package debugport

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/devices"
)

func TestPOST(t *testing.T) {
	var d POST
	var bus devices.Bus
	require.NoError(t, bus.Add("post", POSTPort, POSTSize, &d))
	require.Zero(t, d.Code())
	p := []byte{0xff}
	bus.Read(POSTPort, p)
	require.Equal(t, []byte{0}, p)
	bus.Write(POSTPort, []byte{0x55})
	bus.Write(POSTPort, []byte{0xaa})
	require.Equal(t, byte(0xaa), d.Code())
	bus.Read(POSTPort, p)
	require.Equal(t, []byte{0xaa}, p)
}

func TestExit(t *testing.T) {
	for _, tt := range []struct {
		off   uint64
		write []byte
		want  []uint32
	}{
		{0, []byte{0x2a}, []uint32{0x2a}},
		{0, []byte{0x2a, 0x01}, []uint32{0x12a}},
		{0, []byte{0xef, 0xbe, 0xad, 0xde}, []uint32{0xdeadbeef}},
		{0, []byte{0}, []uint32{0}},
		{1, []byte{0x2a}, nil},
		{2, []byte{0x2a, 0x2a}, nil},
	} {
		var got []uint32
		d := &Exit{OnExit: func(code uint32) { got = append(got, code) }}
		d.Write(tt.off, tt.write)
		require.Equal(t, tt.want, got, "%x at %d", tt.write, tt.off)
	}
}

func TestExitReads(t *testing.T) {
	p := make([]byte, 4)
	(&Exit{}).Read(0, p)
	require.Equal(t, []byte{0xff, 0xff, 0xff, 0xff}, p)
}

func FuzzPorts(f *testing.F) {
	f.Add(uint8(0), uint8(4), []byte{1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, off, width uint8, p []byte) {
		var exits []uint32
		var bus devices.Bus
		post := &POST{}
		require.NoError(t, bus.Add("post", POSTPort, POSTSize, post))
		require.NoError(t, bus.Add("exit", ExitPort, ExitSize, &Exit{OnExit: func(c uint32) { exits = append(exits, c) }}))
		p = append(p, make([]byte, 8)...)[:width%9]
		bus.Write(POSTPort+uint64(off%3), p)
		bus.Write(ExitPort+uint64(off%8), p)
		if len(p) == 1 && off%3 == 0 {
			require.Equal(t, p[0], post.Code())
		} else {
			require.Zero(t, post.Code())
		}
		if off%8 == 0 && len(p) >= 1 && len(p) <= ExitSize {
			require.Len(t, exits, 1)
			require.Equal(t, p[0], byte(exits[0]))
		} else {
			require.Empty(t, exits)
		}
		bus.Read(POSTPort+uint64(off%3), p)
		bus.Read(ExitPort+uint64(off%8), p)
	})
}
