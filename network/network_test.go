package network_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/leak"
	"vmm/network"
)

func TestMain(m *testing.M) { leak.Main(m) }

func vectors(buffers ...[]byte) []unix.Iovec {
	var iov []unix.Iovec
	for _, b := range buffers {
		iov = append(iov, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
	}
	return iov
}

// pair is a stream and the socket at its other end.
func pair(t *testing.T) (*network.Stream, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.SetNonblock(fds[0], true))
	s := network.NewStream(fds[0])
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		_ = unix.Close(fds[1])
	})
	return s, fds[1]
}

func framed(p []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...) }

func TestStreamReceive(t *testing.T) {
	text := append(append(framed([]byte("hello, frame")), framed(nil)...), framed([]byte("late"))...)
	for cut := range text {
		s, peer := pair(t)
		a, b := make([]byte, 4), make([]byte, 100)
		var got []string
		for _, part := range [][]byte{text[:cut], text[cut:]} {
			_, err := unix.Write(peer, part)
			require.NoError(t, err)
			for {
				n, err := s.Receive(vectors(a, b))
				if err != nil {
					require.ErrorIs(t, err, unix.EAGAIN)
					break
				}
				got = append(got, string(append(bytes.Clone(a), b...)[:n]))
			}
		}
		require.Equal(t, []string{"hello, frame", "", "late"}, got)
	}
}

func TestStreamHostile(t *testing.T) {
	s, peer := pair(t)
	_, err := unix.Write(peer, []byte{0xff, 0xff, 0xff, 0xff})
	require.NoError(t, err)
	_, err = s.Receive(vectors(make([]byte, 10)))
	require.ErrorContains(t, err, "frame of 4294967295 bytes")

	s, peer = pair(t)
	_, err = unix.Write(peer, framed(bytes.Repeat([]byte{1}, 100)))
	require.NoError(t, err)
	n, err := s.Receive(vectors(make([]byte, 10)))
	require.NoError(t, err)
	require.Equal(t, 10, n, "what does not fit is lost")
	require.NoError(t, unix.Shutdown(peer, unix.SHUT_RDWR))
	_, err = s.Receive(vectors(make([]byte, 10)))
	require.ErrorIs(t, err, io.EOF)
	require.ErrorIs(t, s.Send(vectors([]byte("x"))), unix.EPIPE)
	require.ErrorIs(t, s.Send(vectors(make([]byte, network.MaxFrame+1))), unix.EPIPE)
}

// A frame that the socket takes only in part is the same frame's business until it is through.
func TestStreamSend(t *testing.T) {
	s, peer := pair(t)
	require.NoError(t, s.Send(vectors([]byte("he"), []byte("llo"))))
	frame := bytes.Repeat([]byte{7}, network.MaxFrame)
	sent := 1
	for s.Send(vectors(frame)) == nil {
		sent++
	}
	received := make(chan []byte)
	total := 4 + 5 + sent*(4+network.MaxFrame)
	go func() {
		p := make([]byte, total)
		_, _ = io.ReadFull(readerOf(peer), p)
		received <- p
	}()
	for {
		err := s.Send(vectors(frame))
		if err == nil {
			break
		}
		require.ErrorIs(t, err, unix.EAGAIN)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLOUT}}, 1000)
	}
	want := framed([]byte("hello"))
	for range sent {
		want = append(want, framed(frame)...)
	}
	require.True(t, bytes.Equal(want, <-received))
}

type readerOf int

func (fd readerOf) Read(p []byte) (int, error) { return unix.Read(int(fd), p) }

func TestDialStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for address, want := range map[string]string{
		"tcp:1.2.3.4":  "use unix:PATH",
		"unix:":        "use unix:PATH",
		"unix:" + path: "nobody listens there: start passt --socket",
		"unix:/" + string(bytes.Repeat([]byte("x"), 200)): "at most 107 bytes",
	} {
		_, err := network.DialStream(address)
		require.ErrorContains(t, err, want)
	}
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	s, err := network.DialStream("unix:" + path)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// openTAP makes a TAP, or skips the test.
func openTAP(t *testing.T, cfg network.TAPConfig) *network.TAP {
	t.Helper()
	tap, err := network.OpenTAP(cfg)
	if os.Getuid() != 0 && err != nil {
		t.Skipf("%v: run the test as root", err)
	}
	require.NoError(t, err)
	return tap
}

