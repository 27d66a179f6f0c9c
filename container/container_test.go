package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/container/wire"
	"vmm/internal/leak"
	"vmm/virtio/vsock"
)

func TestMain(m *testing.M) { leak.Main(m) }

func nothing(string) error { return nil }

func store(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "containers"))
	require.NoError(t, err)
	return s
}

// TestNames gives containers names, and finds them by these and by their IDs.
func TestNames(t *testing.T) {
	s := store(t)
	a, err := s.Create(Spec{Name: "somebody", Image: "nginx"}, nothing)
	require.NoError(t, err)
	require.Regexp(t, `^[0-9a-f]{12}$`, a.Spec.ID)
	require.Equal(t, a.Spec.ID, a.Spec.Hostname)
	_, err = s.Create(Spec{Name: "somebody"}, nothing)
	require.EqualError(t, err, `name "somebody": container `+a.Spec.ID+` has it (remove it: vmm rm somebody)`)
	_, err = s.Create(Spec{Name: "-a"}, nothing)
	require.ErrorContains(t, err, `name "-a": letters, digits`)
	b, err := s.Create(Spec{Image: "host:5000/team/web@sha256:0123"}, nothing)
	require.NoError(t, err)
	require.Equal(t, "web-"+b.Spec.ID[:6], b.Spec.Name)
	for _, name := range []string{"somebody", a.Spec.ID, a.Spec.ID[:8]} {
		got, err := s.Get(name)
		require.NoError(t, err)
		require.Equal(t, a.Spec.ID, got.Spec.ID)
	}
	_, err = s.Get("nobody")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = s.Get("")
	require.ErrorIs(t, err, ErrNotFound)
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, b.Spec.ID, list[0].Spec.ID, "the newest first")
	require.NoError(t, s.Remove(a))
	_, err = s.Get("somebody")
	require.ErrorIs(t, err, ErrNotFound)
}

// TestCreateFails leaves nothing of a container that could not be made.
func TestCreateFails(t *testing.T) {
	s := store(t)
	_, err := s.Create(Spec{}, func(dir string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600))
		return os.ErrPermission
	})
	require.ErrorIs(t, err, os.ErrPermission)
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "the lock alone")
}

// TestLife has one monitor at a time, and others who look and wait.
func TestLife(t *testing.T) {
	s := store(t)
	c, err := s.Create(Spec{Name: "c"}, nothing)
	require.NoError(t, err)
	require.False(t, c.alive())
	release, err := c.take()
	require.NoError(t, err)
	got, err := s.Get("c")
	require.NoError(t, err)
	require.True(t, got.Alive)
	_, err = got.take()
	require.EqualError(t, err, "container c runs already")
	require.ErrorContains(t, s.Remove(got), "container c runs")
	require.DirExists(t, got.dir)
	waited := make(chan error)
	go func() { waited <- got.Wait() }()
	select {
	case err := <-waited:
		t.Fatalf("the wait for what runs ended: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, write(c.path("state.json"), State{Started: time.Now(), Finished: time.Now(), Status: 7}))
	release()
	require.NoError(t, <-waited)
	require.Equal(t, 7, got.State.Status)
	require.False(t, got.Alive)
}

// TestLost notes what becomes of containers whose monitor was killed.
func TestLost(t *testing.T) {
	s := store(t)
	for _, name := range []string{"kept", "gone"} {
		c, err := s.Create(Spec{Name: name, AutoRemove: name == "gone"}, nothing)
		require.NoError(t, err)
		require.NoError(t, write(c.path("state.json"), State{Started: time.Now(), Monitor: 1}))
	}
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, ".new-left"), 0o700))
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "kept", list[0].Spec.Name)
	require.Equal(t, StatusLost, list[0].State.Status)
	require.False(t, list[0].State.Finished.IsZero())
	require.NoDirExists(t, filepath.Join(s.dir, ".new-left"))
	_, err = s.Get("gone")
	require.ErrorIs(t, err, ErrNotFound)
}

