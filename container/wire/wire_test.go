package wire_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/container/wire"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	c := wire.NewConn(&b)
	require.NoError(t, c.Send(wire.TypeStart, wire.Process{Version: wire.Version, ID: 7, Args: []string{"ls"}}))
	require.NoError(t, c.SendBytes(wire.TypeStdout, []byte("hello")))
	require.NoError(t, c.Send(wire.TypeDone, nil))
	require.NoError(t, c.Send(wire.TypeFailed, &wire.Failed{Message: "no", Status: 127}))

	var p wire.Process
	require.NoError(t, c.Expect(wire.TypeStart, &p))
	require.Equal(t, wire.Process{Version: 1, ID: 7, Args: []string{"ls"}}, p)
	typ, payload, err := c.Receive()
	require.NoError(t, err)
	require.Equal(t, wire.TypeStdout, typ)
	require.Equal(t, "hello", string(payload))
	require.NoError(t, c.Expect(wire.TypeDone, nil))
	var f *wire.Failed
	require.ErrorAs(t, c.Expect(wire.TypeDone, nil), &f)
	require.Equal(t, &wire.Failed{Message: "no", Status: 127}, f)
	_, _, err = c.Receive()
	require.ErrorIs(t, err, io.EOF)
}

// TestBadFrames has errors for what no side would send.
func TestBadFrames(t *testing.T) {
	for name, c := range map[string]struct{ data, want string }{
		"long":      {"\x01\xff\xff\xff\xff", "a frame of 4294967295 bytes: at most 1048576"},
		"cut":       {"\x01\x05\x00\x00\x00ab", "unexpected EOF"},
		"cut early": {"\x01\x05", "unexpected EOF"},
		"no body":   {"\x01\x05\x00\x00\x00", "unexpected EOF"},
		"type":      {"\x02\x02\x00\x00\x00{}", "a frame of type 2, not 1"},
		"json":      {"\x01\x02\x00\x00\x00{x", "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			err := wire.NewConn(bytes.NewBufferString(c.data)).Expect(wire.TypeHello, &wire.Hello{})
			require.ErrorContains(t, err, c.want)
		})
	}
	require.Error(t, wire.NewConn(&bytes.Buffer{}).SendBytes(wire.TypeStdout, make([]byte, wire.MaxPayload+1)))
}