// What is sent by the TAP comes out of the interface, and the other way around.
func TestTAP(t *testing.T) {
	tap := openTAP(t, network.TAPConfig{})
	require.Regexp(t, `^vmtap\d+$`, tap.Name())
	require.Equal(t, 1500, tap.MTU())
	require.True(t, tap.Header())
	i, err := net.InterfaceByName(tap.Name())
	require.NoError(t, err)
	require.NotZero(t, i.Flags&net.FlagUp)

	const protocol = 0x88b5 // for local experiments
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol>>8|protocol<<8&0xff00)
	require.NoError(t, err)
	defer unix.Close(raw)
	require.NoError(t, unix.Bind(raw, &unix.SockaddrLinklayer{Ifindex: i.Index, Protocol: protocol>>8 | protocol<<8&0xff00}))
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, protocol >> 8, protocol & 0xff}, bytes.Repeat([]byte{5}, 50)...)
	port := tap.Ports()[0]
	require.NoError(t, port.Send(vectors(make([]byte, 5), make([]byte, network.HeaderSize-5), frame)))
	got := make([]byte, 2000)
	n, err := unix.Read(raw, got)
	require.NoError(t, err)
	require.Equal(t, frame, got[:n])
	require.Error(t, port.Send(vectors(bytes.Repeat([]byte{0xff}, network.HeaderSize), frame)), "a header that makes no sense")

	require.NoError(t, unix.Send(raw, frame, 0))
	for end := time.Now().Add(10 * time.Second); ; { // the kernel has frames of its own to send
		require.True(t, time.Now().Before(end))
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(port.FD()), Events: unix.POLLIN}}, 1000)
		n, err := port.Receive(vectors(got[:20], got[20:]))
		if err == nil && bytes.Equal(got[network.HeaderSize:n], frame) {
			break
		}
	}
	require.NotZero(t, tap.Offloads()&unix.TUN_F_CSUM)
	require.NoError(t, tap.SetOffloads(tap.Offloads()))
	name := tap.Name()
	require.NoError(t, tap.Close())
	_, err = net.InterfaceByName(name)
	require.Error(t, err, "nothing is left")
}

// A frame that is too long is cut, and its length does not tell: devices rely on finding it out by a byte more.
func TestTAPCuts(t *testing.T) {
	tap := openTAP(t, network.TAPConfig{})
	defer tap.Close()
	i, err := net.InterfaceByName(tap.Name())
	require.NoError(t, err)
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(raw)
	frame := append(bytes.Repeat([]byte{0xff}, 12), 0x88, 0xb5)
	frame = append(frame, make([]byte, 1000)...)
	require.NoError(t, unix.Sendto(raw, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}))
	port, got := tap.Ports()[0], make([]byte, 500)
	for end := time.Now().Add(10 * time.Second); ; {
		require.True(t, time.Now().Before(end))
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(port.FD()), Events: unix.POLLIN}}, 1000)
		n, err := port.Receive(vectors(got))
		if err == nil && bytes.Equal(got[network.HeaderSize:][:14], frame[:14]) {
			require.Equal(t, 500, n)
			break
		}
	}
}

// An interface that the host takes away is an error for both directions, and not one that says "later".
func TestTAPVanishes(t *testing.T) {
	tap := openTAP(t, network.TAPConfig{})
	defer tap.Close()
	i, err := net.InterfaceByName(tap.Name())
	require.NoError(t, err)
	deleteLink(t, i.Index)
	port, got := tap.Ports()[0], make([]byte, 2000)
	for err == nil {
		_, err = port.Receive(vectors(got)) // what the kernel had sent before
	}
	require.NotErrorIs(t, err, unix.EAGAIN)
	err = port.Send(vectors(make([]byte, 100)))
	require.Error(t, err)
	require.NotErrorIs(t, err, unix.EAGAIN)
}

