package net_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/virtio"
	virtionet "vmm/virtio/net"
	"vmm/virtio/virtiotest"
)

// sink is a back end that costs nothing: it takes all frames, and has as many as it is told to. It stands for the kernel
// where the device alone is to be seen.
type sink struct {
	header bool
	frame  []byte
	ready  atomic.Int64 // frames to receive
	event  *eventfd.EventFD
}

func newSink(t testing.TB, header bool) *sink {
	t.Helper()
	e, err := eventfd.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	s := &sink{header: header, event: e, frame: frame(1514, 1)}
	if !header {
		s.frame = s.frame[virtionet.HeaderSize:]
	}
	return s
}

func (s *sink) Header() bool          { return s.header }
func (*sink) Offloads() uint          { return 0x7f }
func (*sink) SetOffloads(uint) error  { return nil }
func (*sink) SetQueues(int) error     { return nil }
func (s *sink) FD() int               { return s.event.FD() }
func (*sink) Send([]unix.Iovec) error { return nil }
func (s *sink) deliver(n int)         { s.ready.Add(int64(n)); s.event.Signal() }
func (s *sink) device() virtionet.Config {
	return virtionet.Config{Backend: s, Ports: []virtionet.Port{s}, MAC: mac, MTU: 1500, Vhost: virtionet.VhostOff}
}

func (s *sink) Receive(iov []unix.Iovec) (int, error) {
	if s.ready.Load() == 0 {
		s.event.Drain()
		if s.ready.Load() == 0 {
			return 0, unix.EAGAIN
		}
	}
	s.ready.Add(-1)
	n := 0
	for i := range iov {
		n += copy(unsafe.Slice(iov[i].Base, iov[i].Len), s.frame[n:])
	}
	return n, nil
}

// TestNoAllocation is each path in its steady state: back ends with and without a header, waits among them.
func TestNoAllocation(t *testing.T) {
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprintf("header=%t", header), func(t *testing.T) {
			s := newSink(t, header)
			dev, err := virtionet.New(s.device())
			require.NoError(t, err)
			d := virtiotest.New(t, dev, virtiotest.Options{})
			d.Start()
			tx := d.Queue(1).Prepare([][]byte{frame(1514, 1)[:12], frame(1514, 1)[12:]})
			require.Zero(t, int(testing.AllocsPerRun(100, func() {
				tx.Submit()
				tx.Wait()
			})))
			var rx []*virtiotest.Request
			for range d.Queue(0).Size() / 2 {
				rx = append(rx, d.Queue(0).Prepare(nil, 512, 488))
			}
			for _, r := range rx {
				r.Submit()
			}
			next := 0
			receive := func() {
				s.deliver(1)
				for range 2 { // chains
					r := rx[next%len(rx)]
					next++
					r.Wait()
					r.Submit()
				}
			}
			for range d.Queue(0).Size() { // each place for a chain has met one
				receive()
			}
			require.Zero(t, int(testing.AllocsPerRun(100, receive)))
			require.Equal(t, uint64(d.Queue(0).Size()+101), dev.Stats().Received)
		})
	}
}

// batch is how many frames a benchmark's driver sends or receives at a time, as a busy one does. Its own cost is in the
// figures.
const batch = 64

func BenchmarkTransmit(b *testing.B) {
	tso := func(h *host) []byte { // 64 KiB of UDP to a port where nobody listens, to be cut by the kernel
		return append(vnetHeader(needsCsum, gsoUDPL4, payloadAt, 1000, udpHeader, 6), h.partial(pattern(64000))...)
	}
	small := func(h *host) []byte { return append(make([]byte, virtionet.HeaderSize), h.datagram(pattern(22))...) }
	full := func(h *host) []byte { return append(make([]byte, virtionet.HeaderSize), h.datagram(pattern(1472))...) }
	for _, to := range []string{"sink", "tap"} {
		for _, c := range []struct {
			name  string
			frame func(h *host) []byte
		}{{"64B", small}, {"1514B", full}, {"64KiB", tso}} {
			b.Run(to+"/"+c.name, func(b *testing.B) {
				var (
					d    *virtiotest.Driver
					dev  *virtionet.Device
					data []byte
				)
				if to == "tap" {
					h := newHost(b, 1)
					d, dev = h.start(b, virtionet.VhostOff, 0)
					data = c.frame(h)
					data[virtionet.HeaderSize] ^= 2 // for another host: the kernel takes it and is done
				} else {
					var err error
					dev, err = virtionet.New(newSink(b, true).device())
					require.NoError(b, err)
					d = virtiotest.New(b, dev, virtiotest.Options{})
					d.Start()
					data = c.frame(&host{mac: mac})
				}
				var requests []*virtiotest.Request
				for range batch {
					requests = append(requests, d.Queue(1).Prepare([][]byte{data}))
				}
				b.SetBytes(int64(len(data) - virtionet.HeaderSize))
				b.ReportAllocs()
				before := dev.Stats().Sent
				n := 0
				for b.Loop() {
					if n%batch == 0 {
						for _, r := range requests {
							r.Submit()
						}
						for _, r := range requests {
							r.Wait()
						}
					}
					n++
				}
				require.GreaterOrEqual(b, dev.Stats().Sent-before, uint64(n))
			})
		}
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name   string
		want   virtio.Features
		buffer int
	}{
		{"mergeable", 0, 1526},
		{"mergeable, no offloads", virtio.Version1 | virtio.EventIdx | 1<<15, 1526},
		{"separate", virtio.Version1 | virtio.EventIdx, 1526},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSink(b, true)
			dev, err := virtionet.New(s.device())
			require.NoError(b, err)
			d := virtiotest.New(b, dev, virtiotest.Options{Want: c.want})
			d.Start()
			var requests []*virtiotest.Request
			for range d.Queue(0).Size() {
				requests = append(requests, d.Queue(0).Prepare(nil, c.buffer))
			}
			for _, r := range requests {
				r.Submit()
			}
			b.SetBytes(1514)
			b.ReportAllocs()
			n, next := 0, 0
			for b.Loop() {
				if n%batch == 0 {
					s.deliver(batch)
					for range batch {
						r := requests[next%len(requests)]
						next++
						r.Wait()
						r.Submit()
					}
				}
				n++
			}
		})
	}
}
