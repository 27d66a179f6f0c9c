package net_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/network"
	"vmm/virtio"
	virtionet "vmm/virtio/net"
	"vmm/virtio/virtiotest"
)

// host is the other end of a guest's network: a TAP in a network namespace of its own, an address, and a UDP socket.
type host struct {
	tap    *network.TAP
	mac    net.HardwareAddr
	socket int
}

var (
	hostAddr  = [4]byte{10, 0, 0, 1}
	guestAddr = [4]byte{10, 0, 0, 2}
)

const (
	hostPort  = 7000
	guestPort = 8000
)

// newHost makes a host, or skips the test. The test's goroutine keeps its thread, which ends with it, and the namespace with
// that.
func newHost(t testing.TB, queues int) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a TAP in a namespace of its own: run the test as root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a namespace of its own: %v: run the test with CAP_SYS_ADMIN", err)
	}
	h := &host{}
	var err error
	h.tap, err = network.OpenTAP(network.TAPConfig{Name: "tap0", Queues: queues})
	if err != nil {
		t.Skipf("a TAP: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, h.tap.Close()) })
	h.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(h.socket)) })

	request, err := unix.NewIfreq("tap0")
	require.NoError(t, err)
	require.NoError(t, request.SetInet4Addr(hostAddr[:]))
	require.NoError(t, unix.IoctlIfreq(h.socket, unix.SIOCSIFADDR, request))
	require.NoError(t, request.SetInet4Addr([]byte{255, 255, 255, 0}))
	require.NoError(t, unix.IoctlIfreq(h.socket, unix.SIOCSIFNETMASK, request))
	i, err := net.InterfaceByName("tap0")
	require.NoError(t, err)
	h.mac = i.HardwareAddr

	// The guest answers no ARP (struct arpreq of arp(7)).
	arp := make([]byte, 68)
	binary.LittleEndian.PutUint16(arp, unix.AF_INET)
	copy(arp[4:], guestAddr[:])
	binary.LittleEndian.PutUint16(arp[16:], unix.ARPHRD_ETHER)
	copy(arp[18:], mac)
	binary.LittleEndian.PutUint32(arp[32:], 2|4) // ATF_COM, ATF_PERM
	copy(arp[52:], "tap0")
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.socket), unix.SIOCSARP, uintptr(unsafe.Pointer(&arp[0])))
	require.Zero(t, errno)

	require.NoError(t, unix.SetsockoptTimeval(h.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	require.NoError(t, unix.Bind(h.socket, &unix.SockaddrInet4{Port: hostPort, Addr: hostAddr}))
	return h
}

// start makes a device on the host's TAP and a driver that has some buffers of each receiving queue's at the device.
func (h *host) start(t testing.TB, mode virtionet.VhostMode, want virtio.Features) (*virtiotest.Driver, *virtionet.Device) {
	t.Helper()
	cfg := virtionet.Config{Backend: h.tap, MAC: mac, MTU: h.tap.MTU(), Vhost: mode}
	for _, p := range h.tap.Ports() {
		cfg.Ports = append(cfg.Ports, p)
	}
	dev, err := virtionet.New(cfg)
	require.NoError(t, err)
	require.Equal(t, mode == virtionet.VhostOn, dev.Vhost())
	d := virtiotest.New(t, dev, virtiotest.Options{Want: want})
	d.Start()
	return d, dev
}

// receive returns what the guest has sent to the host's socket.
func (h *host) receive(t testing.TB) []byte {
	t.Helper()
	p := make([]byte, 65536)
	n, _, err := unix.Recvfrom(h.socket, p, 0)
	require.NoError(t, err, "the guest's datagram")
	return p[:n]
}

// send sends a datagram to the guest.
func (h *host) send(t testing.TB, payload []byte) {
	t.Helper()
	require.NoError(t, unix.Sendto(h.socket, payload, 0, &unix.SockaddrInet4{Port: guestPort, Addr: guestAddr}))
}

// Where things are in a UDP frame, without the virtio header.
const (
	ipHeader  = 14
	udpHeader = ipHeader + 20
	payloadAt = udpHeader + 8
)

// datagram is a frame from the guest with a whole IPv4 header checksum, and none of UDP's, which is optional.
func (h *host) datagram(payload []byte) []byte {
	be := binary.BigEndian
	f := slices.Concat(h.mac, mac)
	f = be.AppendUint16(f, 0x0800)
	f = append(f, 0x45, 0)
	f = be.AppendUint16(f, uint16(28+len(payload)))
	f = append(f, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	f = append(append(f, guestAddr[:]...), hostAddr[:]...)
	be.PutUint16(f[ipHeader+10:], ^sum(f[ipHeader:udpHeader]))
	f = be.AppendUint16(f, guestPort)
	f = be.AppendUint16(f, hostPort)
	f = be.AppendUint16(f, uint16(8+len(payload)))
	return append(append(f, 0, 0), payload...)
}

// partial is the datagram with its checksum left to the device: there is only the pseudo header's.
func (h *host) partial(payload []byte) []byte {
	f := h.datagram(payload)
	pseudo := slices.Concat(guestAddr[:], hostAddr[:], []byte{0, unix.IPPROTO_UDP}, f[udpHeader+4:udpHeader+6])
	binary.BigEndian.PutUint16(f[udpHeader+6:], sum(pseudo))
	return f
}

// sum is the Internet's checksum (RFC 1071) of an even number of bytes, before its complement.
func sum(p []byte) uint16 {
	var s uint32
	for i := 0; i < len(p); i += 2 {
		s += uint32(p[i])<<8 | uint32(p[i+1])
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// vnetHeader is a struct virtio_net_hdr.
func vnetHeader(flags, gsoType byte, hdrLen, gsoSize, csumStart, csumOffset uint16) []byte {
	b := []byte{flags, gsoType}
	for _, v := range []uint16{hdrLen, gsoSize, csumStart, csumOffset, 0} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// What a header says (§5.1.6).
const (
	needsCsum = 1
	gsoUDPL4  = 5
)

// pattern is n bytes that tell where they are from.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8)
	}
	return p
}

// guestReceive gives queue q buffers of the given size until a datagram to the guest has come, and returns the virtio header
// and the payload. The host has things of its own to say, too.
func guestReceive(t testing.TB, q *virtiotest.Queue, buffers []*virtiotest.Request) (header, payload []byte, rest []*virtiotest.Request) {
	t.Helper()
	for {
		n := buffers[0].Wait()
		data := bytes.Clone(buffers[0].Bytes()[:n])
		// vhost-net leaves the field alone for a driver of separate buffers, which are cleared here.
		count := max(int(binary.LittleEndian.Uint16(data[10:])), 1)
		for _, r := range buffers[1:count] {
			n := r.Wait()
			data = append(data, r.Bytes()[:n]...)
		}
		size := len(buffers[0].Bytes())
		buffers = buffers[count:]
		for range count {
			buffers = append(buffers, q.Submit(nil, size))
		}
		header, frame := data[:virtionet.HeaderSize], data[virtionet.HeaderSize:]
		if len(frame) >= payloadAt && frame[ipHeader-2] == 8 && frame[ipHeader-1] == 0 && frame[ipHeader+9] == unix.IPPROTO_UDP {
			return header, frame[payloadAt:], buffers
		}
	}
}

// post gives the queue n buffers.
func post(q *virtiotest.Queue, n, size int) []*virtiotest.Request {
	var requests []*virtiotest.Request
	for range n {
		requests = append(requests, q.Submit(nil, size))
	}
	return requests
}

// TestTAP is a guest that talks to its host's kernel.
func TestTAP(t *testing.T) { testTAP(t, virtionet.VhostOff) }

// TestVhost is the same with vhost-net, which must make no difference.
func TestVhost(t *testing.T) {
	needVhost(t)
	testTAP(t, virtionet.VhostOn)
}

func needVhost(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("%v: modprobe vhost_net, or run the test in the lab: "+
			"go test -c -o out/net.test ./virtio/net && bin/lab -file out/net.test -- /lab/net.test -test.v", err)
	}
	require.NoError(t, f.Close())
}

func testTAP(t *testing.T, mode virtionet.VhostMode) {
	for name, want := range map[string]virtio.Features{
		"all features":     0,
		"no event index":   ^virtio.EventIdx,
		"no offloads":      virtio.Version1 | virtio.EventIdx | 1<<15,
		"separate buffers": ^virtio.Features(1 << 15),
		"plain":            virtio.Version1,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, 1)
			d, dev := h.start(t, mode, want)
			has := d.Features()
			size := 1600
			switch {
			case has.Has(1 << 15):
				size = 700 // so that a frame takes several
			case has.Has(1 << 54):
				size = 66000
			}
			for range 2 { // drivers
				send := func(header, frame []byte) {
					q := d.Queue(1)
					require.Zero(t, q.Submit([][]byte{header, frame}).Wait())
					q.Indirect = !q.Indirect
				}
				plain := make([]byte, virtionet.HeaderSize)
				send(plain, h.datagram([]byte("as it is")))
				require.Equal(t, "as it is", string(h.receive(t)))
				send(bytes.Repeat([]byte{0xff}, virtionet.HeaderSize), h.datagram([]byte("a header that makes no sense")))
				send(plain, h.datagram(pattern(1472)))
				require.Equal(t, pattern(1472), h.receive(t))
				if has.Has(1 << 0) {
					send(vnetHeader(needsCsum, 0, 0, 0, udpHeader, 6), h.partial([]byte("without a checksum")))
					require.Equal(t, "without a checksum", string(h.receive(t)))
				}
				if has.Has(1 << 56) {
					send(vnetHeader(needsCsum, gsoUDPL4, payloadAt, 1000, udpHeader, 6), h.partial(pattern(2500)))
					got := [][]byte{h.receive(t), h.receive(t), h.receive(t)}
					require.Equal(t, [][]byte{pattern(2500)[:1000], pattern(2500)[1000:2000], pattern(2500)[2000:]}, got)
				}

				rx := d.Queue(0)
				buffers := post(rx, rx.Size()/2, size)
				for _, n := range []int{1, 100, 1472} {
					h.send(t, pattern(n))
					header, payload, rest := guestReceive(t, rx, buffers)
					buffers = rest
					require.True(t, bytes.HasPrefix(payload, pattern(n)))
					if mode == virtionet.VhostOff && !has.Has(1<<1) {
						require.Equal(t, make([]byte, 10), header[:10], "the driver knows of no offload")
					}
				}
				if has.Has(1 << 54) { // a burst is one frame
					require.NoError(t, unix.SetsockoptInt(h.socket, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000))
					h.send(t, pattern(25000))
					require.NoError(t, unix.SetsockoptInt(h.socket, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0))
					header, payload, _ := guestReceive(t, rx, buffers)
					require.Equal(t, pattern(25000), payload)
					require.Equal(t, byte(gsoUDPL4), header[1])
				}
				require.NoError(t, dev.SetLink(false))
				require.Equal(t, []byte{0, 0}, d.Config(6, 2))
				require.NoError(t, dev.SetLink(true))
				send(plain, h.datagram([]byte("plugged in again")))
				require.Equal(t, "plugged in again", string(h.receive(t)))
				require.NoError(t, d.Stop())
				d.Start()
			}
		})
	}
	t.Run("two pairs", func(t *testing.T) {
		h := newHost(t, 2)
		d, _ := h.start(t, mode, 0)
		for range 3 {
			buffers := [][]*virtiotest.Request{post(d.Queue(0), 100, 2000), post(d.Queue(2), 100, 2000)}
			for _, pair := range []int{0, 1, 0} {
				if pair == 1 {
					ack := d.Queue(4).Submit([][]byte{{4, 0, 2, 0}}, 1)
					require.Equal(t, uint32(1), ack.Wait())
					require.Equal(t, []byte{0}, ack.Bytes())
				}
				// The kernel answers a flow where it has come from.
				d.Queue(2*pair + 1).Submit([][]byte{make([]byte, virtionet.HeaderSize), h.datagram([]byte{byte(pair)})}).Wait()
				require.Equal(t, []byte{byte(pair)}, h.receive(t))
				h.send(t, []byte("answer"))
				var payload []byte
				_, payload, buffers[pair] = guestReceive(t, d.Queue(2*pair), buffers[pair])
				require.Equal(t, "answer", string(payload[:6]))
			}
			require.NoError(t, d.Stop())
			d.Start()
		}
	})
}

