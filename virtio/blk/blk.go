// Package blk is the virtio block device (Virtual I/O Device 1.2 §5.2): a disk.
//
// The configuration space (§5.2.4), all of it read-only:
//
//	00  capacity (8)                    in sectors of 512 bytes
//	08  size_max (4)                    0: VIRTIO_BLK_F_SIZE_MAX is not offered
//	0c  seg_max (4)                     buffers in a request
//	10  geometry (4)                    0: not offered
//	14  blk_size (4)                    the logical block size in bytes
//	18  physical_block_exp (1), alignment_offset (1), min_io_size (2), opt_io_size (4)
//	20  writeback (1)                   1: a write is durable after a flush; VIRTIO_BLK_F_CONFIG_WCE is not offered
//	22  num_queues (2)
//	24  max_discard_sectors (4), max_discard_seg (4), discard_sector_alignment (4)
//	30  max_write_zeroes_sectors (4), max_write_zeroes_seg (4), write_zeroes_may_unmap (1)
//
// A request (§5.2.6) is a header that the device reads, then data that it reads or writes, then a byte of status that it
// writes:
//
//	header  0 type (4), 4 reserved (4), 8 sector (8)
//	type    0 IN, 1 OUT, 4 FLUSH, 8 GET_ID, 11 DISCARD, 13 WRITE_ZEROES
//	status  0 OK, 1 IOERR, 2 UNSUPP
//
// # How requests run
//
// Each queue has a goroutine of its own, whose thread takes requests and gives them back; it never waits for a disk. Reads
// and writes go to the host's kernel by io_uring, straight from and to the guest's memory, and the thread waits for their
// completions and for the guest's next kick at once. What the ring can't do (flushes, discards, memory that direct I/O does
// not take, back ends that are no file, hosts without io_uring) a few worker goroutines do.
//
// # Deviations
//
//   - Requests longer than the disk's seg_max are served, if they fit the queue.
//   - The secure erase, lifetime and zoned requests are not offered; they get UNSUPP.
package blk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/virtio"
)

// SectorSize is the unit of capacity and of addresses in bytes.
const SectorSize = 512

// Backend is what a disk's data is in. Any number of goroutines call its methods at once. Errors reach the guest as I/O
// errors, and stay with the request.
type Backend interface {
	io.ReaderAt
	io.WriterAt
	// Size is in bytes, a multiple of SectorSize. When it has changed, [Device.Resized] tells the guest.
	Size() int64
	// Sync returns when all writes that were complete before it are durable.
	Sync() error
}

// A Backend may have more to offer.
type (
	// VectorBackend reads and writes several buffers by one call. It may change iov.
	VectorBackend interface {
		ReadVector(iov []unix.Iovec, off int64) (int, error)
		WriteVector(iov []unix.Iovec, off int64) (int, error)
	}
	// DirectBackend is a plain file or disk of the host: bytes off on are the disk's. What memory addresses and lengths
	// are not a multiple of align goes through the other methods, as does what a read finds beyond the end of the file.
	DirectBackend interface {
		Direct() (fd, align int)
	}
	// Guarded is a DirectBackend that wants to see the writes that begin before an offset.
	Guarded interface {
		DirectFrom() int64
	}
	// MappedBackend has the disk's data in a file of the host, in places of its own choice.
	MappedBackend interface {
		// MappedFile is the file, and the align of a DirectBackend; ok is false where there is none.
		MappedFile() (fd, align int, ok bool)
		// Map returns where in the file the n bytes from off on are, if they can be read there, or written, and are all in
		// one piece. That stays so until Unmap, which ends one Map that was ok. Map does not wait for anything.
		Map(off, n int64, write bool) (at int64, ok bool)
		Unmap()
	}
	// Discarder can free blocks that the guest has no use for. An error that is errors.ErrUnsupported is told the guest
	// as such.
	Discarder interface {
		Discard(off, n int64) error
	}
	// ZeroWriter can make blocks zero without being sent zeroes, freeing them if mayUnmap.
	ZeroWriter interface {
		WriteZeroes(off, n int64, mayUnmap bool) error
	}
	// Blocked has block sizes other than a sector, in bytes: the least piece that can be written, and the least that can
	// be written without being read.
	Blocked interface {
		BlockSizes() (logical, physical int)
	}
)

// Limits of a [Config], and its defaults.
const (
	MaxSerial        = 20 // bytes
	MaxQueues        = 64
	DefaultQueueSize = 256
)

// Config is what a disk is made of.
type Config struct {
	Backend  Backend
	ReadOnly bool
	Serial   string // at most MaxSerial bytes
	Queues   int    // zero is one
	Discard  bool   // offer the guest to free blocks, where Backend is a Discarder
	// NoRing keeps from using io_uring, for comparison.
	NoRing bool
}

// Device is a disk. It implements virtio.Device.
type Device struct {
	cfg     Config
	serial  [MaxSerial]byte
	discard Discarder  // nil: not offered
	zeroes  ZeroWriter // nil: not offered
	logical int
	physExp uint8

	capacity atomic.Uint64 // sectors
	notify   func()
	counters counters
}

