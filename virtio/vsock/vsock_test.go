package vsock_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/internal/unixsocket"
	"vmm/virtio"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
	"vmm/virtio/vsock"
)

func TestMain(m *testing.M) { leak.Main(m) }

// unixGuest is a guest whose host is Unix sockets below path.
func unixGuest(t testing.TB) (*guest, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v")
	host, err := vsock.ListenUnix(path)
	require.NoError(t, err)
	g := newGuest(t, vsock.Config{Dial: host.Dial})
	host.Serve(g.dev)
	t.Cleanup(func() { require.NoError(t, host.Close()) })
	g.poll()
	return g, path
}

// hostConnect connects to a port of the guest's, as a program of the host does.
func hostConnect(t testing.TB, path string, port int) (*net.UnixConn, *bufio.Reader, error) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err == nil {
		require.Regexp(t, `^OK \d+\n$`, line)
	}
	return conn.(*net.UnixConn), r, err
}

func TestHostConnects(t *testing.T) {
	g, path := unixGuest(t)
	var made []*socket
	g.accept = func(port uint32) bool { return port == 1234 }
	conn, r, err := hostConnect(t, path, 1234)
	require.NoError(t, err)
	g.mu.Lock()
	for _, s := range g.sockets {
		made = append(made, s)
	}
	g.mu.Unlock()
	require.Len(t, made, 1)
	_, err = conn.Write([]byte("hello, guest"))
	require.NoError(t, err)
	p := make([]byte, 12)
	_, err = io.ReadFull(made[0], p)
	require.NoError(t, err)
	require.Equal(t, "hello, guest", string(p))
	_, err = made[0].Write([]byte("hello, host\n"))
	require.NoError(t, err)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello, host\n", line)

	_, _, err = hostConnect(t, path, 99)
	require.ErrorIs(t, err, io.EOF, "nobody listens")
}

func TestGuestConnects(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_52")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 52)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	_, err = s.Write([]byte("ping"))
	require.NoError(t, err)
	p := make([]byte, 4)
	_, err = io.ReadFull(conn, p)
	require.NoError(t, err)
	require.Equal(t, "ping", string(p))

	require.False(t, g.connect(1001, 53).waitOpen(), "nobody listens there")
}

// Both sides send, and end their sending, one after the other.
func TestHalfClose(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	_, err = s.Write([]byte("question"))
	require.NoError(t, err)
	s.shutdown(2)
	got, err := io.ReadAll(conn) // to the end
	require.NoError(t, err)
	require.Equal(t, "question", string(got))
	_, err = conn.Write([]byte("answer"))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.UnixConn).CloseWrite())
	got, err = io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, "answer", string(got))
	s.shutdown(3)
	s.waitReset()
}

// A guest that closes sends what it has said, then SHUTDOWN; the RST says that all of it was taken.
func TestGuestCloses(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	big := bytes.Repeat([]byte("x"), 250<<10)
	_, err = s.Write(big)
	require.NoError(t, err)
	s.shutdown(3)
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	s.waitReset()
}

// A host that closes: what it has said arrives, then both directions are shut.
func TestHostCloses(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	require.True(t, s.waitOpen())
	big := bytes.Repeat([]byte("x"), 150<<10)
	_, err = conn.Write(big)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until("shutdown of both directions", func() bool { return s.peerDone == 3 || s.reset })
}

// volume is what goes each way in TestMuch; a race detector's pace is not the time to send more.
const volume = 24 << 20

func TestMuch(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	send := func(w io.Writer) []byte {
		sum, p := sha256.New(), make([]byte, 100_000)
		for sent := 0; sent < volume; sent += len(p) {
			for i := range p {
				p[i] = byte(sent>>8 + i*7)
			}
			sum.Write(p)
			if _, err := w.Write(p); err != nil {
				panic(err)
			}
		}
		return sum.Sum(nil)
	}
	receive := func(r io.Reader) []byte {
		sum := sha256.New()
		if _, err := io.CopyN(sum, r, (volume+99_999)/100_000*100_000); err != nil {
			panic(err)
		}
		return sum.Sum(nil)
	}
	var sums [4][]byte
	var moving sync.WaitGroup
	moving.Go(func() { sums[0] = send(s) })
	moving.Go(func() { sums[1] = receive(conn) })
	moving.Go(func() { sums[2] = send(conn) })
	moving.Go(func() { sums[3] = receive(s) })
	moving.Wait()
	require.Equal(t, sums[0], sums[1])
	require.Equal(t, sums[2], sums[3])
}

