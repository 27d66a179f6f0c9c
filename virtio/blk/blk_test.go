package blk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/block/qcow2"
	"vmm/internal/leak"
	"vmm/virtio"
	"vmm/virtio/blk"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtqueue"
)

func TestMain(m *testing.M) { leak.Main(m) }

// Types and statuses, as §5.2.6 numbers them.
const (
	in, out, flush, getID, discard, writeZeroes = 0, 1, 4, 8, 11, 13

	ok, ioErr, unsupp = 0, 1, 2
)

func header(kind uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, sector)
}

func segment(sector uint64, n, flags uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, sector)
	b = binary.LittleEndian.AppendUint32(b, n)
	return binary.LittleEndian.AppendUint32(b, flags)
}

// memoryDisk is a back end without a file.
type memoryDisk struct {
	mu    sync.Mutex // guards what follows
	data  []byte
	syncs int

	fault func(op string, off int64, n int) (int, error) // if not nil: how much is done, and the error
}

func (m *memoryDisk) do(op string, p []byte, off int64) (int, error) {
	if m.fault != nil {
		if n, err := m.fault(op, off, len(p)); err != nil || n < len(p) {
			return n, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch op {
	case "read":
		return copy(p, m.data[off:]), nil
	case "write":
		return copy(m.data[off:], p), nil
	}
	m.syncs++
	return 0, nil
}

func (m *memoryDisk) ReadAt(p []byte, off int64) (int, error)  { return m.do("read", p, off) }
func (m *memoryDisk) WriteAt(p []byte, off int64) (int, error) { return m.do("write", p, off) }
func (m *memoryDisk) Sync() error                              { _, err := m.do("sync", nil, 0); return err }

func (m *memoryDisk) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}

const diskSize = 1 << 20

// file makes an image and opens it.
func file(t testing.TB, size int64, o block.Options) *block.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	f, err := block.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// qcow2Image makes an image of small clusters, in a file.
func qcow2Image(t testing.TB) *qcow2.Image {
	t.Helper()
	f, err := block.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	require.NoError(t, qcow2.Create(f, qcow2.CreateOptions{Size: diskSize, ClusterSize: 4096}))
	m, err := qcow2.Open(f, qcow2.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// TestMapped reads and writes an image's data by the ring, where it is in one piece, and the rest otherwise. Meanwhile the guest
// frees clusters and flushes, which moves others to their place.
func TestMapped(t *testing.T) {
	m := qcow2Image(t)
	d, dev := start(t, blk.Config{Backend: m, Discard: true}, virtiotest.Options{})
	q := d.Queue(0)
	model := make([]byte, diskSize)
	random := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var waits []func()
		const lanes = 16
		for lane := range lanes {
			at := lane*(diskSize/lanes) + 4096*random.IntN(diskSize/lanes/4096)
			lane := model[at : at+4096]
			switch random.IntN(6) {
			case 0:
				clear(lane)
				r := q.Submit([][]byte{header(writeZeroes, 0), segment(uint64(at/512), 8, 1)}, 1)
				waits = append(waits, func() { require.Equal(t, byte(ok), status(t, r)) })
			case 1:
				r := q.Submit([][]byte{header(flush, 0)}, 1)
				waits = append(waits, func() { require.Equal(t, byte(ok), status(t, r)) })
			case 2, 3:
				for i := range lane {
					lane[i] = byte(random.Uint32())
				}
				r := q.Submit([][]byte{header(out, uint64(at/512)), bytes.Clone(lane)}, 1)
				waits = append(waits, func() { require.Equal(t, byte(ok), status(t, r)) })
			default:
				want := bytes.Clone(lane)
				r := q.Submit([][]byte{header(in, uint64(at/512))}, 4096, 1)
				waits = append(waits, func() {
					require.Equal(t, byte(ok), status(t, r))
					require.True(t, bytes.Equal(want, r.Bytes()[:4096]))
				})
			}
		}
		for _, wait := range waits {
			wait()
		}
	}
	stats := dev.Stats()
	require.Greater(t, stats.Direct, (stats.Reads+stats.Writes)/4, "%+v", stats)
	require.Less(t, stats.Direct, stats.Reads+stats.Writes, "%+v", stats)
	res, err := m.Check(qcow2.Repair{})
	require.NoError(t, err)
	require.Zero(t, res.Corruptions, "%+v", res)
}

// ways are the ways that a request can take.
func ways(t *testing.T, test func(t *testing.T, cfg blk.Config)) {
	t.Run("ring", func(t *testing.T) { test(t, blk.Config{Backend: file(t, diskSize, block.Options{})}) })
	t.Run("ring, direct I/O", func(t *testing.T) {
		test(t, blk.Config{Backend: file(t, diskSize, block.Options{Cache: block.None})})
	})
	t.Run("workers", func(t *testing.T) {
		test(t, blk.Config{Backend: file(t, diskSize, block.Options{}), NoRing: true})
	})
	t.Run("image", func(t *testing.T) { test(t, blk.Config{Backend: qcow2Image(t)}) })
	t.Run("no file", func(t *testing.T) { test(t, blk.Config{Backend: &memoryDisk{data: make([]byte, diskSize)}}) })
}

func start(t testing.TB, cfg blk.Config, o virtiotest.Options) (*virtiotest.Driver, *blk.Device) {
	t.Helper()
	dev, err := blk.New(cfg)
	require.NoError(t, err)
	d := virtiotest.New(t, dev, o)
	d.Start()
	return d, dev
}

// status waits for r and returns its last byte.
func status(t testing.TB, r *virtiotest.Request) byte {
	t.Helper()
	n := r.Wait()
	require.Equal(t, len(r.Bytes()), int(n))
	return r.Bytes()[n-1]
}

func TestRequests(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 64) // 1024 bytes
	for _, c := range []struct {
		name     string
		readable [][]byte
		writable []int
		want     byte
	}{
		{"read", [][]byte{header(in, 0)}, []int{512, 1}, ok},
		{"read the last sector", [][]byte{header(in, diskSize/512-1)}, []int{512, 1}, ok},
		{"read beyond the end", [][]byte{header(in, diskSize/512)}, []int{512, 1}, ioErr},
		{"read across the end", [][]byte{header(in, diskSize/512-1)}, []int{1024, 1}, ioErr},
		{"read far away", [][]byte{header(in, 1<<63)}, []int{512, 1}, ioErr},
		{"read to 2^64", [][]byte{header(in, 1<<64-1)}, []int{512, 1}, ioErr},
		{"read half a sector", [][]byte{header(in, 0)}, []int{256, 1}, ioErr},
		{"read nothing", [][]byte{header(in, 0)}, []int{1}, ok},
		{"the status is part of the data's buffer", [][]byte{header(in, 0)}, []int{513}, ok},
		{"many pieces", [][]byte{header(in, 0)}, []int{1, 510, 2, 500, 11, 1}, ok},
		{"the header in pieces", [][]byte{header(in, 0)[:3], header(in, 0)[3:9], header(in, 0)[9:]}, []int{512, 1}, ok},
		{"write", [][]byte{header(out, 4), data}, []int{1}, ok},
		{"write with the header", [][]byte{append(header(out, 4), data...)}, []int{1}, ok},
		{"write in pieces", [][]byte{header(out, 4)[:15], append(header(out, 4)[15:], data[:1]...), data[1:]}, []int{1}, ok},
		{"write half a sector", [][]byte{header(out, 4), data[:100]}, []int{1}, ioErr},
		{"write beyond the end", [][]byte{header(out, diskSize/512-1), data}, []int{1}, ioErr},
		{"flush", [][]byte{header(flush, 0)}, []int{1}, ok},
		{"unknown", [][]byte{header(99, 0)}, []int{1}, unsupp},
		{"secure erase", [][]byte{header(14, 0), segment(0, 1, 0)}, []int{1}, unsupp},
		{"short header", [][]byte{header(in, 0)[:15]}, []int{512, 1}, ioErr},
		{"no header", nil, []int{512, 1}, ioErr},
		{"discard without the feature", [][]byte{header(discard, 0), segment(0, 8, 0)}, []int{1}, unsupp},
	} {
		t.Run(c.name, func(t *testing.T) {
			ways(t, func(t *testing.T, cfg blk.Config) {
				d, _ := start(t, cfg, virtiotest.Options{})
				d.Queue(0).Indirect = true
				require.Equal(t, c.want, status(t, d.Queue(0).Submit(c.readable, c.writable...)))
			})
		})
	}
}

func TestNoStatus(t *testing.T) {
	d, dev := start(t, blk.Config{Backend: &memoryDisk{data: make([]byte, diskSize)}}, virtiotest.Options{})
	require.Zero(t, d.Queue(0).Submit([][]byte{header(flush, 0)}).Wait())
	require.Equal(t, uint64(1), dev.Stats().Malformed)
}

func TestGetID(t *testing.T) {
	for serial, want := range map[string]string{"": "", "vm-1": "vm-1", "twenty bytes exactly": "twenty bytes exactly"} {
		d, _ := start(t, blk.Config{Backend: &memoryDisk{data: make([]byte, diskSize)}, Serial: serial}, virtiotest.Options{})
		r := d.Queue(0).Submit([][]byte{header(getID, 0)}, 20, 1)
		require.Equal(t, byte(ok), status(t, r))
		require.Equal(t, want, string(bytes.TrimRight(r.Bytes()[:20], "\x00")))
		require.Equal(t, byte(ok), status(t, d.Queue(0).Submit([][]byte{header(getID, 0)}, 5, 1)), "a short buffer")
	}
}

func TestConfigErrors(t *testing.T) {
	disk := &memoryDisk{data: make([]byte, diskSize)}
	for want, cfg := range map[string]blk.Config{
		"no back end":                  {},
		"65 queues: not 1 to 64":       {Backend: disk, Queues: 65},
		"21 bytes, at most 20":         {Backend: disk, Serial: "twenty-one characters"},
		"block sizes 100 and 100: not": {Backend: oddBlocks{disk}},
	} {
		_, err := blk.New(cfg)
		require.ErrorContains(t, err, want)
	}
}

type oddBlocks struct{ *memoryDisk }

func (oddBlocks) BlockSizes() (int, int) { return 100, 100 }

type bigBlocks struct{ *memoryDisk }

func (bigBlocks) BlockSizes() (int, int)               { return 512, 4096 }
func (bigBlocks) Discard(int64, int64) error           { return nil }
func (bigBlocks) WriteZeroes(int64, int64, bool) error { return nil }

// The configuration space, byte by byte, as §5.2.4 has it.
func TestConfigSpace(t *testing.T) {
	disk := &memoryDisk{data: make([]byte, diskSize)}
	dev, err := blk.New(blk.Config{Backend: bigBlocks{disk}, Queues: 4, Discard: true})
	require.NoError(t, err)
	d := virtiotest.New(t, dev, virtiotest.Options{})
	require.Equal(t, []byte{
		0, 8, 0, 0, 0, 0, 0, 0, // capacity: 2048 sectors
		0, 0, 0, 0, // size_max
		254, 0, 0, 0, // seg_max
		0, 0, 0, 0, // geometry
		0, 2, 0, 0, // blk_size
		3, 0, 8, 0, 0, 0, 0, 0, // topology: 8 logical blocks in a physical one
		1, 0, 4, 0, // writeback, num_queues
		0, 0, 64, 0, 16, 0, 0, 0, 8, 0, 0, 0, // discard
		0, 0, 64, 0, 16, 0, 0, 0, 1, 0, 0, 0, // write zeroes
		0, 0, 0, 0,
	}, d.Config(0, 64))
	require.Equal(t, []byte{2, 0}, d.Config(0x15, 2))
	require.Equal(t, []byte{0, 0}, d.Config(0xffff_fff0, 2))
	require.Equal(t, virtio.Features(1<<2|1<<6|1<<9|1<<10|1<<12|1<<13|1<<14), dev.Features())

	changes := 0
	dev.OnConfigChange(func() { changes++ })
	disk.data = make([]byte, 2*diskSize)
	dev.Resized()
	require.Equal(t, []byte{0, 16, 0, 0}, d.Config(0, 4))
	require.Equal(t, 1, changes)
}

func TestReadOnly(t *testing.T) {
	disk := &memoryDisk{data: make([]byte, diskSize)}
	d, dev := start(t, blk.Config{Backend: bigBlocks{disk}, ReadOnly: true, Discard: true}, virtiotest.Options{})
	require.Equal(t, virtio.Features(1<<5), dev.Features()&(1<<5|1<<13|1<<14))
	q := d.Queue(0)
	require.Equal(t, byte(ioErr), status(t, q.Submit([][]byte{header(out, 0), bytes.Repeat([]byte{1}, 512)}, 1)))
	require.Equal(t, byte(unsupp), status(t, q.Submit([][]byte{header(discard, 0), segment(0, 8, 0)}, 1)))
	require.Equal(t, byte(unsupp), status(t, q.Submit([][]byte{header(writeZeroes, 0), segment(0, 8, 0)}, 1)))
	require.Equal(t, byte(ok), status(t, q.Submit([][]byte{header(in, 0)}, 512, 1)))
	require.NotContains(t, disk.data, byte(1))
}

// Random requests, many at once, against a copy in memory. Those in flight together don't overlap.
func TestModel(t *testing.T) {
	ways(t, func(t *testing.T, cfg blk.Config) {
		cfg.Queues = 2
		d, _ := start(t, cfg, virtiotest.Options{})
		model := make([]byte, diskSize)
		random := rand.New(rand.NewPCG(1, 2))
		const lanes = 8 // parts of the disk, a request in each
		for range 60 {
			var waits []func()
			for lane := range lanes {
				q := d.Queue(lane % 2)
				q.Indirect = random.IntN(2) == 0
				first := lane * (diskSize / lanes)
				sector := random.IntN(diskSize / lanes / 512)
				n := 512 * (1 + random.IntN(min(64, diskSize/lanes/512-sector)))
				at := first + 512*sector
				pieces := cut(random, n)
				if random.IntN(2) == 0 {
					data := make([]byte, n)
					for i := range data {
						data[i] = byte(random.Uint32())
					}
					readable := [][]byte{header(out, uint64(at/512))}
					rest := data
					for _, size := range pieces {
						readable = append(readable, rest[:size])
						rest = rest[size:]
					}
					copy(model[at:], data)
					r := q.Submit(readable, 1)
					waits = append(waits, func() { require.Equal(t, byte(ok), status(t, r)) })
				} else {
					want := bytes.Clone(model[at : at+n])
					r := q.Submit([][]byte{header(in, uint64(at/512))}, append(pieces, 1)...)
					waits = append(waits, func() {
						require.Equal(t, byte(ok), status(t, r))
						require.True(t, bytes.Equal(want, r.Bytes()[:n]))
					})
				}
			}
			for _, wait := range waits {
				wait()
			}
		}
	})
}

// cut cuts n bytes into a few pieces.
func cut(random *rand.Rand, n int) []int {
	var pieces []int
	for len(pieces) < 3 && n > 1 {
		size := 1 + random.IntN(n-1)
		pieces = append(pieces, size)
		n -= size
	}
	return append(pieces, n)
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(op string, off int64, n int) (int, error)
	}{
		{"EIO", func(string, int64, int) (int, error) { return 0, unix.EIO }},
		{"ENOSPC half way", func(_ string, _ int64, n int) (int, error) { return n / 2, unix.ENOSPC }},
		{"short without an error", func(_ string, _ int64, n int) (int, error) { return n / 2, nil }},
		{"end of file", func(string, int64, int) (int, error) { return 0, io.EOF }},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := &memoryDisk{data: make([]byte, diskSize), fault: c.fault}
			d, dev := start(t, blk.Config{Backend: disk}, virtiotest.Options{})
			q := d.Queue(0)
			require.Equal(t, byte(ioErr), status(t, q.Submit([][]byte{header(in, 0)}, 512, 1)))
			require.Equal(t, byte(ioErr), status(t, q.Submit([][]byte{header(out, 0), make([]byte, 512)}, 1)))
			if c.name == "EIO" {
				require.Equal(t, byte(ioErr), status(t, q.Submit([][]byte{header(flush, 0)}, 1)))
			}
			require.NotZero(t, dev.Stats().Failed)
			disk.fault = nil
			require.Equal(t, byte(ok), status(t, q.Submit([][]byte{header(in, 0)}, 512, 1)), "the disk lives")
		})
	}
}