// New makes a disk. It fails for a value of cfg's that no disk can have.
func New(cfg Config) (*Device, error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	switch {
	case cfg.Backend == nil:
		return nil, errors.New("no back end")
	case cfg.Queues < 1 || cfg.Queues > MaxQueues:
		return nil, fmt.Errorf("%d queues: not 1 to %d", cfg.Queues, MaxQueues)
	case len(cfg.Serial) > MaxSerial:
		return nil, fmt.Errorf("serial number %q: %d bytes, at most %d", cfg.Serial, len(cfg.Serial), MaxSerial)
	}
	d := &Device{cfg: cfg, logical: SectorSize, notify: func() {}}
	copy(d.serial[:], cfg.Serial)
	if !cfg.ReadOnly {
		if cfg.Discard {
			d.discard, _ = cfg.Backend.(Discarder)
		}
		d.zeroes, _ = cfg.Backend.(ZeroWriter)
	}
	if b, ok := cfg.Backend.(Blocked); ok {
		logical, physical := b.BlockSizes()
		if logical < SectorSize || logical&(logical-1) != 0 || physical < logical || physical&(physical-1) != 0 {
			return nil, fmt.Errorf("block sizes %d and %d: not powers of two from %d on", logical, physical, SectorSize)
		}
		d.logical, d.physExp = logical, uint8(bits.TrailingZeros(uint(physical/logical)))
	}
	d.capacity.Store(uint64(cfg.Backend.Size()) / SectorSize)
	return d, nil
}

// Resized tells the guest that the back end's size has changed.
func (d *Device) Resized() {
	d.capacity.Store(uint64(d.cfg.Backend.Size()) / SectorSize)
	d.notify()
}

// OnConfigChange implements virtio.ConfigNotifier.
func (d *Device) OnConfigChange(changed func()) { d.notify = changed }

// ID implements virtio.Device.
func (*Device) ID() virtio.DeviceID { return virtio.Block }

// Feature bits (§5.2.3).
const (
	featureSegMax      virtio.Features = 1 << 2
	featureRO          virtio.Features = 1 << 5
	featureBlkSize     virtio.Features = 1 << 6
	featureFlush       virtio.Features = 1 << 9
	featureTopology    virtio.Features = 1 << 10
	featureMQ          virtio.Features = 1 << 12
	featureDiscard     virtio.Features = 1 << 13
	featureWriteZeroes virtio.Features = 1 << 14
)

// Features implements virtio.Device.
func (d *Device) Features() virtio.Features {
	f := featureSegMax | featureBlkSize | featureFlush | featureTopology | featureMQ
	if d.cfg.ReadOnly {
		f |= featureRO
	}
	if d.discard != nil {
		f |= featureDiscard
	}
	if d.zeroes != nil {
		f |= featureWriteZeroes
	}
	return f
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.cfg.Queues)
	for i := range sizes {
		sizes[i] = DefaultQueueSize
	}
	return sizes
}

// segMax leaves room in the queue for the header's and the status's descriptor.
const segMax = DefaultQueueSize - 2

// Limits of DISCARD and WRITE_ZEROES: what one segment may be, so that a request ends in a time that a guest waits for.
const (
	maxDiscardSectors = 1 << 22 // 2 GiB
	maxZeroSectors    = 1 << 22
	maxSegments       = 16
)

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [0x3c]byte
	le := binary.LittleEndian
	le.PutUint64(c[0x00:], d.capacity.Load())
	le.PutUint32(c[0x0c:], segMax)
	le.PutUint32(c[0x14:], uint32(d.logical))
	c[0x18] = d.physExp
	le.PutUint16(c[0x1a:], 1<<d.physExp) // min_io_size in logical blocks
	c[0x20] = 1
	le.PutUint16(c[0x22:], uint16(d.cfg.Queues))
	if d.discard != nil {
		le.PutUint32(c[0x24:], maxDiscardSectors)
		le.PutUint32(c[0x28:], maxSegments)
		le.PutUint32(c[0x2c:], uint32(d.logical/SectorSize)<<d.physExp)
	}
	if d.zeroes != nil {
		le.PutUint32(c[0x30:], maxZeroSectors)
		le.PutUint32(c[0x34:], maxSegments)
		if d.cfg.Discard {
			c[0x38] = 1
		}
	}
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint32, []byte) {}

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, a virtio.Activation) error {
	g := virtio.NewGroup(ctx)
	for _, q := range a.Queues {
		g.Serve(q, d.serveQueue)
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("blk: %w", err)
	}
	return nil
}

// counters are what [Device.Stats] returns.
type counters struct {
	reads, writes, flushes, discards, zeroes, ids atomic.Uint64

	failed, unsupported, malformed, ring atomic.Uint64
}

// Stats counts a disk's requests since it was made.
type Stats struct {
	Reads, Writes, Flushes, Discards, WriteZeroes, GetIDs uint64

	Failed      uint64 // completed with IOERR
	Unsupported uint64 // completed with UNSUPP
	Malformed   uint64 // had no room for a status
	Direct      uint64 // reads and writes by io_uring; the others went through the workers
}

// Stats returns the counts. Any goroutine may call it.
func (d *Device) Stats() Stats {
	c := &d.counters
	return Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(), Discards: c.discards.Load(),
		WriteZeroes: c.zeroes.Load(), GetIDs: c.ids.Load(),
		Failed: c.failed.Load(), Unsupported: c.unsupported.Load(), Malformed: c.malformed.Load(), Direct: c.ring.Load(),
	}
}
