package wire_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/test/lab/wire"
)

func TestFrameBytes(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, wire.NewConn(&b).Write(wire.Stdout, 0x01020304, []byte("hi")))
	require.Equal(t, "\x05\x04\x03\x02\x01\x02\x00\x00\x00hi", b.String())
}

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	c := wire.NewConn(&b)
	require.NoError(t, c.WriteJSON(wire.Exit, 7, wire.Result{Status: 3}))
	big := bytes.Repeat([]byte("x"), wire.MaxPayload+1)
	n, err := c.Output(wire.Stderr, 8).Write(big)
	require.NoError(t, err)
	require.Equal(t, len(big), n)

	f, err := c.Read()
	require.NoError(t, err)
	require.Equal(t, wire.Frame{Kind: wire.Exit, Session: 7, Payload: []byte(`{"Status":3,"Error":""}`)}, f)
	var got []byte
	for _, size := range []int{wire.MaxPayload, 1} {
		f, err := c.Read()
		require.NoError(t, err)
		require.Equal(t, wire.Stderr, f.Kind)
		require.Len(t, f.Payload, size)
		got = append(got, f.Payload...)
	}
	require.Equal(t, big, got)
	_, err = c.Read()
	require.ErrorIs(t, err, io.EOF)
}

func TestBadStreams(t *testing.T) {
	for name, c := range map[string]struct{ stream, want string }{
		"header cut off":  {"\x05\x00", "unexpected EOF"},
		"payload cut off": {"\x05\x01\x00\x00\x00\x04\x00\x00\x00hi", "frame of 4 bytes cut off: unexpected EOF"},
		"too large":       {"\x05\x01\x00\x00\x00\x00\x00\x00\x80", "frame of 2147483648 bytes, more than 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := wire.NewConn(bytes.NewBufferString(c.stream)).Read()
			require.EqualError(t, err, c.want)
		})
	}
	require.Error(t, wire.NewConn(&bytes.Buffer{}).Write(wire.Stdin, 1, make([]byte, wire.MaxPayload+1)))
}
