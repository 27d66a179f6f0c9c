// Package image opens disk images in whichever format they are, with their backing files: raw and qcow2.
//
// # Formats and trust
//
// Where the user does not name the format, the first bytes of the file tell it; but these bytes belong to the guest. A guest
// with a raw disk could write the header of a qcow2 image there, with any file of the host's as the backing file, and would
// find that file in its disk at the next start. So a disk that was found to be raw refuses such writes to its first sector, as
// QEMU's does; one that is said to be raw takes them.
package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/block/qcow2"
)

// The formats that can be opened.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

// maxChain is how many files may be behind one image.
const maxChain = 64

// Errors of [Open] that a caller may want to tell apart.
var (
	ErrFormat = errors.New("not a raw or qcow2 image")
	// ErrGuarded is the error of a write that would make another format of a raw disk.
	ErrGuarded = errors.New("the first sector of a raw disk would become the header of an image")
)

// Disk is what a disk device needs. What is behind it has more abilities (vectors, discard, a descriptor), which the device
// finds by assertion.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Sync() error
}

// Options say how an image is opened.
type Options struct {
	// Format is Raw or Qcow2; empty to look at the file.
	Format   string
	ReadOnly bool
	Cache    block.Cache
	// Snapshot keeps what the guest writes in a temporary file, which vanishes with Close; the image stays as it is.
	Snapshot bool
}

// Image is an open disk image.
type Image struct {
	Disk   Disk
	Format string   // Raw or Qcow2
	Notes  []string // what the user should hear of, a sentence each

	closers []io.Closer // in the order in which they were opened
}

// Close writes what is in memory, and closes all files.
func (i *Image) Close() error {
	var errs []error
	for _, c := range slices.Backward(i.closers) {
		errs = append(errs, c.Close())
	}
	i.closers = nil
	return errors.Join(errs...)
}

// Open opens the image at path, and the files behind it for reading.
func Open(path string, o Options) (_ *Image, err error) {
	i := &Image{}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
		}
	}()
	under := o
	under.ReadOnly = o.ReadOnly || o.Snapshot
	c := chain{i: i, cache: o.Cache}
	if i.Disk, i.Format, err = c.open(path, under.Format, under.ReadOnly); err != nil {
		return nil, err
	}
	if o.Snapshot {
		if err := i.overlay(); err != nil {
			return nil, fmt.Errorf("temporary file for what the guest writes: %w", err)
		}
	}
	return i, nil
}

// overlay puts an image in a file without a name over the disk.
func (i *Image) overlay() error {
	f, err := block.Temporary(os.TempDir())
	if err != nil {
		return err
	}
	i.closers = append(i.closers, f)
	below := i.Disk
	size := below.Size() &^ (block.SectorSize - 1)
	if err := qcow2.Create(f, qcow2.CreateOptions{Size: size, BackingFile: "the image", BackingFormat: i.Format}); err != nil {
		return err
	}
	q, err := qcow2.Open(f, qcow2.Options{Backing: func(string, string) (qcow2.Backing, error) { return below, nil }})
	if err != nil {
		return err
	}
	i.closers = append(i.closers, q)
	i.Disk = q
	return nil
}

// chain is the files of an image while they are opened.
type chain struct {
	i     *Image
	cache block.Cache
	seen  []fileID
}

type fileID struct{ dev, ino uint64 }

// open opens one file of the chain, and those behind it.
func (c *chain) open(path, format string, readOnly bool) (Disk, string, error) {
	if err := c.enter(path); err != nil {
		return nil, "", err
	}
	f, err := block.Open(path, block.Options{ReadOnly: readOnly, Cache: c.cache})
	if err != nil {
		return nil, "", err
	}
	c.i.closers = append(c.i.closers, f)
	probed := format == ""
	if probed {
		if format, err = Probe(f); err != nil {
			return nil, "", err
		}
	}
	switch format {
	case Raw:
		if probed && !readOnly {
			return &guarded{f}, format, nil
		}
		return f, format, nil
	case Qcow2:
		q, err := qcow2.Open(f, qcow2.Options{ReadOnly: readOnly, Backing: func(name, format string) (qcow2.Backing, error) {
			return c.backing(path, name, format)
		}})
		if err != nil {
			return nil, "", err
		}
		c.i.closers = append(c.i.closers, q)
		c.i.Notes = append(c.i.Notes, q.Notes()...)
		return q, format, nil
	}
	return nil, "", fmt.Errorf("format %q: not raw or qcow2", format)
}

// enter refuses a file that leads to itself.
func (c *chain) enter(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	id := fileID{st.Dev, st.Ino}
	switch {
	case slices.Contains(c.seen, id):
		return errors.New("is its own backing file")
	case len(c.seen) > maxChain:
		return fmt.Errorf("has more than %d backing files", maxChain)
	}
	c.seen = append(c.seen, id)
	return nil
}

// backing opens the backing file that the image at path names, relative to that image.
func (c *chain) backing(path, name, format string) (qcow2.Backing, error) {
	full, err := BackingPath(path, name)
	if err != nil {
		return nil, err
	}
	d, _, err := c.open(full, format, true)
	if err != nil {
		return nil, fmt.Errorf("backing file %s: %w", full, err)
	}
	return d, nil
}

// BackingPath is the path of the backing file that the image at path calls name.
func BackingPath(path, name string) (string, error) {
	name = strings.TrimPrefix(name, "file:")
	if before, _, found := strings.Cut(name, ":"); found && !strings.Contains(before, "/") {
		return "", fmt.Errorf("backing file %q: not a file of this host", name)
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	// Not filepath.Join: by a folder that is a link, ".." is not what it takes it for.
	return path[:strings.LastIndexByte(path, '/')+1] + name, nil
}

// magics are what files begin with that are certainly no raw disks: a guest would find garbage in them, and destroy it.
var magics = []struct{ magic, format, remedy string }{
	{qcow2.Magic, Qcow2, ""},
	{"KDMV", "VMDK", convert}, {"vhdxfile", "VHDX", convert}, {"conectix", "VHD", convert}, {"<<< ", "VDI", convert}, {"QED\x00", "QED", convert},
	{"\x1f\x8b", "gzip", "gunzip unpacks it"}, {"\xfd7zXZ", "xz", "unxz unpacks it"}, {"\x28\xb5\x2f\xfd", "zstd", "unzstd unpacks it"}, {"BZh", "bzip2", "bunzip2 unpacks it"},
}

const convert = "qemu-img convert -O qcow2 makes one"

// Probe tells the format of f by its first bytes.
func Probe(f interface {
	io.ReaderAt
	Size() int64
}) (string, error) {
	head := make([]byte, min(f.Size(), block.SectorSize))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch format, remedy := probe(head); {
	case format == "":
		return Raw, nil
	case remedy != "":
		return "", fmt.Errorf("%w but %s (%s)", ErrFormat, format, remedy)
	default:
		return format, nil
	}
}

// probe is the format that head tells, and what to do about it; empty for no format.
func probe(head []byte) (format, remedy string) {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format, m.remedy
		}
	}
	return "", ""
}
