package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Snapshot is an internal snapshot, which this package keeps as it is.
type Snapshot struct {
	ID, Name string
	Size     int64 // of the disk at that time, in bytes; 0 where the image doesn't say

	l1Offset int64
	l1Size   uint32
}

// Snapshots returns the internal snapshots.
func (m *Image) Snapshots() ([]Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	snapshots, _, err := m.readSnapshots()
	return snapshots, err
}

// readSnapshots reads the snapshot table (qcow2 specification, "Snapshots") and returns also its length in bytes.
func (m *Image) readSnapshots() (out []Snapshot, length int64, err error) {
	at := int64(m.h.snapOffset)
	tables := int64(0)
	be := binary.BigEndian
	for i := range m.h.snapshots {
		var fixed [40]byte
		if n, err := readFull(m.file, fixed[:], at); err != nil || n < len(fixed) {
			return nil, 0, fmt.Errorf("snapshot %d: %w", i, orShort(err))
		}
		idSize, nameSize, extraSize := int64(be.Uint16(fixed[12:])), int64(be.Uint16(fixed[14:])), int64(be.Uint32(fixed[36:]))
		s := Snapshot{l1Offset: int64(be.Uint64(fixed[0:])), l1Size: be.Uint32(fixed[8:])}
		if extraSize > 1024 {
			return nil, 0, fmt.Errorf("%w: snapshot %d has %d bytes of extra data", ErrCorrupt, i, extraSize)
		}
		rest := make([]byte, extraSize+idSize+nameSize)
		if n, err := readFull(m.file, rest, at+int64(len(fixed))); err != nil || n < len(rest) {
			return nil, 0, fmt.Errorf("snapshot %d: %w", i, orShort(err))
		}
		if extraSize >= 16 {
			s.Size = int64(be.Uint64(rest[8:]))
		}
		s.ID, s.Name = string(rest[extraSize:extraSize+idSize]), string(rest[extraSize+idSize:])
		if s.l1Offset&(m.clusterSize-1) != 0 || s.l1Offset <= 0 || s.l1Offset > maxOffset || int64(s.l1Size)*8 > maxL1Bytes ||
			s.l1Offset+int64(s.l1Size)*8 > m.file.Size() {
			return nil, 0, fmt.Errorf("%w: snapshot %d has an L1 table of %d entries at %#x", ErrCorrupt, i, s.l1Size, s.l1Offset)
		}
		if tables += int64(s.l1Size) * 8; tables > maxSnapshotL1Bytes {
			return nil, 0, fmt.Errorf("%w: the snapshots' L1 tables have more than %d bytes", ErrCorrupt, maxSnapshotL1Bytes)
		}
		out = append(out, s)
		at += (int64(len(fixed)) + int64(len(rest)) + 7) &^ 7
		if at-int64(m.h.snapOffset) > maxSnapshotBytes {
			return nil, 0, fmt.Errorf("%w: snapshot table of more than %d bytes", ErrCorrupt, maxSnapshotBytes)
		}
	}
	return out, at - int64(m.h.snapOffset), nil
}