// A ring that the kernel finds broken is the driver's fault, as one that we find.
func TestVhostBrokenRings(t *testing.T) {
	needVhost(t)
	for i := range 3 {
		t.Run("", func(t *testing.T) {
			h := newHost(t, 1)
			d, _ := h.start(t, virtionet.VhostOn, 0)
			d.Queue(i).SetAvailIdx(1000)
			d.Queue(i).Kick()
			h.send(t, []byte("to have vhost look"))
			require.Error(t, d.Wait())
		})
	}
}

// TestTAPLost takes the interface away: from a driver, and before there is one.
func TestTAPLost(t *testing.T) {
	for _, mode := range []virtionet.VhostMode{virtionet.VhostOff, virtionet.VhostOn} {
		for _, early := range []bool{true, false} {
			t.Run("", func(t *testing.T) {
				if mode == virtionet.VhostOn {
					needVhost(t)
				}
				h := newHost(t, 1)
				dev, err := virtionet.New(virtionet.Config{Backend: h.tap, Ports: []virtionet.Port{h.tap.Ports()[0]}, MAC: mac, Vhost: mode})
				require.NoError(t, err)
				changed := make(chan struct{}, 1)
				dev.OnConfigChange(func() { changed <- struct{}{} })
				d := virtiotest.New(t, dev, virtiotest.Options{})
				if early {
					deleteLink(t)
				}
				d.Start()
				post(d.Queue(0), d.Queue(0).Size()/2, 2000)
				if !early {
					// An answer: the device is at work.
					require.Equal(t, uint32(1), d.Queue(2).Submit([][]byte{{0, 0, 1}}, 1).Wait())
					deleteLink(t)
				}
				if early || mode == virtionet.VhostOff { // vhost does not tell
					<-changed
					require.Equal(t, []byte{0, 0}, d.Config(6, 2))
					require.Equal(t, uint64(1), dev.Stats().Lost)
				}
				if mode == virtionet.VhostOff {
					require.Zero(t, d.Queue(1).Submit([][]byte{frame(60, 1)}).Wait())
				}
				require.NoError(t, d.Stop())
				d.Start()
				require.Equal(t, uint32(1), d.Queue(2).Submit([][]byte{{0, 0, 1}}, 1).Wait())
				require.NoError(t, d.Stop())
				require.Equal(t, []byte{0, 0}, d.Config(6, 2))
			})
		}
	}
}

// deleteLink is "ip link del tap0" (RTM_DELLINK of rtnetlink(7)).
func deleteLink(t *testing.T) {
	t.Helper()
	i, err := net.InterfaceByName("tap0")
	require.NoError(t, err)
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer unix.Close(s)
	le := binary.LittleEndian
	request := le.AppendUint32(nil, 32)
	request = le.AppendUint16(request, unix.RTM_DELLINK)
	request = le.AppendUint16(request, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	request = le.AppendUint64(request, 0)               // sequence, port
	request = le.AppendUint32(request, 0)               // family, type
	request = le.AppendUint32(request, uint32(i.Index)) // of the interface
	request = le.AppendUint64(request, 0)               // flags, change
	require.NoError(t, unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	_, err = unix.Read(s, make([]byte, 4096)) // the acknowledgement
	require.NoError(t, err)
}
