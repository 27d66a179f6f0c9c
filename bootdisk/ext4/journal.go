package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// journalMagic begins each block of the journal that is the journal's own. Where it begins one of the file system's, the
// journal has zeroes there instead: the block is escaped.
var journalMagic = [4]byte{0xc0, 0x3b, 0x39, 0x98}

// Types of the journal's own blocks.
const (
	journalDescriptor = 1
	journalCommit     = 2
	journalSuper1     = 3
	journalSuper2     = 4
	journalRevoke     = 5
)

// Incompatible features of a journal.
const (
	journal64Bit  = 0x2
	journalCsum3  = 0x10
	journalFast   = 0x20
	journalsKnown = 0x1f | journalFast
)

// Flags of a descriptor's tag.
const (
	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// maxJournal is how many blocks of a journal are looked at.
const maxJournal = 1 << 20

// journalBlock says where the journal has the contents of a block.
type journalBlock struct {
	at       uint64 // in the file system
	escaped  bool
	sequence uint32 // of the transaction
}

// loadJournal finds out which blocks a replay will write (Linux Documentation/filesystems/ext4/journal.rst).
func (f *FS) loadJournal(number uint32) error {
	if number == 0 {
		return errors.New("is on another device: not supported")
	}
	i, err := f.inode(number)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	j := &journal{f: f, i: i, p: make([]byte, f.blockSize)}
	if err := j.read(0); err != nil {
		return err
	}
	kind := be.Uint32(j.p[4:])
	if [4]byte(j.p) != journalMagic || kind != journalSuper1 && kind != journalSuper2 || int64(be.Uint32(j.p[12:])) != f.blockSize {
		return fmt.Errorf("%w: no journal in inode %d", errCorrupt, number)
	}
	j.length, j.first = uint64(be.Uint32(j.p[16:])), uint64(be.Uint32(j.p[20:]))
	sequence, start := be.Uint32(j.p[24:]), uint64(be.Uint32(j.p[28:]))
	if kind == journalSuper2 {
		j.features = be.Uint32(j.p[0x28:])
		if j.features&journalFast != 0 {
			j.length -= min(uint64(be.Uint32(j.p[0x54:])), j.length)
		}
	}
	switch {
	case start == 0:
		return nil // nothing to replay
	case j.features&^journalsKnown != 0:
		return fmt.Errorf("features %#x: not supported", j.features)
	case j.length > maxJournal || j.first == 0 || j.first >= j.length || start < j.first || start >= j.length:
		return fmt.Errorf("%w: journal of %d blocks, from %d on, starts at %d", errCorrupt, j.length, j.first, start)
	}
	return j.scan(start, sequence)
}

// journal is one while it is read.
type journal struct {
	f             *FS
	i             *inode
	p             []byte // a block
	length, first uint64
	features      uint32
}

// read reads a block of the journal.
func (j *journal) read(block uint64) error {
	at, _, err := j.f.run(j.i, block)
	if err == nil && at == 0 {
		err = fmt.Errorf("%w: hole in the journal", errCorrupt)
	}
	if err != nil {
		return err
	}
	return j.f.readBlock(at, j.p)
}

// next is the block after one in the ring.
func (j *journal) next(block uint64) uint64 {
	if block+1 >= j.length {
		return j.first
	}
	return block + 1
}

// scan goes through the transactions that were committed, from the oldest on.
func (j *journal) scan(block uint64, sequence uint32) error {
	be := binary.BigEndian
	written := map[uint64]journalBlock{}
	current := map[uint64]journalBlock{} // of the transaction, not committed yet
	var revoked []uint64
	for left := j.length; left > 0; {
		if err := j.read(block); err != nil {
			return err
		}
		if [4]byte(j.p) != journalMagic || be.Uint32(j.p[8:]) != sequence {
			break // the end of the log
		}
		block, left = j.next(block), left-1
		switch be.Uint32(j.p[4:]) {
		case journalDescriptor:
			for _, t := range j.tags() {
				if left == 0 {
					break
				}
				at, _, err := j.f.run(j.i, block)
				if err != nil {
					return err
				}
				current[t.at] = journalBlock{at: at, escaped: t.escaped, sequence: sequence}
				block, left = j.next(block), left-1
			}
		case journalRevoke:
			revoked = append(revoked, j.revoked()...)
		case journalCommit:
			// A revoked block is not written by this or an earlier transaction.
			for _, b := range revoked {
				delete(written, b)
				delete(current, b)
			}
			for b, at := range current {
				written[b] = at
			}
			clear(current)
			revoked = revoked[:0]
			sequence++
		default:
			left = 0
		}
	}
	j.f.journal = written
	return nil
}

// tags are those of the descriptor in p; at is the block of the file system.
func (j *journal) tags() (out []journalBlock) {
	be := binary.BigEndian
	size := 8
	switch {
	case j.features&journalCsum3 != 0:
		size = 16
	case j.features&journal64Bit != 0:
		size = 12
	}
	for p := j.p[12:]; len(p) >= size; {
		t := journalBlock{at: uint64(be.Uint32(p))}
		flags := uint32(be.Uint16(p[6:]))
		if size == 16 {
			flags = be.Uint32(p[4:])
		}
		if j.features&journal64Bit != 0 {
			t.at |= uint64(be.Uint32(p[8:])) << 32
		}
		t.escaped = flags&tagEscaped != 0
		out = append(out, t)
		p = p[size:]
		if flags&tagSameUUID == 0 {
			p = p[min(16, len(p)):]
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return out
}

// revoked are the blocks in the revoke block in p.
func (j *journal) revoked() (out []uint64) {
	be := binary.BigEndian
	size := 4
	if j.features&journal64Bit != 0 {
		size = 8
	}
	end := min(int(be.Uint32(j.p[12:])), len(j.p))
	for at := 16; at+size <= end; at += size {
		if size == 8 {
			out = append(out, be.Uint64(j.p[at:]))
		} else {
			out = append(out, uint64(be.Uint32(j.p[at:])))
		}
	}
	return out
}
