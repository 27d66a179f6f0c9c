package main

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUserMAC: a guest finds the card of its first boot again, unless its user wants another.
func TestUserMAC(t *testing.T) {
	address := func(text string) string {
		var o bootOptions
		require.NoError(t, o.nics.Set(text))
		dev, backend, err := o.nics[0].open(&o, &deviceSet{})
		require.NoError(t, err)
		defer backend.Close()
		mac := make(net.HardwareAddr, 6)
		dev.ReadConfig(0, mac)
		return mac.String()
	}
	first := address("user")
	require.Equal(t, first, address("user"))
	require.Equal(t, "02:00:00:00:00:07", address("user,mac=02:00:00:00:00:07"))
}