// deleteLink is "ip link del" (RTM_DELLINK of rtnetlink(7)).
func deleteLink(t *testing.T, index int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer unix.Close(s)
	le := binary.LittleEndian
	request := le.AppendUint32(nil, 32) // length
	request = le.AppendUint16(request, unix.RTM_DELLINK)
	request = le.AppendUint16(request, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	request = le.AppendUint64(request, 0)             // sequence, port
	request = le.AppendUint32(request, 0)             // struct ifinfomsg: family, type
	request = le.AppendUint32(request, uint32(index)) // index
	request = le.AppendUint64(request, 0)             // flags, change
	require.NoError(t, unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, 20)
	require.Zero(t, le.Uint32(answer[16:]), "the error in the acknowledgement")
}

func TestTAPQueues(t *testing.T) {
	name := fmt.Sprintf("vmt%d", os.Getpid()%100000)
	tap := openTAP(t, network.TAPConfig{Name: name, Queues: 3})
	defer tap.Close()
	require.Equal(t, name, tap.Name())
	require.Len(t, tap.Ports(), 3)
	for _, n := range []int{1, 3, 2, 2, 1} {
		require.NoError(t, tap.SetQueues(n))
		for i, p := range tap.Ports() {
			_, err := p.Receive(vectors(make([]byte, 2000)))
			if i >= n || err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
			}
		}
	}
}

// An interface that was there is used as it is, and stays.
func TestTAPExists(t *testing.T) {
	for _, multi := range []bool{false, true} {
		name := fmt.Sprintf("vmp%d", os.Getpid()%100000)
		makePersistent(t, name, multi)
		tap := openTAP(t, network.TAPConfig{Name: name})
		require.Equal(t, name, tap.Name())
		require.Len(t, tap.Ports(), 1)
		require.NoError(t, tap.Close())
		tap, err := network.OpenTAP(network.TAPConfig{Name: name, Queues: 2})
		if multi {
			require.NoError(t, err)
			require.NoError(t, tap.Close())
		} else {
			require.ErrorIs(t, err, unix.EINVAL)
			require.ErrorContains(t, err, "it has one queue only")
		}
		i, err := net.InterfaceByName(name)
		require.NoError(t, err, "it stays")
		require.Zero(t, i.Flags&net.FlagUp, "it is not for us to set up")
		deleteLink(t, i.Index)
	}
}

// makePersistent is "ip tuntap add dev NAME mode tap [multi_queue]".
func makePersistent(t *testing.T, name string, multi bool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("run the test as root")
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	require.NoError(t, err)
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	require.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// Who lacks a right hears which.
func TestTAPRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run the test as root, which gives up its rights")
	}
	said := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			said <- errno
			return
		}
		_, err := network.OpenTAP(network.TAPConfig{})
		said <- err
	}()
	err := <-said
	require.ErrorIs(t, err, fs.ErrPermission)
	require.ErrorContains(t, err, "needs ")
}

func TestTAPInUse(t *testing.T) {
	name := fmt.Sprintf("vmt%d", os.Getpid()%100000)
	tap := openTAP(t, network.TAPConfig{Name: name})
	defer tap.Close()
	_, err := network.OpenTAP(network.TAPConfig{Name: name})
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorContains(t, err, "another process has it")
}

func TestTAPMistakes(t *testing.T) {
	_, err := network.OpenTAP(network.TAPConfig{Name: "a-name-that-is-far-too-long"})
	require.ErrorContains(t, err, "at most 15 bytes")
	for _, n := range []int{-1, network.MaxQueues + 1} {
		_, err = network.OpenTAP(network.TAPConfig{Queues: n})
		require.ErrorContains(t, err, "queues: not 1 to 256")
	}
	if os.Getuid() == 0 {
		_, err = network.OpenTAP(network.TAPConfig{Name: "lo"})
		require.ErrorContains(t, err, "it is no TAP interface")
	}
}
