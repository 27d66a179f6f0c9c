package console

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// feed runs the machine over input and returns what passes, and the keys.
func feed(input []byte) (passed []byte, keys []Key) {
	var e escape
	for _, b := range input {
		key, pass := e.next(b)
		if pass {
			passed = append(passed, b)
		}
		if key != 0 {
			keys = append(keys, key)
		}
	}
	return passed, keys
}

func TestEscape(t *testing.T) {
	for _, tt := range []struct {
		name, input, passed string
		keys                []Key
	}{
		{name: "text", input: "ls -l\r", passed: "ls -l\r"},
		{name: "control keys are the guest's", input: "\x03\x04\x1a\x1c\x11\x13\x00\xff", passed: "\x03\x04\x1a\x1c\x11\x13\x00\xff"},
		{name: "quit", input: "a\x01xb", passed: "ab", keys: []Key{KeyQuit}},
		{name: "capital", input: "\x01X", keys: []Key{KeyQuit}},
		{name: "break", input: "\x01bh", passed: "h", keys: []Key{KeyBreak}},
		{name: "help", input: "\x01h\x01?", keys: []Key{KeyHelp, KeyHelp}},
		{name: "literal", input: "\x01\x01x", passed: "\x01x"},
		{name: "two literals", input: "\x01\x01\x01\x01", passed: "\x01\x01"},
		{name: "literal, then quit", input: "\x01\x01\x01x", passed: "\x01", keys: []Key{KeyQuit}},
		{name: "meaningless", input: "\x01zx", passed: "x"},
		{name: "unfinished", input: "abc\x01", passed: "abc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			passed, keys := feed([]byte(tt.input))
			require.Equal(t, tt.passed, string(passed))
			require.Equal(t, tt.keys, keys)
		})
	}
}

// FuzzEscape checks that text is never touched, and that no byte is made up or changed.
func FuzzEscape(f *testing.F) {
	f.Add([]byte("abc\x01x\x01\x01\x01b"))
	f.Fuzz(func(t *testing.T, input []byte) {
		passed, keys := feed(input)
		if !bytes.Contains(input, []byte{prefix}) {
			require.True(t, bytes.Equal(input, passed))
			require.Empty(t, keys)
		}
		require.LessOrEqual(t, len(passed)+2*len(keys), len(input))
		// Doubling each prefix sends any text to the guest as it is.
		whole, keys := feed(bytes.ReplaceAll(input, []byte{prefix}, []byte{prefix, prefix}))
		require.True(t, bytes.Equal(input, whole))
		require.Empty(t, keys)
	})
}
