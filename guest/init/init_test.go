package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

func TestTmpfsOptions(t *testing.T) {
	const standard = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for options, want := range map[string]struct {
		flags uintptr
		data  string
	}{
		"":                      {standard, "mode=1777"},
		"rw,exec,size=64m":      {unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=64m"},
		"ro,suid,dev,mode=0700": {unix.MS_RDONLY | unix.MS_NOEXEC, "mode=1777,mode=0700"},
	} {
		flags, data := tmpfsOptions(options)
		require.Equal(t, want.flags, flags, options)
		require.Equal(t, want.data, data, options)
	}
}

// TestBelow stays below the root, whatever the image's links say.
func TestBelow(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/usr/lib", 0o755))
	for name, target := range map[string]string{"lib": "usr/lib", "abs": "/usr", "out": "../../..", "loop": "loop", "resolv": "/run/../etc/x"} {
		require.NoError(t, os.Symlink(target, filepath.Join(root, name)))
	}
	for path, want := range map[string]string{
		"/dev": "/dev", "/lib/x": "/usr/lib/x", "/abs/lib": "/usr/lib", "/out/etc/passwd": "/etc/passwd", "/resolv": "/etc/x", "/../a": "/a", "/": "/",
	} {
		got, err := below(root, path)
		require.NoError(t, err, path)
		require.Equal(t, root+want, got, path)
	}
	_, err := below(root, "/loop/x")
	require.ErrorIs(t, err, unix.ELOOP)
}

// TestFind looks programs up as a shell would.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"one/tool": 0o755, "one/text": 0o644, "two/text": 0o755, "two/only-text": 0o644} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, mode))
	}
	env := []string{"PATH=" + dir + "/one:" + dir + "/two:rel"}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "rel"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rel", "here"), nil, 0o755))
	for name, want := range map[string]struct {
		path   string
		status int
	}{
		"tool": {"one/tool", 0}, "text": {"two/text", 0}, "here": {"rel/here", 0}, "only-text": {"", statusNotRunnable}, "none": {"", statusNotFound},
		"./one/tool": {"one/tool", 0}, "./one/text": {"", statusNotRunnable}, "./one": {"", statusNotRunnable}, "/no/where": {"", statusNotFound},
	} {
		path, err := find(name, dir, env)
		if want.status == 0 {
			require.NoError(t, err, name)
			require.Equal(t, filepath.Join(dir, want.path), path, name)
			continue
		}
		var failed *wire.Failed
		require.ErrorAs(t, err, &failed, name)
		require.Equal(t, want.status, failed.Status, name)
	}
}

// TestSettle waits for a host that is slow to read, and not for children that hold a pipe and say nothing.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, host := net.Pipe()
		r, w := io.Pipe()
		c := wire.NewConn(here)
		var out traffic
		output := make(chan struct{})
		go func() {
			defer close(output)
			copyFrames(r, wire.TypeStdout, func(kind wire.Type, p []byte) error { return out.send(c, kind, p) })
		}()
		go func() {
			for range 3 {
				_, _ = w.Write([]byte("words"))
			}
		}()
		got, read := 0, make(chan struct{})
		go func() {
			defer close(read)
			c := wire.NewConn(host)
			for {
				time.Sleep(time.Second)
				if _, _, err := c.Receive(); err != nil {
					return
				}
				got++
			}
		}()
		begin := time.Now()
		out.settle(output)
		synctest.Wait()
		require.Equal(t, 3, got)
		require.Less(t, time.Since(begin), 3*time.Second+3*drainTimeout)
		_ = w.Close()
		<-output
		_ = here.Close()
		<-read
	})
}

func TestExitStatus(t *testing.T) {
	require.Equal(t, 7, exitStatus(syscall.WaitStatus(7<<8)))
	require.Equal(t, 137, exitStatus(syscall.WaitStatus(9)))
}