// TestAtOnce has many make, list and remove containers.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			s, err := Open(dir)
			for i := 0; err == nil && i < 10; i++ {
				var c *Container
				if c, err = s.Create(Spec{}, nothing); err == nil {
					if _, err = s.List(); err == nil {
						err = s.Remove(c)
					}
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestLogs has a container's words come out as they went in, while it says them.
func TestLogs(t *testing.T) {
	s := store(t)
	c, err := s.Create(Spec{}, nothing)
	require.NoError(t, err)
	release, err := c.take()
	require.NoError(t, err)
	var stdout, stderr bytes.Buffer
	done := make(chan error)
	go func() { done <- c.Logs(t.Context(), &stdout, &stderr, true) }()
	l, err := openLog(c.path("log"))
	require.NoError(t, err)
	l.write("stdout", []byte("one\n\xff\x00"))
	l.write("stderr", []byte("two"))
	l.write("stdout", []byte("three"))
	require.NoError(t, l.close())
	release()
	require.NoError(t, <-done)
	require.Equal(t, "one\n\xff\x00three", stdout.String())
	require.Equal(t, "two", stderr.String())
}

// init is a container's init that does as it is told by the test.
type fakeInit struct {
	t    *testing.T
	path string
	l    net.Listener
}

func newFakeInit(t *testing.T) *fakeInit {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &fakeInit{t, path, l}
}

func (f *fakeInit) dial(context.Context) (vsock.Conn, error) {
	c, err := net.Dial("unix", f.path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func (f *fakeInit) accept() (*wire.Conn, net.Conn) {
	c, err := f.l.Accept()
	if err != nil {
		return nil, nil
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return wire.NewConn(c), c
}

// TestProcess moves all that a process and its user have to say to each other.
func TestProcess(t *testing.T) {
	f := newFakeInit(t)
	signals, resizes := make(chan int, 1), make(chan wire.Resize, 1)
	signals <- 15
	resizes <- wire.Resize{Rows: 2, Columns: 3}
	go func() {
		c, _ := f.accept()
		var p wire.Process
		if err := c.Expect(wire.TypeStart, &p); err != nil || p.Args[0] != "cat" || !p.Stdin || p.Version != wire.Version {
			t.Errorf("start: %v %+v", err, p)
		}
		in, raw := f.accept()
		var stdin wire.Stdin
		if err := in.Expect(wire.TypeStdin, &stdin); err != nil || stdin.ID != p.ID {
			t.Errorf("stdin: %v %+v", err, stdin)
		}
		input, err := io.ReadAll(raw)
		if err != nil {
			t.Error(err)
		}
		_ = c.Send(wire.TypeStarted, nil)
		_ = c.SendBytes(wire.TypeStdout, input)
		_ = c.SendBytes(wire.TypeStderr, []byte("problem"))
		got := map[wire.Type]string{}
		for range 2 {
			kind, payload, err := c.Receive()
			if err != nil {
				t.Error(err)
			}
			got[kind] = string(payload)
		}
		if got[wire.TypeSignal] != `{"number":15}` || got[wire.TypeResize] != `{"rows":2,"columns":3}` {
			t.Errorf("told: %v", got)
		}
		_ = c.Send(wire.TypeExited, wire.Exited{Status: 9})
	}()
	var stdout, stderr bytes.Buffer
	status, err := runProcess(t.Context(), f.dial, wire.Process{Args: []string{"cat"}}, Streams{
		Stdin: strings.NewReader("input"), Stdout: &stdout, Stderr: &stderr, Signals: signals, Resizes: resizes,
	})
	require.NoError(t, err)
	require.Equal(t, 9, status)
	require.Equal(t, "input", stdout.String())
	require.Equal(t, "problem", stderr.String())
}

// TestProcessFails has errors for all ways in which a guest may not do it, and ends when its user does.
func TestProcessFails(t *testing.T) {
	for name, c := range map[string]struct {
		guest func(c *wire.Conn, raw net.Conn)
		want  string
	}{
		"not started": {func(c *wire.Conn, _ net.Conn) {
			_ = c.Send(wire.TypeFailed, &wire.Failed{Message: "no such program", Status: 127})
		}, "no such program"},
		"gone": {func(_ *wire.Conn, raw net.Conn) { _ = raw.Close() }, "EOF"},
		"gone later": {func(c *wire.Conn, raw net.Conn) {
			_ = c.Send(wire.TypeStarted, nil)
			_ = raw.Close()
		}, "the machine is gone: EOF"},
		"nonsense": {func(c *wire.Conn, raw net.Conn) {
			_ = c.Send(wire.TypeStarted, nil)
			_, _ = raw.Write(bytes.Repeat([]byte{0xff}, 64))
		}, "the machine is gone: a frame of 4294967295 bytes"},
		"no status": {func(c *wire.Conn, _ net.Conn) {
			_ = c.Send(wire.TypeStarted, nil)
			_ = c.Send(wire.TypeExited, wire.Exited{Status: 256})
		}, "the guest's status 256"},
		"bad end": {func(c *wire.Conn, _ net.Conn) {
			_ = c.Send(wire.TypeStarted, nil)
			_ = c.SendBytes(wire.TypeExited, []byte("x"))
		}, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeInit(t)
			go func() {
				conn, raw := f.accept()
				_, _, _ = conn.Receive()
				c.guest(conn, raw)
			}()
			_, err := runProcess(t.Context(), f.dial, wire.Process{Args: []string{"x"}}, Streams{})
			require.ErrorContains(t, err, c.want)
			if failed := (*wire.Failed)(nil); errors.As(err, &failed) {
				require.Equal(t, 127, failed.Status)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		f := newFakeInit(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			c, _ := f.accept()
			_, _, _ = c.Receive()
			_ = c.Send(wire.TypeStarted, nil)
			cancel()
		}()
		_, err := runProcess(ctx, f.dial, wire.Process{Args: []string{"x"}}, Streams{})
		require.ErrorIs(t, err, context.Canceled)
	})
}

// TestGreet tells a guest what to be like, and refuses one of another version.
func TestGreet(t *testing.T) {
	m := &monitor{c: &Container{Spec: Spec{Hostname: "box", ReadOnly: true}}}
	for version, want := range map[int]string{wire.Version: "", 99: "the guest speaks version 99, this vmm 1"} {
		a, b := net.Pipe()
		go func() {
			c := wire.NewConn(b)
			_ = c.Send(wire.TypeHello, wire.Hello{Version: version})
			var setup wire.Setup
			if c.Expect(wire.TypeSetup, &setup) == nil && setup.Hostname == "box" && setup.ReadOnly && setup.Address != "" {
				_ = c.Send(wire.TypeReady, nil)
			}
			_ = b.Close()
		}()
		err := m.greet(a)
		_ = a.Close()
		if want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, want)
		}
	}
}

// TestSpecJSON keeps a configuration as it is.
func TestSpecJSON(t *testing.T) {
	spec := Spec{ID: "x", Args: []string{"a b"}, Tmpfs: map[string]string{"/a": ""}, StopTimeout: time.Second, Memory: 1 << 40}
	b, err := json.Marshal(spec)
	require.NoError(t, err)
	var got Spec
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, spec, got)
}

// TestTail remembers a console's last words.
func TestTail(t *testing.T) {
	c := &tail{path: filepath.Join(t.TempDir(), "console")}
	for range 100 {
		_, _ = c.Write([]byte("something\r\n"))
	}
	_, _ = c.Write([]byte("Kernel panic\r\nthe end"))
	require.Equal(t, "something | something | something | Kernel panic | the end", c.last())
	require.NoError(t, c.Close())
	b, err := os.ReadFile(c.path)
	require.NoError(t, err)
	require.Len(t, b, 100*11+14+7)
}
