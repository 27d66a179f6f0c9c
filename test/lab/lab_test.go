package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// start boots a lab for the test.
func start(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	if _, err := exec.LookPath(lab.DefaultQEMU); err != nil {
		t.Skip("no QEMU here: apt-get install --no-install-recommends qemu-system-x86")
	}
	l, err := lab.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

func TestLab(t *testing.T) {
	carried := filepath.Join(t.TempDir(), "carried")
	require.NoError(t, os.WriteFile(carried, []byte("here"), 0o644))
	var console bytes.Buffer
	l := start(t, lab.Config{Files: map[string]string{"/lab/in/file": carried}, Console: &console})
	output := func(t *testing.T, script string) string {
		t.Helper()
		out, err := l.Output(t.Context(), lab.Shell(script))
		require.NoError(t, err)
		return out
	}

	t.Run("kernel", func(t *testing.T) {
		require.Equal(t, l.Release()+"\n", output(t, "uname -r"))
		require.Equal(t, "lab\n", output(t, "hostname"))
		require.Equal(t, "1\n", output(t, "nproc"))
	})
	t.Run("KVM with nested paging", func(t *testing.T) {
		require.Contains(t, output(t, "cat /sys/module/kvm_amd/parameters/npt"), "Y")
		require.Equal(t, "opened\n", output(t, "exec 3<>/dev/kvm && echo opened"))
	})
	t.Run("carried in", func(t *testing.T) {
		require.Equal(t, "here", output(t, "cat in/file"))
	})
	t.Run("status and streams", func(t *testing.T) {
		var stdout, stderr strings.Builder
		cmd := lab.Shell(`echo out; echo err >&2; printf '\0\377'; exit 7`)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		status, err := l.Run(t.Context(), cmd)
		require.NoError(t, err)
		require.Equal(t, 7, status)
		require.Equal(t, "out\n\x00\xff", stdout.String())
		require.Equal(t, "err\n", stderr.String())
	})
	t.Run("ended by a signal", func(t *testing.T) {
		status, err := l.Run(t.Context(), lab.Shell("kill -9 $$"))
		require.NoError(t, err)
		require.Equal(t, 137, status)
	})
	t.Run("no such program", func(t *testing.T) {
		_, err := l.Run(t.Context(), &lab.Cmd{Args: []string{"/nowhere"}})
		require.ErrorContains(t, err, "run /nowhere in the lab: ")
	})
	t.Run("input", func(t *testing.T) {
		in := strings.Repeat("0123456789abcdef", 1<<16)
		out, err := l.Output(t.Context(), &lab.Cmd{Args: []string{"cat"}, Stdin: strings.NewReader(in)})
		require.NoError(t, err)
		require.Len(t, out, len(in))
		require.Equal(t, in, out)
	})
	t.Run("input that is not read", func(t *testing.T) {
		status, err := l.Run(t.Context(), &lab.Cmd{Args: []string{"true"}, Stdin: strings.NewReader(strings.Repeat("x", 1<<20))})
		require.NoError(t, err)
		require.Zero(t, status)
	})
	t.Run("commands side by side", func(t *testing.T) {
		// The first ends only when the second has run.
		r, w := io.Pipe()
		first := make(chan string, 1)
		go func() {
			out, err := l.Output(t.Context(), &lab.Cmd{Args: []string{"cat"}, Stdin: r})
			if err != nil {
				out = err.Error()
			}
			first <- out
		}()
		_, err := io.WriteString(w, output(t, "echo second"))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.Equal(t, "second\n", <-first)
	})
	t.Run("terminal", func(t *testing.T) {
		cmd := lab.Shell("tty; stty size; read x; stty size; cat")
		cmd.TTY = &lab.Size{Rows: 30, Cols: 100}
		resize := make(chan lab.Size)
		cmd.Resize = resize
		keys, typist := io.Pipe()
		cmd.Stdin = keys
		screen, shown := io.Pipe()
		cmd.Stdout = shown
		var out strings.Builder
		watched := make(chan error, 1)
		go func() { // types when the command waits for it
			lines := bufio.NewReader(io.TeeReader(screen, &out))
			for range 2 {
				if _, err := lines.ReadString('\n'); err != nil {
					watched <- err
					return
				}
			}
			resize <- lab.Size{Rows: 40, Cols: 120}
			_, _ = io.WriteString(typist, "go\n")
			_ = typist.Close() // Ctrl-D, for the cat
			_, err := io.Copy(io.Discard, lines)
			watched <- err
		}()
		_, err := l.Run(t.Context(), cmd)
		require.NoError(t, err)
		require.NoError(t, shown.Close())
		require.NoError(t, <-watched)
		require.Equal(t, "/dev/pts/0\r\n30 100\r\ngo\r\n40 120\r\n", strings.ReplaceAll(out.String(), "^D\b\b", ""))
	})
	t.Run("a process left behind holds nobody up", func(t *testing.T) {
		out, err := l.Output(t.Context(), lab.Shell("sleep 1000 & echo done"))
		require.NoError(t, err)
		require.Equal(t, "done\n", out)
	})
	t.Run("time limit of a command", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := l.Run(ctx, lab.Shell("sleep 999"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, "0\n", output(t, "pgrep -f 'sleep 99[9]' | wc -l"))
	})
	t.Run("files in and out", func(t *testing.T) {
		from := t.TempDir()
		big := bytes.Repeat([]byte("lab\n"), 1<<20)
		require.NoError(t, os.MkdirAll(filepath.Join(from, "deep/empty"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(from, "deep/file"), big, 0o755))
		require.NoError(t, l.Put(t.Context(), from, "/tmp/put/tree"))
		to := filepath.Join(t.TempDir(), "out")
		require.NoError(t, l.Get(t.Context(), "/tmp/put", to))
		got, err := os.ReadFile(filepath.Join(to, "tree/deep/file"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(big, got))
		require.DirExists(t, filepath.Join(to, "tree/deep/empty"))

		require.NoError(t, l.Get(t.Context(), "/lab/out", filepath.Join(to, "nothing")))
		require.NoDirExists(t, filepath.Join(to, "nothing"))
		require.ErrorContains(t, l.Get(t.Context(), "/nowhere", to), "No such file")
		require.ErrorIs(t, l.Put(t.Context(), filepath.Join(from, "none"), "/tmp/x"), os.ErrNotExist)
	})
	t.Run("end", func(t *testing.T) { // the last
		_, err := l.Run(t.Context(), lab.Shell("poweroff -f; sleep 100"))
		require.ErrorContains(t, err, "the lab has ended")
		l.Close()
		_, err = l.Run(t.Context(), lab.Shell("true"))
		require.ErrorContains(t, err, "the lab has ended")
		require.Contains(t, console.String(), "Power down")
	})
}

func TestContextEndsTheLab(t *testing.T) {
	if _, err := exec.LookPath(lab.DefaultQEMU); err != nil {
		t.Skip("no QEMU here: apt-get install --no-install-recommends qemu-system-x86")
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := lab.Start(ctx, lab.Config{})
	require.NoError(t, err)
	defer l.Close()
	cmd := lab.Shell("echo started; sleep 100")
	cmd.Stdout = writer(cancel)
	_, err = l.Run(context.WithoutCancel(ctx), cmd)
	require.ErrorIs(t, err, context.Canceled)
}

type writer func()

func (w writer) Write(p []byte) (int, error) { w(); return len(p), nil }

func TestNoQEMU(t *testing.T) {
	_, err := lab.Start(t.Context(), lab.Config{QEMU: "qemu-system-none"})
	require.ErrorContains(t, err, "apt-get install --no-install-recommends qemu-system-x86")
}
