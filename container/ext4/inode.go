package ext4

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// inode is what an inode says.
type inode struct {
	mode       uint16
	uid, gid   uint32
	size       int64
	links      int
	flags      uint32
	sectors    uint64 // of 512 bytes
	modified   time.Time
	block      [60]byte
	xattrBlock uint32
	xattrs     []byte // inside the inode
}

// encode returns the inode as it lies on the disk (§3.1). A node that is not there is all zeros.
func (i *inode) encode() []byte {
	b := make([]byte, inodeSize)
	if i.mode == 0 {
		return b
	}
	seconds, extra := diskTime(i.modified)
	le.PutUint16(b[0x0:], i.mode)
	le.PutUint16(b[0x2:], uint16(i.uid))
	le.PutUint32(b[0x4:], uint32(i.size))
	for _, at := range []int{0x8, 0xc, 0x10, 0x90} { // atime, ctime, mtime, crtime
		le.PutUint32(b[at:], seconds)
	}
	for _, at := range []int{0x84, 0x88, 0x8c, 0x94} {
		le.PutUint32(b[at:], extra)
	}
	le.PutUint16(b[0x18:], uint16(i.gid))
	le.PutUint16(b[0x1a:], uint16(i.links))
	le.PutUint32(b[0x1c:], uint32(i.sectors))
	le.PutUint32(b[0x20:], i.flags)
	copy(b[0x28:], i.block[:])
	le.PutUint32(b[0x68:], i.xattrBlock)
	le.PutUint32(b[0x6c:], uint32(i.size>>32))
	le.PutUint16(b[0x74:], uint16(i.sectors>>32))
	le.PutUint16(b[0x78:], uint16(i.uid>>16))
	le.PutUint16(b[0x7a:], uint16(i.gid>>16))
	le.PutUint16(b[0x80:], extraSize)
	copy(b[128+extraSize:], i.xattrs)
	return b
}

// diskTime is a time in an inode's two fields (§3.1.2): the epoch for no time, and for what ext4 cannot say the nearest that
// it can.
func diskTime(t time.Time) (seconds, extra uint32) {
	if t.IsZero() {
		return 0, 0
	}
	const first, last = -1 << 31, 1<<34 - 1<<31 - 1
	s := min(max(t.Unix(), first), last)
	epoch := uint32((s - int64(int32(s))) >> 32) // beyond a signed number of 32 bits
	return uint32(s), epoch | uint32(t.Nanosecond())<<timeEpochBits
}

// extentHeader is the head of a node of an extent tree, at the start of an inode's 60 bytes.
func extentHeader(entries, most, depth int) (b [60]byte) {
	le.PutUint16(b[0:], 0xf30a)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(most))
	le.PutUint16(b[6:], uint16(depth))
	return b
}

// xattrPrefixes are what names begin with, by the numbers that stand for them. One that is a whole name comes first.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2}, {"system.posix_acl_default", 3}, {"user.", 1}, {"trusted.", 4}, {"security.", 6}, {"system.", 7},
}

// xattr is an extended attribute as it is stored.
type xattr struct {
	index byte
	name  string // behind the prefix
	value []byte
}

func (x *xattr) entrySize() int { return (16 + len(x.name) + 3) &^ 3 }
func (x *xattr) valueSize() int { return (len(x.value) + 3) &^ 3 }

// xattrs stores the attributes in the inode, or else in a block of its own (§3.3).
func (b *builder) xattrs(ino *inode, all map[string][]byte) error {
	if len(all) == 0 {
		return nil
	}
	var list []xattr
	size := 4 // of the zeros that end the entries
	for _, name := range slices.Sorted(maps.Keys(all)) {
		x, err := newXattr(name, all[name])
		if err != nil {
			return err
		}
		list = append(list, x)
		size += x.entrySize() + x.valueSize()
	}
	slices.SortFunc(list, func(x, y xattr) int { // as the kernel looks them up
		if c := int(x.index) - int(y.index); c != 0 {
			return c
		}
		if c := len(x.name) - len(y.name); c != 0 {
			return c
		}
		return strings.Compare(x.name, y.name)
	})
	const magic = 0xea020000
	if 4+size <= inlineXattrs {
		ino.xattrs = make([]byte, inlineXattrs)
		le.PutUint32(ino.xattrs, magic)
		putXattrs(ino.xattrs[4:], list, 0, false)
		return nil
	}
	const header = 32
	if header+size > blockSize {
		return errXattrs
	}
	block := make([]byte, blockSize)
	le.PutUint32(block[0:], magic)
	le.PutUint32(block[4:], 1) // inodes that use it
	le.PutUint32(block[8:], 1) // blocks
	putXattrs(block[header:], list, header, true)
	at, err := b.alloc(1)
	if err != nil {
		return err
	}
	ino.xattrBlock = at
	ino.sectors += blockSize / 512
	_, err = b.w.WriteAt(block, int64(at)*blockSize)
	return err
}

func newXattr(name string, value []byte) (xattr, error) {
	for _, p := range xattrPrefixes {
		rest, ok := strings.CutPrefix(name, p.prefix)
		if !ok {
			continue
		}
		if whole := p.index == 2 || p.index == 3; whole && rest == "" {
			acl, err := diskACL(value)
			if err != nil {
				return xattr{}, fmt.Errorf("extended attribute %s: %w", name, err)
			}
			return xattr{index: p.index, value: acl}, nil
		} else if !whole && rest != "" && len(rest) <= maxNameLength {
			return xattr{p.index, rest, value}, nil
		}
	}
	return xattr{}, fmt.Errorf("%.300q is no name of an extended attribute", name)
}

// putXattrs writes entries at the start of b, and values at its end. Values' offsets count from base bytes before b.
func putXattrs(b []byte, list []xattr, base int, hashed bool) {
	at, end := 0, len(b)
	for _, x := range list {
		end -= x.valueSize()
		copy(b[end:], x.value)
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		le.PutUint16(e[2:], uint16(base+end))
		le.PutUint32(e[8:], uint32(len(x.value)))
		if hashed {
			le.PutUint32(e[12:], x.hash())
		}
		copy(e[16:], x.name)
		at += x.entrySize()
	}
}

// hash is what the entry of a block says of its name and value (§3.3.1).
func (x *xattr) hash() uint32 {
	var h uint32
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	padded := append(bytes.Clone(x.value), make([]byte, x.valueSize()-len(x.value))...)
	for ; len(padded) > 0; padded = padded[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(padded)
	}
	return h
}

// diskACL turns an access control list as programs see it (acl(5), linux/posix_acl_xattr.h) into the one on the disk
// (fs/ext4/acl.h), which is another version and leaves out the numbers that mean nothing.
func diskACL(b []byte) ([]byte, error) {
	const version, diskVersion = 2, 1
	const user, group = 2, 8 // the tags that have numbers
	if len(b) < 4 || le.Uint32(b) != version || (len(b)-4)%8 != 0 {
		return nil, fmt.Errorf("not an access control list of version %d", version)
	}
	out := le.AppendUint32(nil, diskVersion)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		out = append(out, b[:4]...)
		if tag := le.Uint16(b); tag == user || tag == group {
			out = append(out, b[4:8]...)
		}
	}
	return out, nil
}