func TestManyConnections(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			})
		}
	})
	const n = 1000
	var sockets []*socket
	for i := range uint32(n) {
		sockets = append(sockets, g.connect(10_000+i, 1))
	}
	for i, s := range sockets {
		require.True(t, s.waitOpen(), "%d", i)
		_, err := fmt.Fprintf(s, "socket %d", i)
		require.NoError(t, err)
	}
	for i, s := range sockets {
		want := fmt.Sprintf("socket %d", i)
		p := make([]byte, len(want))
		_, err := io.ReadFull(s, p)
		require.NoError(t, err)
		require.Equal(t, want, string(p))
		s.shutdown(3)
	}
	for _, s := range sockets {
		s.waitReset()
	}
	_ = l.Close()
}

// The host's end takes nothing: the guest may send what there is room for, and no more. Others are not held up.
func TestCredit(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	slow := g.connect(1000, 1)
	stuck, err := l.Accept()
	require.NoError(t, err)
	defer stuck.Close()
	require.True(t, slow.waitOpen())
	g.mu.Lock()
	for slow.sent < 64<<20 && slow.peerBuf > slow.sent-slow.peerFwd {
		n := min(64<<10, slow.peerBuf-(slow.sent-slow.peerFwd))
		slow.sent += n
		slow.send(packet{op: opRW, data: make([]byte, n)})
		if slow.peerBuf == slow.sent-slow.peerFwd {
			g.mu.Unlock()
			time.Sleep(20 * time.Millisecond) // the socket's own buffer takes some
			g.mu.Lock()
		}
	}
	require.Less(t, slow.sent, uint32(4<<20))
	g.mu.Unlock()

	quick := g.connect(1001, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, quick.waitOpen())
	_, err = quick.Write([]byte("x"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)

	// The socket's buffer may have taken something meanwhile, but not for ever.
	g.mu.Lock()
	for range 64 {
		slow.send(packet{op: opRW, data: make([]byte, 64<<10)})
	}
	g.mu.Unlock()
	slow.waitReset()
}

// The guest has no room: the host's data waits until it has.
func TestGuestWithoutCredit(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	go func() { _, _ = conn.Write(data) }()
	g.mu.Lock()
	g.until("all that fits", func() bool { return len(s.in) == 64<<10 })
	g.mu.Unlock()
	p := make([]byte, len(data))
	_, err = io.ReadFull(s, p)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, p))
}

func TestMalformed(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	good := packet{src: guestCID, dst: 2, kind: 1, srcPort: 7, dstPort: 8}
	expectReset := func(name string, p packet) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.strays = nil
		g.transmit(p)
		g.until(name, func() bool { return len(g.strays) > 0 })
		require.Equal(t, uint16(opRST), g.strays[0].op, name)
		require.Equal(t, p.srcPort, g.strays[0].dstPort, name)
	}
	for name, op := range map[string]uint16{"data": opRW, "response": opResponse, "credit": opCreditUpdate, "unknown": 99, "invalid": 0} {
		p := good
		p.op = op
		expectReset(name+" without a connection", p)
	}
	p := good
	p.kind, p.op = 2, opRequest
	expectReset("another type", p)

	for name, change := range map[string]func(*packet){
		"another source":      func(p *packet) { p.src = 4 },
		"another destination": func(p *packet) { p.dst = 1 },
	} {
		p := packet{src: guestCID, dst: 2, kind: 1, srcPort: 1000, dstPort: 1, op: opRST}
		change(&p)
		require.Zero(t, g.d.Queue(1).Submit([][]byte{p.bytes()}).Wait(), name)
	}
	require.Zero(t, g.d.Queue(1).Submit([][]byte{{1, 2, 3}}).Wait())
	require.Zero(t, g.d.Queue(1).Submit(nil, 44).Wait())
	_, err = s.Write([]byte("x"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err, "none of that has touched the connection")

	long := packet{src: guestCID, dst: 2, kind: 1, srcPort: 1000, dstPort: 1, op: opRW, data: []byte("12345678")}
	g.d.Queue(1).Submit([][]byte{long.bytes(), []byte("1234")}).Wait() // says more than there is
	s.waitReset()
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// A second request, or a response, on an open connection.
func TestOutOfTurn(t *testing.T) {
	for _, op := range []uint16{opRequest, opResponse, 42} {
		g, path := unixGuest(t)
		l, err := net.Listen("unix", path+"_1")
		require.NoError(t, err)
		s := g.connect(1000, 1)
		require.True(t, s.waitOpen())
		g.mu.Lock()
		s.send(packet{op: op})
		g.mu.Unlock()
		s.waitReset()
		require.NoError(t, l.Close())
	}
}

// A guest that asks for much and takes nothing fills no memory; when it takes something again, it is served.
func TestGuestThatDoesNotListen(t *testing.T) {
	g := newGuest(t, vsock.Config{})
	var last *virtiotest.Request
	for range 255 {
		last = g.d.Queue(1).Submit([][]byte{packet{src: guestCID, dst: 2, kind: 1, srcPort: 1, dstPort: 2, op: opRW}.bytes()})
	}
	last.Wait()
	for range 10 {
		last = g.d.Queue(1).Submit([][]byte{packet{src: guestCID, dst: 2, kind: 1, srcPort: 1, dstPort: 2, op: opRW}.bytes()})
	}
	require.False(t, last.Done())
	g.poll()
	last.Wait()
}

// The device is reset with connections open: their host ends are closed, and the next driver gets new ones.
func TestReset(t *testing.T) {
	g, path := unixGuest(t)
	l, err := net.Listen("unix", path+"_1")
	require.NoError(t, err)
	defer l.Close()
	s := g.connect(1000, 1)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, s.waitOpen())
	waiting := make(chan error)
	go func() {
		_, err := g.dev.Dial(context.Background(), 5)
		waiting <- err
	}()
	require.Error(t, <-waiting, "refused by the guest, which has no port 5")
	require.NoError(t, g.d.Stop())
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	_, err = g.dev.Dial(t.Context(), 5)
	require.ErrorIs(t, err, vsock.ErrNoGuest)
}