// A file that lost its end under us, and one that cannot be written: errors of the ring's.
func TestFileFaults(t *testing.T) {
	f := file(t, diskSize, block.Options{})
	d, _ := start(t, blk.Config{Backend: f}, virtiotest.Options{})
	require.NoError(t, os.Truncate(f.Path(), 512))
	require.Equal(t, byte(ok), status(t, d.Queue(0).Submit([][]byte{header(in, 0)}, 512, 1)))

	readOnly := file(t, diskSize, block.Options{ReadOnly: true})
	var dev *blk.Device
	d, dev = start(t, blk.Config{Backend: readOnly}, virtiotest.Options{})
	require.Equal(t, byte(ioErr), status(t, d.Queue(0).Submit([][]byte{header(out, 0), make([]byte, 512)}, 1)))
	require.Equal(t, uint64(1), dev.Stats().Failed)
}

// A request that hangs holds up neither the others of its queue nor the other queue, and a reset waits for it.
func TestSlowDisk(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	disk := &memoryDisk{data: make([]byte, diskSize)}
	disk.fault = func(op string, off int64, n int) (int, error) {
		if op == "read" && off == 4096 {
			close(reached)
			<-release
		}
		return n, nil
	}
	d, _ := start(t, blk.Config{Backend: disk, Queues: 2}, virtiotest.Options{})
	slow := d.Queue(0).Submit([][]byte{header(in, 8)}, 512, 1)
	<-reached
	for i := range 4 {
		require.Equal(t, byte(ok), status(t, d.Queue(i%2).Submit([][]byte{header(in, 0)}, 512, 1)))
	}
	require.False(t, slow.Done())
	stopped := make(chan error)
	go func() { stopped <- d.Stop() }()
	select {
	case <-stopped:
		t.Fatal("stopped with a request in flight")
	default:
	}
	close(release)
	require.NoError(t, <-stopped)
	disk.fault = nil
	d.Start()
	require.Equal(t, byte(ok), status(t, d.Queue(0).Submit([][]byte{header(in, 8)}, 512, 1)))
}

