package console

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeyboardBreakKeepsItsPlace(t *testing.T) {
	var got strings.Builder
	k := newKeyboard(strings.NewReader("ab\x01b\x01bc\x01b"), func(key Key) {
		require.Equal(t, KeyBreak, key)
		got.WriteByte('!')
	})
	p := make([]byte, 10)
	for {
		n, err := k.Read(p)
		got.Write(p[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	require.Equal(t, "ab!!c!", got.String())
}

func TestKeyboardHearsKeysWhileTheGuestDoesNotRead(t *testing.T) {
	in, terminal := io.Pipe()
	keys := make(chan Key)
	k := newKeyboard(in, func(key Key) { keys <- key })
	go func() { _, _ = terminal.Write([]byte(strings.Repeat("y", 100_000) + "\x01x")) }()
	n, err := k.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, KeyQuit, <-keys) // 99,999 bytes wait to be read

	require.NoError(t, terminal.CloseWithError(os.ErrClosed)) // as a file's Close ends its Read
	k.stop(os.ErrClosed)
	rest, err := io.ReadAll(k)
	require.ErrorIs(t, err, os.ErrClosed)
	require.Len(t, rest, 99_999)
}

func TestKeyboardHoldsBackAFlood(t *testing.T) {
	in, terminal := io.Pipe()
	k := newKeyboard(in, func(Key) {})
	const size = 3*maxTyped + 123
	go func() {
		_, _ = terminal.Write([]byte(strings.Repeat("z", size)))
		_ = terminal.Close()
	}()
	all, err := io.ReadAll(k)
	require.NoError(t, err)
	require.Len(t, all, size)
	require.LessOrEqual(t, cap(k.typed), 3*maxTyped)
	k.stop(os.ErrClosed)
}

func TestKeyboardStops(t *testing.T) {
	t.Run("before it was read", func(t *testing.T) {
		k := newKeyboard(strings.NewReader("abc"), nil)
		k.stop(os.ErrClosed)
		_, err := k.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrClosed)
	})
	t.Run("while it is full", func(t *testing.T) {
		k := newKeyboard(strings.NewReader(strings.Repeat("z", 2*maxTyped)), nil)
		_, err := k.Read(make([]byte, 1))
		require.NoError(t, err)
		k.stop(os.ErrClosed)
	})
}
