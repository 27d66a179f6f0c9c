// Package fat reads FAT12, FAT16 and FAT32 file systems that somebody else has made (Microsoft FAT specification, 2005-08-30),
// with long names. It believes nothing of them: what makes no sense gives an error, after bounded time and in bounded memory.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf16"
)

// maxDirectory is how long a directory may be in bytes: the specification's limit.
const maxDirectory = 2 << 20

// ErrFormat is the error of [Open] for what is no such file system.
var ErrFormat = errors.New("not a FAT file system")

var errCorrupt = errors.New("file system is corrupt")

// FS is a file system. It may be used by one goroutine at a time.
type FS struct {
	r      io.ReaderAt
	label  string
	serial uint32

	bits        int   // of an entry of the table: 12, 16 or 32
	table       int64 // offset of the first table
	root        int64 // offset and length of the root directory, where it has a place of its own
	rootLength  int64
	rootCluster uint32 // where it has none
	data        int64  // offset of cluster 2
	clusterSize int64
	clusters    uint32 // one more than the greatest cluster's number

	window   [4096]byte // of the table, so that a chain is not read entry by entry
	windowAt int64      // where it is in the table, and how much of it is there
	windowN  int64
}

// Open reads the boot sector. r is the file system from its first byte on.
func Open(r io.ReaderAt) (*FS, error) {
	var b [512]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return nil, ErrFormat
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	if b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 || !slices.Contains([]int64{512, 1024, 2048, 4096}, sector) ||
		perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved == 0 || tables == 0 || tables > 4 {
		return nil, ErrFormat
	}
	total, length := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fs32 := length == 0
	if fs32 {
		length = int64(le.Uint32(b[36:]))
	}
	f := &FS{r: r, clusterSize: perCluster * sector, table: reserved * sector, rootLength: rootEntries * 32}
	f.root = f.table + tables*length*sector
	f.data = f.root + (f.rootLength+sector-1)/sector*sector
	n := (total*sector - f.data) / f.clusterSize
	if n <= 0 || n > 0x0fff_fff5 {
		return nil, ErrFormat
	}
	f.clusters = uint32(n) + 2
	switch {
	case fs32:
		f.bits, f.rootCluster = 32, le.Uint32(b[44:])
	case n < 4085:
		f.bits = 12
	default:
		f.bits = 16
	}
	if int64(f.clusters)*int64(f.bits)/8 > length*sector {
		return nil, fmt.Errorf("%w: a table of %d sectors for %d clusters", errCorrupt, length, n)
	}
	extended := b[36:]
	if fs32 {
		extended = b[64:]
	}
	if extended[2] == 0x29 {
		f.serial = le.Uint32(extended[3:])
		if f.label = strings.TrimRight(string(extended[7:18]), " "); f.label == "NO NAME" {
			f.label = ""
		}
	}
	return f, nil
}

// Label is the file system's name, which may be empty.
func (f *FS) Label() string { return f.label }

// UUID is the file system's serial number, in the form that Linux has for it.
func (f *FS) UUID() string { return fmt.Sprintf("%04X-%04X", f.serial>>16, f.serial&0xffff) }

// next is the cluster behind one in its chain; ok is false at the end.
func (f *FS) next(cluster uint32) (next uint32, ok bool, err error) {
	var p [4]byte
	at, n := int64(cluster)*int64(f.bits)/8, 2
	if f.bits == 32 {
		n = 4
	}
	if err := f.readTable(p[:n], at); err != nil {
		return 0, false, err
	}
	next = binary.LittleEndian.Uint32(p[:])
	last := uint32(0x0fff_fff8)
	switch f.bits {
	case 12:
		next = next >> (4 * (cluster & 1)) & 0xfff
		last = 0xff8
	case 16:
		last = 0xfff8
	default:
		next &= 0x0fff_ffff
	}
	if next >= last {
		return 0, false, nil
	}
	if next < 2 || next >= f.clusters {
		return 0, false, fmt.Errorf("%w: cluster %d leads to %d", errCorrupt, cluster, next)
	}
	return next, true, nil
}

// readTable reads from the table at at.
func (f *FS) readTable(p []byte, at int64) error {
	if at < f.windowAt || at+int64(len(p)) > f.windowAt+f.windowN {
		n, err := f.r.ReadAt(f.window[:], f.table+at)
		if n < len(p) {
			f.windowN = 0
			return err
		}
		f.windowAt, f.windowN = at, int64(n)
	}
	copy(p, f.window[at-f.windowAt:])
	return nil
}

// chain is the clusters from first on, as many as limit bytes take at most.
func (f *FS) chain(first uint32, limit int64) ([]uint32, error) {
	if limit <= 0 {
		return nil, nil
	}
	if first < 2 || first >= f.clusters {
		return nil, fmt.Errorf("%w: a chain begins at cluster %d", errCorrupt, first)
	}
	out := []uint32{first}
	for int64(len(out))*f.clusterSize < limit {
		next, ok, err := f.next(out[len(out)-1])
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if out = append(out, next); len(out) > int(f.clusters) {
			return nil, fmt.Errorf("%w: a chain is a ring", errCorrupt)
		}
	}
	return out, nil
}