// A flush is complete only after Sync has returned, and Sync is called after the write was complete.
func TestFlush(t *testing.T) {
	var mu sync.Mutex
	var order []string
	disk := &memoryDisk{data: make([]byte, diskSize)}
	disk.fault = func(op string, _ int64, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, op)
		return n, nil
	}
	d, _ := start(t, blk.Config{Backend: disk}, virtiotest.Options{})
	require.Equal(t, byte(ok), status(t, d.Queue(0).Submit([][]byte{header(out, 0), make([]byte, 512)}, 1)))
	require.Equal(t, byte(ok), status(t, d.Queue(0).Submit([][]byte{header(flush, 0)}, 1)))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"write", "sync"}, order)
}

func TestDiscard(t *testing.T) {
	f := file(t, diskSize, block.Options{})
	blocks := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(f.Path(), &st))
		return st.Blocks
	}
	d, _ := start(t, blk.Config{Backend: f, Discard: true}, virtiotest.Options{})
	q := d.Queue(0)
	ones := bytes.Repeat([]byte{1}, 256<<10)
	for i := range uint64(4) {
		require.Equal(t, byte(ok), status(t, q.Submit([][]byte{header(out, 512*i), ones}, 1)))
	}
	require.NoError(t, f.Sync())
	before := blocks()
	require.GreaterOrEqual(t, before, int64(diskSize/512))
	for _, c := range []struct {
		name     string
		kind     uint32
		segments []byte
		want     byte
	}{
		{"discard", discard, append(segment(0, 512, 0), segment(1024, 8, 0)...), ok},
		{"zeroes", writeZeroes, segment(512, 8, 0), ok},
		{"zeroes, unmapped", writeZeroes, segment(520, 500, 1), ok},
		{"unmap of a discard", discard, segment(0, 8, 1), unsupp},
		{"reserved flags", writeZeroes, segment(0, 8, 2), unsupp},
		{"beyond the end", discard, segment(diskSize/512-1, 2, 0), ioErr},
		{"overflow", discard, segment(1<<64-1, 1<<32-1, 0), ioErr},
		{"too long", discard, segment(0, 1<<22+1, 0), ioErr},
		{"half a segment", discard, segment(0, 8, 0)[:10], ioErr},
		{"none", discard, nil, ioErr},
		{"too many", discard, bytes.Repeat(segment(0, 8, 0), 17), ioErr},
	} {
		readable := [][]byte{header(c.kind, 0)}
		if c.segments != nil {
			readable = append(readable, c.segments)
		}
		require.Equal(t, c.want, status(t, q.Submit(readable, 1)), c.name)
	}
	require.LessOrEqual(t, blocks(), before-(512+8+500)/8*8+16)
	r := q.Submit([][]byte{header(in, 512)}, 512*512, 1)
	require.Equal(t, byte(ok), status(t, r))
	require.True(t, bytes.Equal(make([]byte, 508*512), r.Bytes()[:508*512]))
	require.Equal(t, byte(1), r.Bytes()[508*512])
}