func TestDial(t *testing.T) {
	g := newGuest(t, vsock.Config{})
	g.accept = func(port uint32) bool { return port == 5 }
	g.poll()
	conn, err := g.dev.Dial(t.Context(), 5)
	require.NoError(t, err)
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	g.mu.Lock()
	var s *socket
	for _, s = range g.sockets {
	}
	g.mu.Unlock()
	_, err = s.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, err = g.dev.Dial(t.Context(), 6)
	require.ErrorIs(t, err, vsock.ErrRefused)
}

func TestDialGivesUp(t *testing.T) {
	g := newGuest(t, vsock.Config{}) // takes nothing
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := g.dev.Dial(ctx, 5)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestGreetings(t *testing.T) {
	_, path := unixGuest(t)
	for _, text := range []string{"HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 12345678901234567890\n", "\n"} {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		_, err = conn.Write([]byte(text))
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 1))
		require.Error(t, err, "%q", text)
		require.NoError(t, conn.Close())
	}
	silent, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer silent.Close() // the host's Close does not wait for its greeting
}

func TestConfigErrors(t *testing.T) {
	for _, cid := range []uint64{0, 2, 1<<32 - 1, 1 << 40} {
		_, err := vsock.New(vsock.Config{CID: cid})
		require.ErrorContains(t, err, "not 3 to 4294967294")
	}
	_, err := vsock.ListenUnix("/" + string(bytes.Repeat([]byte("x"), 100)))
	require.ErrorContains(t, err, "at most")
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "live"))
	require.NoError(t, err)
	defer l.Close()
	_, err = vsock.ListenUnix(filepath.Join(dir, "live"))
	require.ErrorIs(t, err, unixsocket.ErrInUse)
	u, err := vsock.ListenUnix(filepath.Join(dir, "new"))
	require.NoError(t, err)
	require.NoError(t, u.Close())
	_, err = os.Stat(filepath.Join(dir, "new"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestConfigSpace(t *testing.T) {
	g := newGuest(t, vsock.Config{})
	require.Equal(t, []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0}, g.d.Config(0, 10))
}

func TestBrokenRings(t *testing.T) {
	g := newGuest(t, vsock.Config{})
	g.d.Queue(1).Offer(0xffff)
	require.ErrorAs(t, g.d.Wait(), new(*virtqueue.Error))
	g = newGuest(t, vsock.Config{})
	g.d.Queue(0).Offer(0xffff)
	go func() { _, _ = g.dev.Dial(context.Background(), 1) }()
	require.ErrorAs(t, g.d.Wait(), new(*virtqueue.Error))
}

func FuzzVsock(f *testing.F) {
	connect := packet{src: guestCID, dst: 2, kind: 1, srcPort: 1, dstPort: 2, op: opRequest, bufAlloc: 1 << 16}.bytes()
	rw := packet{src: guestCID, dst: 2, kind: 1, srcPort: 1, dstPort: 2, op: opRW, bufAlloc: 1 << 16, data: make([]byte, 4)}.bytes()
	seed := append([]byte{0, 1, 0x10, byte(len(connect))}, connect...)
	seed = append(append(seed, 0, 1, 0x14, byte(len(rw)+4)), rw...)
	f.Add(append(seed, 1, 2, 3, 4, 0, 0, 1, 200, 0, 0, 5, 200))
	virtiotest.Fuzz(f, func(t testing.TB) virtio.Device {
		dev, err := vsock.New(vsock.Config{CID: guestCID, Dial: func(_ context.Context, port uint32) (vsock.Conn, error) {
			if port%2 == 1 {
				return nil, errors.New("odd")
			}
			ours, theirs := net.Pipe()
			go func() {
				_, _ = io.Copy(theirs, theirs)
				_ = theirs.Close()
			}()
			return pipe{ours}, nil
		}})
		require.NoError(t, err)
		return dev
	})
}

// pipe is a Conn without a half close.
type pipe struct{ net.Conn }

func (pipe) CloseWrite() error { return errors.ErrUnsupported }