// entry is one of a directory.
type entry struct {
	name, short string
	directory   bool
	first       uint32
	size        int64
}

// File is a file that can be read.
type File struct {
	f        *FS
	clusters []uint32
	size     int64
}

// Size is in bytes.
func (file *File) Size() int64 { return file.size }

// ReadAt implements io.ReaderAt.
func (file *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f, done := file.f, 0
	for done < len(p) && off < file.size {
		i := off / f.clusterSize
		inside := off % f.clusterSize
		// As many clusters at once as lie one after the other.
		n := int64(1)
		for i+n < int64(len(file.clusters)) && file.clusters[i+n] == file.clusters[i]+uint32(n) && n*f.clusterSize-inside < int64(len(p)-done) {
			n++
		}
		want := min(n*f.clusterSize-inside, int64(len(p)-done), file.size-off)
		if _, err := f.r.ReadAt(p[done:done+int(want)], f.data+int64(file.clusters[i]-2)*f.clusterSize+inside); err != nil {
			return done, err
		}
		done, off = done+int(want), off+want
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readRoot reads the root directory.
func (f *FS) readRoot() ([]byte, error) {
	if f.bits == 32 {
		return f.readChain(f.rootCluster)
	}
	p := make([]byte, f.rootLength)
	_, err := f.r.ReadAt(p, f.root)
	return p, err
}

func (f *FS) readChain(first uint32) ([]byte, error) {
	clusters, err := f.chain(first, maxDirectory)
	if err != nil {
		return nil, err
	}
	file := &File{f, clusters, int64(len(clusters)) * f.clusterSize}
	p := make([]byte, file.size)
	_, err = file.ReadAt(p, 0)
	return p, err
}

// parse takes a directory apart.
func parse(p []byte) (out []entry) {
	le := binary.LittleEndian
	long := map[byte][]uint16{} // pieces of a long name, by their number
	for ; len(p) >= 32 && p[0] != 0; p = p[32:] {
		attributes := p[11]
		switch {
		case p[0] == 0xe5:
			clear(long)
		case attributes&0x3f == 0x0f:
			var units []uint16
			for _, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
				units = append(units, le.Uint16(p[at:]))
			}
			long[p[0]&0x3f] = units
		case attributes&8 != 0: // the label
			clear(long)
		default:
			e := entry{short: shortName(p), directory: attributes&0x10 != 0, size: int64(le.Uint32(p[28:]))}
			e.first = uint32(le.Uint16(p[20:]))<<16 | uint32(le.Uint16(p[26:]))
			var units []uint16
			for n := byte(1); long[n] != nil; n++ {
				units = append(units, long[n]...)
			}
			if end := slices.Index(units, 0); end >= 0 {
				units = units[:end]
			}
			e.name = string(utf16.Decode(units))
			if e.name == "" {
				e.name = strings.ToLower(e.short)
			}
			clear(long)
			if e.short != "." && e.short != ".." {
				out = append(out, e)
			}
		}
	}
	return out
}

func shortName(p []byte) string {
	name, extension := strings.TrimRight(string(p[:8]), " "), strings.TrimRight(string(p[8:11]), " ")
	if extension != "" {
		name += "." + extension
	}
	return name
}

// list reads a directory by its path from the root.
func (f *FS) list(path string) ([]entry, error) {
	p, err := f.readRoot()
	if err != nil {
		return nil, err
	}
	entries := parse(p)
	for _, name := range strings.Split(path, "/") {
		if name == "" || name == "." {
			continue
		}
		e, err := find(entries, name)
		if err != nil {
			return nil, err
		}
		if !e.directory {
			return nil, fs.ErrNotExist
		}
		if p, err = f.readChain(e.first); err != nil {
			return nil, err
		}
		entries = parse(p)
	}
	return entries, nil
}

func find(entries []entry, name string) (entry, error) {
	i := slices.IndexFunc(entries, func(e entry) bool { return strings.EqualFold(e.name, name) || strings.EqualFold(e.short, name) })
	if i < 0 {
		return entry{}, fs.ErrNotExist
	}
	return entries[i], nil
}

// Open opens a file by its path from the root. An error that is fs.ErrNotExist says that there is none.
func (f *FS) Open(path string) (*File, error) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	entries, err := f.list(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	e, err := find(entries, name)
	if err == nil && e.directory {
		err = errors.New("is a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	clusters, err := f.chain(e.first, e.size)
	if err == nil && int64(len(clusters))*f.clusterSize < e.size {
		err = fmt.Errorf("%w: %d clusters for %d bytes", errCorrupt, len(clusters), e.size)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &File{f, clusters, e.size}, nil
}

// ReadDir returns the names in a directory, sorted.
func (f *FS) ReadDir(path string) ([]string, error) {
	entries, err := f.list(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return names, nil
}
