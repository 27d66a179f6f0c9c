package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// unpackedClusters is how many clusters are kept unpacked: a disk is read in pieces smaller than a cluster.
const unpackedClusters = 8

// unpacked keeps the clusters that were unpacked last. An L2 entry is good for a name of one: nothing is written compressed,
// so that no other data can ever have the same entry.
type unpacked struct {
	mu       sync.Mutex // guards what follows; held while a cluster is unpacked, by one goroutine for all that wait for it
	clusters []unpackedCluster
	flate    io.ReadCloser
	zstd     *zstd.Decoder
}

type unpackedCluster struct {
	entry uint64
	data  []byte
}

// readCompressed copies a part of a compressed cluster, from inside on. users is held.
func (m *Image) readCompressed(p []byte, entry uint64, inside int64) error {
	u := &m.unpacked
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, c := range u.clusters {
		if c.entry == entry {
			copy(p, c.data[inside:])
			copy(u.clusters[1:], u.clusters[:i])
			u.clusters[0] = c
			return nil
		}
	}
	var room []byte
	if len(u.clusters) < unpackedClusters {
		room = make([]byte, m.clusterSize)
		u.clusters = append(u.clusters, unpackedCluster{})
	} else {
		room = u.clusters[len(u.clusters)-1].data
	}
	if err := m.unpack(room, entry); err != nil {
		u.clusters = u.clusters[:len(u.clusters)-1]
		return err
	}
	copy(u.clusters[1:], u.clusters)
	u.clusters[0] = unpackedCluster{entry, room}
	copy(p, room[inside:])
	return nil
}

// unpack fills p, a cluster long.
func (m *Image) unpack(p []byte, entry uint64) error {
	off, n := m.compressedRange(entry)
	if off < m.clusterSize || off >= m.end.Load() {
		return m.corrupt("compressed cluster at %#x", off)
	}
	// The length is that of whole sectors, of which the last may be cut short by the end of the file.
	packed := make([]byte, n)
	got, err := readFull(m.file, packed, off)
	if err != nil {
		return err
	}
	packed = packed[:got]
	u := &m.unpacked
	if m.h.compression == Zstd {
		if u.zstd == nil {
			if u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20)); err != nil {
				return err
			}
		}
		if err = u.zstd.Reset(bytes.NewReader(packed)); err == nil {
			_, err = io.ReadFull(u.zstd, p)
		}
	} else {
		if u.flate == nil {
			u.flate = flate.NewReader(nil)
		}
		if err = u.flate.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err == nil {
			_, err = io.ReadFull(u.flate, p)
		}
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("compressed cluster at %#x: %w", off, err)
	}
	return nil
}
