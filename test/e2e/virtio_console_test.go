package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// TestConsole has a person log in on hvc0, and moves bytes through it.
func TestConsole(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	h.needDisk(t)
	path := h.dir(t) + "/console"
	attach := h.carry(t, build(t, "./test/e2e/attach"))
	g := guest{series: "6.1", args: []string{"-console", "unix:" + path}}.start(t, h)
	g.run("[ -c /dev/hvc0 ]; setsid agetty -L hvc0 linux >/dev/null 2>&1 &")
	client := h.start(t, attach, path)
	client.send("\r")
	client.expect("guest login: ")
	client.send("root\r")
	client.expect("# ")
	client.send("stty -echo; PS1=; tty; whoami; echo said''-so\r")
	require.Regexp(t, `/dev/hvc0\r\nroot\r\n$`, client.expect("said-so\r\n"))

	var text strings.Builder
	for i := 0; text.Len() < 256<<10; i++ {
		fmt.Fprintf(&text, "%07d ", i)
	}
	sum := sha256.Sum256([]byte(text.String()))
	client.send(fmt.Sprintf("stty raw; echo go''; head -c %d >/tmp/in; sha256sum </tmp/in; cat /tmp/in; stty sane -echo; echo after''wards\r",
		text.Len()))
	client.expect("go\n")
	client.send(text.String())
	client.expect(hex.EncodeToString(sum[:]) + "  -\n")
	requireSame(t, text.String(), client.expect("afterwards\r\n"))
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
	require.Zero(t, client.wait())
}

// TestConsoleTerminal has a guest with no other console than hvc0, on a terminal whose size changes.
func TestConsoleTerminal(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	if !h.emulated() {
		t.Skip("needs a terminal, as commands can have in the lab")
	}
	resize := make(chan lab.Size)
	g := guest{cmdline: "console=hvc0", args: []string{"-serial", "none", "-console", "stdio"}}
	p := h.startOn(t, &lab.Size{Rows: 30, Cols: 100}, resize, g.command(t, h)...)
	p.quiet = true
	p.login()
	require.Equal(t, "/dev/hvc0\n30 100\n", p.run("tty; stty size"))
	// The shell is one that has no job control, and so is in the terminal's foreground along with what it starts.
	p.send(`sh -c 'trap "stty size" WINCH; echo wait""ing; while sleep 0.2; do :; done'` + "\n")
	p.expect("waiting\r\n")
	resize <- lab.Size{Rows: 40, Cols: 120}
	p.expect("40 120\r\n")
	p.send("\x03")
	p.expect(prompt)
	checkLog(t, p)
	require.Zero(t, p.end("poweroff"))
}
