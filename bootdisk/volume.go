package bootdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"vmm/bootdisk/ext4"
	"vmm/bootdisk/fat"
)

// maxPartitions is how many partitions of a disk are looked at.
const maxPartitions = 128

// fileSystem is what is needed of one. Paths begin at its root; a missing file's error is fs.ErrNotExist.
type fileSystem interface {
	Open(path string) (Image, error)
	ReadDir(path string) ([]string, error)
}

// partition is a piece of the disk.
type partition struct {
	number      int    // 0 for the whole disk
	scheme      string // of GRUB's name for it: gpt or msdos
	start, size int64  // in bytes
	uuid        string // as Linux has it in PARTUUID=
}

// volume is a file system of the disk.
type volume struct {
	partition
	fs          fileSystem
	kind        string // ext4, vfat
	label, fsID string // the file system's name, and its UUID
	notes       []string
}

func (v *volume) String() string {
	name := v.kind
	if v.label != "" {
		name += fmt.Sprintf(" %q", v.label)
	}
	if v.number == 0 {
		return "whole disk (" + name + ")"
	}
	return fmt.Sprintf("partition %d (%s)", v.number, name)
}

// open opens all file systems of the disk, and says what it could not open.
func open(disk io.ReaderAt, size int64) (volumes []*volume, looked []string, err error) {
	parts, err := partitions(disk, size)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range parts {
		r := io.NewSectionReader(disk, p.start, p.size)
		v, err := openVolume(r)
		if v != nil {
			v.partition = p
			volumes = append(volumes, v)
			continue
		}
		if err == nil {
			continue // no file system: a BIOS boot partition, swap
		}
		name := "whole disk"
		if p.number > 0 {
			name = fmt.Sprintf("partition %d", p.number)
		}
		looked = append(looked, name+": "+err.Error())
	}
	return volumes, looked, nil
}

// foreign are the first bytes of what is known and can't be read.
var foreign = []struct {
	at   int64
	text string
	name string
}{
	{0, "XFSB", "xfs"},
	{0x10040, "_BHRfS_M", "btrfs"},
	{0, "LUKS\xba\xbe", "LUKS encryption"},
	{0x218, "LVM2 001", "LVM"},
	{0x400, "\x10\x20\xf5\xf2", "f2fs"},
	{0x8001, "CD001", "iso9660"},
	{3, "NTFS    ", "NTFS"},
	{0, "hsqs", "squashfs"},
}

// openVolume opens the file system in r. It returns neither a volume nor an error where there is none.
func openVolume(r *io.SectionReader) (*volume, error) {
	e, err := ext4.Open(r)
	switch {
	case err == nil:
		return &volume{fs: ext4FS{e}, kind: "ext4", label: e.Label(), fsID: e.UUID()}, nil
	case !errors.Is(err, ext4.ErrFormat) && !errors.Is(err, io.EOF):
		return nil, err
	}
	v, err := fat.Open(r)
	switch {
	case err == nil:
		return &volume{fs: fatFS{v}, kind: "vfat", label: v.Label(), fsID: v.UUID()}, nil
	case !errors.Is(err, fat.ErrFormat):
		return nil, err
	}
	for _, f := range foreign {
		p := make([]byte, len(f.text))
		if _, err := r.ReadAt(p, f.at); err == nil && string(p) == f.text {
			return nil, fmt.Errorf("%s: can't be read here", f.name)
		}
	}
	return nil, nil
}

// ext4FS is an ext4 file system as a fileSystem.
type ext4FS struct{ *ext4.FS }

func (f ext4FS) Open(path string) (Image, error) {
	i, err := f.FS.Open(path)
	if err != nil {
		return nil, err // not i: a nil pointer in an interface is not nil
	}
	return i, nil
}

// fatFS is a FAT file system as a fileSystem.
type fatFS struct{ *fat.FS }

func (f fatFS) Open(path string) (Image, error) {
	i, err := f.FS.Open(path)
	if err != nil {
		return nil, err
	}
	return i, nil
}

// partitions reads the partition table. A disk without one is one partition.
func partitions(disk io.ReaderAt, size int64) ([]partition, error) {
	var mbr [512]byte
	if size < int64(len(mbr)) {
		return nil, fmt.Errorf("disk of %d bytes", size)
	}
	if _, err := disk.ReadAt(mbr[:], 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	for _, sector := range []int64{512, 4096} {
		for _, at := range []int64{sector, size - sector} {
			if parts := gpt(disk, size, sector, at); parts != nil {
				return parts, nil
			}
		}
	}
	whole := []partition{{size: size}}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return whole, nil
	}
	if parts := msdos(disk, size, mbr); len(parts) > 0 {
		return parts, nil
	}
	return whole, nil // FAT's boot sector has the same signature
}

// gpt reads a GUID partition table whose header is at at (UEFI 2.10 §5.3), or returns nil.
func gpt(disk io.ReaderAt, size, sector, at int64) []partition {
	le := binary.LittleEndian
	h := make([]byte, 512)
	if at < 0 {
		return nil
	}
	if _, err := disk.ReadAt(h, at); err != nil || !bytes.HasPrefix(h, []byte("EFI PART")) {
		return nil
	}
	length := le.Uint32(h[12:])
	if length < 92 || length > uint32(len(h)) {
		return nil
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:length]) != sum {
		return nil
	}
	lba, n, entry := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if entry < 128 || entry > 4096 || n > 1024 || lba > uint64(size/sector) {
		return nil
	}
	table := make([]byte, n*entry)
	if _, err := disk.ReadAt(table, int64(lba)*sector); err != nil || crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil
	}
	parts := []partition{}
	for i := range min(int(n), maxPartitions) {
		e := table[i*int(entry):]
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if [16]byte(e) == [16]byte{} || first > last || last >= uint64(size/sector) {
			continue
		}
		g := e[16:32]
		parts = append(parts, partition{
			number: i + 1, scheme: "gpt", start: int64(first) * sector, size: int64(last-first+1) * sector,
			uuid: fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16]),
		})
	}
	return parts
}

// msdos reads the partitions of a master boot record, and the logical ones behind it.
func msdos(disk io.ReaderAt, size int64, mbr [512]byte) (parts []partition) {
	le := binary.LittleEndian
	id := le.Uint32(mbr[0x1b8:])
	add := func(number int, entry []byte, base int64) {
		start, n := base+int64(le.Uint32(entry[8:]))*512, int64(le.Uint32(entry[12:]))*512
		if entry[0]&0x7f != 0 || entry[4] == 0 || start <= 0 || n == 0 || start > size-n {
			return
		}
		parts = append(parts, partition{number: number, scheme: "msdos", start: start, size: n, uuid: fmt.Sprintf("%08x-%02x", id, number)})
	}
	extended := func(kind byte) bool { return kind == 5 || kind == 0xf || kind == 0x85 }
	for i := range 4 {
		entry := mbr[0x1be+16*i:]
		if !extended(entry[4]) {
			add(i+1, entry, 0)
			continue
		}
		// A chain of boot records, each with a partition and the place of the next.
		base := int64(le.Uint32(entry[8:])) * 512
		at := base
		for number := 5; number <= maxPartitions; number++ {
			var ebr [512]byte
			if _, err := disk.ReadAt(ebr[:], at); err != nil || ebr[510] != 0x55 || ebr[511] != 0xaa {
				break
			}
			add(number, ebr[0x1be:], at)
			next := ebr[0x1ce:]
			if !extended(next[4]) {
				break
			}
			at = base + int64(le.Uint32(next[8:]))*512
		}
	}
	return parts
}