func TestBrokenRing(t *testing.T) {
	d, _ := start(t, blk.Config{Backend: &memoryDisk{data: make([]byte, diskSize)}, Queues: 2}, virtiotest.Options{})
	d.Queue(1).SetAvailIdx(1000)
	d.Queue(1).Kick()
	require.ErrorAs(t, d.Wait(), new(*virtqueue.Error))
}

// A driver may offer one chain again before it is back: as many as there are descriptors, and more.
func TestSameChainManyTimes(t *testing.T) {
	reached, release := make(chan struct{}, 16), make(chan struct{})
	disk := &memoryDisk{data: make([]byte, diskSize)}
	disk.fault = func(_ string, _ int64, n int) (int, error) {
		reached <- struct{}{}
		<-release
		return n, nil
	}
	d, _ := start(t, blk.Config{Backend: disk}, virtiotest.Options{QueueSize: 8})
	q := d.Queue(0)
	addr, b := d.Alloc(1024)
	copy(b, header(in, 0))
	q.SetDesc(0, virtiotest.Desc{Addr: addr, Len: 16, Flags: virtiotest.Next, Next: 1})
	q.SetDesc(1, virtiotest.Desc{Addr: addr + 16, Len: 513, Flags: virtiotest.Write})
	q.Offer(0, 0, 0, 0, 0, 0, 0, 0)
	for range 8 {
		<-reached
	}
	q.Offer(0, 0, 0, 0, 0, 0, 0, 0) // there is no slot for them yet
	q.Kick()
	for range 16 {
		release <- struct{}{}
		require.Equal(t, virtiotest.Used{ID: 0, Len: 513}, q.WaitUsed())
	}
}

