package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMemorySize(t *testing.T) {
	const notASize = "not a size (use for example 512M or 2G)"
	for _, tt := range []struct {
		in   string
		want uint64
		out  string
		err  string
	}{
		{in: "1G", want: 1 << 30, out: "1G"},
		{in: "512M", want: 512 << 20, out: "512M"},
		{in: "512", want: 512 << 20, out: "512M"},
		{in: "1024", want: 1 << 30, out: "1G"},
		{in: "4k", want: 4096, out: "4K"},
		{in: "6g", want: 6 << 30, out: "6G"},
		{in: "2T", want: 2 << 40, out: "2T"},
		{in: "2048T", want: 2 << 50, out: "2048T"},
		{in: "1536M", want: 1536 << 20, out: "1536M"},
		{in: "0064M", want: 64 << 20, out: "64M"},
		{in: "16777215T", want: 16777215 << 40, out: "16777215T"},
		{in: "16777216T", err: "more than any machine can address"},
		{in: "99999999999999999999", err: "more than any machine can address"},
		{in: "18446744073709551615K", err: "more than any machine can address"},
		{in: "0", err: "a machine needs memory (use for example 512M or 2G)"},
		{in: "0G", err: "a machine needs memory (use for example 512M or 2G)"},
		{in: "", err: notASize},
		{in: "G", err: notASize},
		{in: "100X", err: notASize},
		{in: "1GG", err: notASize},
		{in: "1GB", err: notASize},
		{in: "1GiB", err: notASize},
		{in: "1.5G", err: notASize},
		{in: "-1G", err: notASize},
		{in: "+1G", err: notASize},
		{in: " 1G", err: notASize},
		{in: "1 G", err: notASize},
		{in: "0x10M", err: notASize},
		{in: "1_000M", err: notASize},
		{in: "1\u216aM", err: notASize},
	} {
		t.Run(tt.in, func(t *testing.T) {
			var m memorySize
			err := m.Set(tt.in)
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				require.Zero(t, m)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, uint64(m))
			require.Equal(t, tt.out, m.String())
		})
	}
}

func FuzzMemorySize(f *testing.F) {
	for _, s := range []string{"1G", "512", "16777216T", "100X", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var m, again memorySize
		if m.Set(s) != nil {
			require.Zero(t, m)
			return
		}
		require.NotZero(t, m)
		require.Zero(t, m%1024)
		require.NoError(t, again.Set(m.String()))
		require.Equal(t, m, again)
	})
}

func TestCPUCount(t *testing.T) {
	var c cpuCount
	for _, s := range []string{"1", "64"} {
		require.NoError(t, c.Set(s))
		require.Equal(t, s, c.String())
	}
	for _, s := range []string{"", "0", "65", "-1", "two", "1.5", "0x4", "99999999999999999999"} {
		require.EqualError(t, c.Set(s), "not a number from 1 to 64", s)
	}
}

func TestGracePeriod(t *testing.T) {
	var g gracePeriod
	for s, want := range map[string]time.Duration{"30s": 30 * time.Second, "2m": 2 * time.Minute, "10": 10 * time.Second, "0": 0} {
		require.NoError(t, g.Set(s))
		require.Equal(t, want, time.Duration(g), s)
	}
	for _, s := range []string{"", "-1", "-1s", "soon", "1d", "9999999999999", "99999999999999999999"} {
		require.EqualError(t, g.Set(s), "not a time (use for example 30s or 2m)", s)
	}
}

func TestSerialTarget(t *testing.T) {
	var s serialTarget
	for in, want := range map[string]serialTarget{
		"stdio":      {kind: serialStdio},
		"pty":        {kind: serialPTY},
		"none":       {kind: serialNone},
		"file:a:b":   {kind: serialFile, path: "a:b"},
		"unix:/tmp/": {kind: serialUnix, path: "/tmp/"},
	} {
		require.NoError(t, s.Set(in))
		require.Equal(t, want, s)
		require.Equal(t, in, s.String())
	}
	for in, want := range map[string]string{
		"":         "not a serial target (use stdio, file:PATH, pty, unix:PATH or none)",
		"stdio:":   "not a serial target (use stdio, file:PATH, pty, unix:PATH or none)",
		"none:x":   "not a serial target (use stdio, file:PATH, pty, unix:PATH or none)",
		"tcp:1234": "not a serial target (use stdio, file:PATH, pty, unix:PATH or none)",
		"/dev/tty": "not a serial target (use stdio, file:PATH, pty, unix:PATH or none)",
		"file":     "needs a path (file:PATH)",
		"file:":    "needs a path (file:PATH)",
		"unix:":    "needs a path (unix:PATH)",
	} {
		require.EqualError(t, s.Set(in), want, in)
	}
}
