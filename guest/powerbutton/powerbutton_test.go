package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWaitForKey(t *testing.T) {
	stream := func(events ...event) *bytes.Buffer {
		var b bytes.Buffer
		for _, e := range events {
			require.NoError(t, binary.Write(&b, binary.LittleEndian, e))
		}
		return &b
	}
	sync := event{}
	up := event{Type: evKey, Code: keyPower}
	other := event{Type: evKey, Code: 30, Value: 1}
	down := event{Type: evKey, Code: keyPower, Value: 1}

	require.ErrorIs(t, waitForKey(stream(sync, up, other)), io.EOF)
	events := stream(up, other, down, sync)
	require.NoError(t, waitForKey(events))
	require.Equal(t, 24, events.Len(), "it reads no further")
}