func TestNoAllocation(t *testing.T) {
	ways(t, func(t *testing.T, cfg blk.Config) {
		d, _ := start(t, cfg, virtiotest.Options{})
		r := d.Queue(0).Prepare([][]byte{header(in, 0)}, 4096, 1)
		require.Zero(t, int(testing.AllocsPerRun(100, func() {
			r.Submit()
			r.Wait()
		})))
	})
}

func FuzzBlk(f *testing.F) {
	f.Add([]byte{0, 0, 0x12, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 1, 4, 0})
	virtiotest.Fuzz(f, func(t testing.TB) virtio.Device {
		dev, err := blk.New(blk.Config{Backend: bigBlocks{&memoryDisk{data: make([]byte, 64<<10)}}, Queues: 2, Discard: true})
		require.NoError(t, err)
		return dev
	})
}

func BenchmarkRead(b *testing.B) {
	for _, way := range []string{"ring", "workers"} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/QD%d", way, depth), func(b *testing.B) {
				d, _ := start(b, blk.Config{Backend: file(b, 64<<20, block.Options{}), NoRing: way == "workers"}, virtiotest.Options{})
				var requests []*virtiotest.Request
				for i := range depth {
					requests = append(requests, d.Queue(0).Prepare([][]byte{header(in, uint64(8*i))}, 4096, 1))
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					r := requests[i%depth]
					if i >= depth {
						r.Wait()
					}
					r.Submit()
				}
				for _, r := range requests[:min(depth, b.N)] {
					r.Wait()
				}
			})
		}
	}
}

type noHoles struct{ bigBlocks }

func (noHoles) Discard(int64, int64) error { return errors.ErrUnsupported }

func TestDiscardUnsupportedByHost(t *testing.T) {
	d, _ := start(t, blk.Config{Backend: noHoles{bigBlocks{&memoryDisk{data: make([]byte, diskSize)}}}, Discard: true}, virtiotest.Options{})
	require.Equal(t, byte(unsupp), status(t, d.Queue(0).Submit([][]byte{header(discard, 0), segment(0, 8, 0)}, 1)))
}
