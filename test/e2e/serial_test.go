package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSerialStress moves more through the serial line than any of its buffers holds.
func TestSerialStress(t *testing.T) {
	h := kvmHost(t)
	g := h.boot(t, "vmlinuz-6.12", "-append", "quiet", "-mem", "256M")

	var text strings.Builder
	for i := 0; text.Len() < 64<<10; i++ {
		fmt.Fprintf(&text, "%06d ", i)
		if i%100 == 99 { // a terminal takes at most 4095 characters in a line
			text.WriteByte('\n')
		}
	}
	text.WriteByte('\n')
	t.Run("64 KiB pasted through a cat", func(t *testing.T) {
		g.during(t)
		g.send("stty ~echo >/dev/null; echo go''; tee /pasted | cat; echo after''wards\n")
		g.expect("go\r\n")
		g.send(text.String())
		const endOfTransmission = "\x04"
		g.send(endOfTransmission)
		requireSame(t, text.String(), strings.ReplaceAll(g.expect("afterwards\r\n"), "\r\n", "\n"))
		g.expect(prompt)
		g.sh("stty echo >/dev/null")
		require.Equal(t, strconv.Itoa(text.Len()), strings.TrimSpace(g.sh("wc -c </pasted")))
	})
	t.Run("each byte value", func(t *testing.T) {
		g.during(t)
		var all strings.Builder
		for i := range 4 << 10 {
			all.WriteByte(byte(i * 7 >> (i >> 8 & 1))) // in an order that is not the same from block to block
		}
		g.send("stty raw; echo go''; head -c 4096; stty icrnl opost onlcr echo icanon isig iexten >/dev/null; echo after''wards\n")
		g.expect("go\n")
		g.send(all.String())
		requireSame(t, all.String(), g.expect("afterwards\r\n"))
		g.expect(prompt)
	})
	t.Run("output", func(t *testing.T) {
		g.during(t)
		copies := 16
		if h.emulated() { // where the line carries some 2 KB a second
			copies = 1
		}
		got := g.sh(fmt.Sprintf("for ((i = 0; i < %d; i++)); do cat /pasted; done", copies))
		requireSame(t, strings.Repeat(text.String(), copies), got)
	})
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// requireSame compares long texts, of which it shows only the first difference.
func requireSame(t *testing.T, want, got string) {
	t.Helper()
	n := min(len(want), len(got))
	for i := range n {
		if want[i] != got[i] {
			from, to := max(0, i-80), min(n, i+80)
			require.Equal(t, want[from:to], got[from:to], "at byte %d of %d, got %d", i, len(want), len(got))
		}
	}
	require.Len(t, got, len(want))
}

// TestSerialTargets boots guests whose serial port is connected to each of the things that it can be.
func TestSerialTargets(t *testing.T) {
	h := kvmHost(t)
	attach := h.carry(t, build(t, "./test/e2e/attach"))
	vmm := []string{h.vmm(), "-kernel", h.kernel("vmlinuz-6.1"), "-initrd", h.initramfs(), "-append", "quiet", "-serial"}

	t.Run("file", func(t *testing.T) {
		path := h.dir(t) + "/console"
		g := h.start(t, append(vmm, "file:"+path)...)
		h.output(t, "until grep -q 'Setting console log level' "+path+" 2>/dev/null; do sleep 0.2; done")
		g.signal("TERM")
		g.signal("TERM")
		g.wait()
		require.Empty(t, g.out.from(0))
		require.Contains(t, h.output(t, "cat "+path), "Welcome to u-root!")
	})
	t.Run("unix", func(t *testing.T) {
		path := h.dir(t) + "/console"
		g := h.start(t, append(vmm, "unix:"+path)...)
		h.output(t, "until [ -S "+path+" ]; do sleep 0.1; done")
		client := h.start(t, attach, path)
		client.login()
		require.Equal(t, "6.1.", client.sh("uname -r")[:4])
		client.send("poweroff\n")
		require.Zero(t, g.wait())
		require.Zero(t, client.wait())
		require.Equal(t, "gone\n", h.output(t, "[ -e "+path+" ] || echo gone"))
	})
	t.Run("pty, and a reader that stalls", func(t *testing.T) {
		g := h.start(t, append(vmm, "pty")...)
		end, ok := g.await(g.errors, 0, "vmm: serial port is /dev/pts/")
		require.True(t, ok)
		rest, ok := g.await(g.errors, end, "\n")
		require.True(t, ok)
		name := "/dev/pts/" + strings.TrimSpace(g.errors.from(end)[:rest])
		client := h.start(t, attach, name)
		client.login()

		// While the reader stalls, a loop in the guest notes the time, five times a second. Its one CPU must have time for
		// that, and what is printed meanwhile must come later. The guest prints for longer than the stall, at whatever speed.
		const stall = 12
		client.send(fmt.Sprintf("{ { read up idle </proc/uptime; end=$((${up%%.*} + %d)); ", stall+6) +
			"while [ ${up%.*} -lt $end ]; do echo $up >>/ticks; sleep 0.2; read up idle </proc/uptime; done; touch /done; } & " +
			"i=0; while [ ! -e /done ]; do i=$((i + 1)); echo -n $i,; done; echo after''wards $i; }\n")
		client.expect("1,2,3,")
		h.output(t, fmt.Sprintf("kill -STOP %s; sleep %d; kill -CONT %s", client.pid, stall, client.pid))
		printed := client.expect("afterwards ")
		last, err := strconv.Atoi(strings.TrimSpace(client.expect("\n")))
		require.NoError(t, err)
		var want strings.Builder
		for i := 4; i <= last; i++ {
			fmt.Fprintf(&want, "%d,", i)
		}
		requireSame(t, want.String(), printed)
		client.expect(prompt)
		ticks := strings.Fields(client.sh("cat /ticks"))
		longest, before := 0.0, parse(t, ticks[0])
		for _, tick := range ticks[1:] {
			now := parse(t, tick)
			longest, before = max(longest, now-before), now
		}
		// A guest that waits for the reader would have one gap of the whole stall; a busy host makes short ones.
		require.Less(t, longest, float64(stall)/2, "the guest stood still in between: %v", ticks)

		checkLog(t, client)
		client.send("poweroff\n")
		require.Zero(t, g.wait())
	})
}

func parse(t *testing.T, number string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(number, 64)
	require.NoError(t, err)
	return f
}
