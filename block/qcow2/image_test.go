package qcow2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCompressed reads what QEMU has compressed, and writes over it.
func TestCompressed(t *testing.T) {
	for _, kind := range []string{"zlib", "zstd"} {
		for _, cluster := range []string{"512", "64k", "2M"} {
			t.Run(kind+" "+cluster, func(t *testing.T) {
				r := rand.New(rand.NewPCG(7, 7))
				want := make([]byte, 5<<20)
				for i := 0; i < len(want); i += 512 { // half of it can be compressed, a part is zero
					switch r.IntN(4) {
					case 0, 1:
						copy(want[i:i+512], bytes.Repeat([]byte{byte(r.Uint32())}, 512))
					case 2:
						fillRandom(r, want[i:i+512])
					}
				}
				dir := t.TempDir()
				raw := filepath.Join(dir, "raw")
				require.NoError(t, os.WriteFile(raw, want, 0o600))
				d := &disk{t: t, path: filepath.Join(dir, "disk"), want: want}
				qemuImg(t, "convert", "-c", "-O", "qcow2", "-o", "compression_type="+kind+",cluster_size="+cluster, raw, d.path)
				d.open()
				d.compare()
				info, err := d.image.Info()
				require.NoError(t, err)
				require.Equal(t, kind, info.Compression.String())
				res, err := d.image.Check(Repair{})
				require.NoError(t, err)
				require.True(t, res.Clean())
				require.Positive(t, res.CompressedClusters)
				for range 200 {
					off := r.Int64N(int64(len(want))/512) * 512
					p := make([]byte, min(512*(1+r.Int64N(8)), int64(len(want))-off))
					fillRandom(r, p)
					copy(want[off:], p)
					_, err := d.image.WriteAt(p, off)
					require.NoError(t, err)
				}
				d.compare()
				d.close()
				d.check()
			})
		}
	}
}

// TestRefused: what can't be read right is refused, in words that say what it is.
func TestRefused(t *testing.T) {
	be := binary.BigEndian
	for _, tt := range []struct {
		name   string
		change func(p []byte)
		want   string
	}{
		{"another format", func(p []byte) { p[0] = 'X' }, "not a qcow2 image"},
		{"version 1", func(p []byte) { be.PutUint32(p[4:], 1) }, "version 1 of qcow2: not 2 or 3"},
		{"clusters too small", func(p []byte) { be.PutUint32(p[20:], 8) }, "cluster size of 2^8 bytes: not between 2^9 and 2^21"},
		{"encrypted", func(p []byte) { be.PutUint32(p[32:], 2) }, "is encrypted: not supported (qemu-img convert decrypts it)"},
		{"external data", func(p []byte) { p[79] |= 4 }, `needs "external data file": not supported (qemu-img convert makes an image without)`},
		{"extended L2, and what nobody knows", func(p []byte) { p[79] |= 0x10; p[72] = 0x80 }, `needs "extended L2 entries", "feature 63": not supported (qemu-img convert makes an image without)`},
		{"named feature", func(p []byte) { p[79] |= 2; be.PutUint32(p[4:], 3) }, "image is corrupt, as its header says: it can be opened for reading only, or repaired"},
		{"unknown compression", func(p []byte) { p[79] |= 8; p[104] = 7 }, "compression type 7: not supported (qemu-img convert makes an image without)"},
		{"size", func(p []byte) { be.PutUint64(p[24:], 1<<40) }, "L1 table of 1 entries: 1099511627776 bytes need 2048"},
		{"huge size", func(p []byte) { be.PutUint64(p[24:], 1<<63) }, "size of 9223372036854775808 bytes: more than a disk can have"},
		{"L1 table", func(p []byte) { be.PutUint32(p[36:], 1<<30) }, "L1 table of 1073741824 entries: at most 4194304"},
		{"L1 table's place", func(p []byte) { be.PutUint64(p[40:], 12345) }, "L1 table at 0x3039: not the start of a cluster behind the header"},
		{"L1 table behind the end", func(p []byte) { be.PutUint64(p[40:], 1<<40) }, "image is corrupt: its L1 table is behind the end of the file"},
		{"refcount table", func(p []byte) { be.PutUint32(p[56:], 1<<20) }, "refcount table of 1048576 clusters: at most 128"},
		{"no refcount table", func(p []byte) { be.PutUint32(p[56:], 0) }, "no refcount table"},
		{"refcounts", func(p []byte) { be.PutUint32(p[96:], 7) }, "refcounts of 2^7 bits: at most 2^6"},
		{"snapshots", func(p []byte) { be.PutUint32(p[60:], 1<<20) }, "1048576 snapshots: at most 65536"},
		{"backing file's name", func(p []byte) { be.PutUint64(p[8:], 1<<20); be.PutUint32(p[16:], 5) }, "the backing file's name is not in the first cluster"},
		{"backing file", func(p []byte) { be.PutUint64(p[8:], 1024); be.PutUint32(p[16:], 4); copy(p[1024:], "base") }, `has a backing file, "base"`},
		{"header's length", func(p []byte) { be.PutUint32(p[100:], 77) }, "header of 77 bytes"},
		{"extension", func(p []byte) { be.PutUint32(p[116:], 1<<17) }, "header extension 0x6803f857: 131072 bytes do not fit the first cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newInMemory(t, CreateOptions{Size: 1 << 20})
			tt.change(f.data)
			_, err := Open(f, Options{})
			require.EqualError(t, err, tt.want)
		})
	}
	_, err := Open(&memory{data: []byte(Magic)}, Options{})
	require.ErrorIs(t, err, ErrFormat)
}

// TestCorruptTables: an entry that makes no sense fails what needs it, and ends all writing.
func TestCorruptTables(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry uint64
		want  string
	}{
		{"not a cluster's start", flagCopied | 0x1200, "image is corrupt: L2 entry 0x8000000000001200"},
		{"reserved bits", flagCopied | 0x30000 | 4, "image is corrupt: L2 entry 0x8000000000030004"},
		{"the header", flagCopied | 0x10000, "image is corrupt: cluster 0x10000, which the disk's at 0x0 is in, is not one of the disk's"},
		{"the L1 table", flagCopied | 0x30000, "image is corrupt: cluster 0x30000, which the disk's at 0x0 is in, is not one of the disk's"},
		{"behind the end", flagCopied | 0x7f000000_0000, "image is corrupt: cluster 0x7f0000000000, which the disk's at 0x0 is in, is not one of the disk's"},
		{"zeroes, at the L1 table", flagCopied | flagZero | 0x30000, "image is corrupt: cluster 0x30000 is not one of the disk's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newInMemory(t, CreateOptions{Size: 1 << 20})
			m, err := Open(f, Options{})
			require.NoError(t, err)
			_, err = m.WriteAt(make([]byte, 65536), 65536) // so that there is an L2 table
			require.NoError(t, err)
			require.NoError(t, m.Close())
			l2 := m.l1[0] & offsetMask
			binary.BigEndian.PutUint64(f.data[l2:], tt.entry)
			before := bytes.Clone(f.data)

			m, err = Open(f, Options{})
			require.NoError(t, err)
			_, err = m.WriteAt(make([]byte, 512), 0)
			require.EqualError(t, err, tt.want)
			require.ErrorIs(t, err, ErrCorrupt)
			_, err = m.WriteAt(make([]byte, 512), 65536)
			require.ErrorIs(t, err, ErrCorrupt, "no more writes")
			_, err = m.ReadAt(make([]byte, 512), 65536)
			require.NoError(t, err, "reads go on")
			require.NoError(t, m.Close())
			require.Equal(t, byte(featureCorrupt), f.data[79])
			f.data[79] = 0
			require.True(t, bytes.Equal(before, f.data[:len(before)]), "something else was written")

			f.data[79] = featureCorrupt
			_, err = Open(f, Options{})
			require.ErrorIs(t, err, ErrCorrupt)
			_, err = Open(f, Options{ReadOnly: true})
			require.NoError(t, err)
		})
	}
}

// TestRepair: an image that was not closed properly is repaired when it is opened, whatever its refcounts were.
func TestRepair(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(m *Image, p []byte)
	}{
		{"refcounts too low", func(m *Image, p []byte) { clear(p[m.ref[0]+8 : m.ref[0]+64]) }},
		{"refcounts too high", func(m *Image, p []byte) { copy(p[m.ref[0]:], bytes.Repeat([]byte{0, 9}, 2000)) }},
		{"no refcount block", func(m *Image, p []byte) { clear(p[m.h.refOffset : m.h.refOffset+8]) }},
		{"refcount block behind the end", func(m *Image, p []byte) { p[m.h.refOffset+1] = 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newInMemory(t, CreateOptions{Size: 4 << 20, ClusterSize: 4096})
			m, err := Open(f, Options{})
			require.NoError(t, err)
			want := make([]byte, m.Size())
			fillRandom(rand.New(rand.NewPCG(3, 3)), want[1<<20:2<<20])
			_, err = m.WriteAt(want[1<<20:2<<20], 1<<20)
			require.NoError(t, err)
			require.NoError(t, m.Close())
			tt.damage(m, f.data)
			f.data[79] |= featureDirty

			m, err = Open(f, Options{})
			require.NoError(t, err)
			require.Len(t, m.Notes(), 1)
			require.Contains(t, m.Notes()[0], "was not closed properly: repaired")
			got := make([]byte, len(want))
			_, err = m.ReadAt(got, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
			_, err = m.WriteAt(want[:1<<20], 0)
			require.NoError(t, err)
			require.NoError(t, m.Close())
			require.Zero(t, f.data[79])
			path := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, os.WriteFile(path, f.data, 0o600))
			d := &disk{t: t, path: path, want: want}
			d.check()
		})
	}
}

// TestQEMUFindsWhatWeFind compares the figures of both checks, over images with mistakes.
func TestQEMUFindsWhatWeFind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	qemuImg(t, "create", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M")
	d := &disk{t: t, path: path, want: make([]byte, 8<<20)}
	d.open()
	r := rand.New(rand.NewPCG(5, 5))
	for range 300 {
		p := make([]byte, 4096)
		off := r.Int64N(2048) * 4096
		_, err := d.image.WriteAt(p, off)
		require.NoError(t, err)
	}
	block := d.image.ref[0]
	d.close()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	data[block+2*100+1]++   // one refcount too high,
	data[block+2*101+1] = 0 // one too low
	data[block+2*1500+1]++  // and a cluster that nothing refers to
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	m, err := Open(osFile{f}, Options{})
	require.NoError(t, err)
	res, err := m.Check(Repair{})
	require.NoError(t, err)
	require.EqualValues(t, 2, res.Leaks, res.Problems)
	require.EqualValues(t, 3, res.Corruptions, res.Problems) // the count, and the flags of two entries
	res, err = m.Check(Repair{Leaks: true, Refcounts: true})
	require.NoError(t, err)
	require.True(t, res.Clean(), "%+v", res)
	require.NoError(t, m.Close())
	require.NoError(t, f.Close())
	qemuImg(t, "check", path)
}

// FuzzImage opens images that somebody has tampered with, and does with them all that a guest and a user can.
func FuzzImage(f *testing.F) {
	base := func(o CreateOptions) []byte {
		file := newInMemory(f, o)
		m, err := Open(file, Options{})
		require.NoError(f, err)
		_, err = m.WriteAt(make([]byte, 9000), 3000)
		require.NoError(f, err)
		require.NoError(f, m.WriteZeroes(20000, 8192, false))
		require.NoError(f, m.Close())
		return file.data
	}
	images := [][]byte{
		base(CreateOptions{Size: 64 << 10, ClusterSize: 512}),
		base(CreateOptions{Size: 64 << 10, ClusterSize: 1024, Version: 2}),
		base(CreateOptions{Size: 256 << 10, ClusterSize: 4096, RefcountBits: 1}),
	}
	f.Add(uint8(0), []byte{}, uint64(1))
	f.Add(uint8(1), []byte{0, 40, 0xff, 0, 41, 1}, uint64(2))
	f.Add(uint8(2), []byte{0x10, 0, 0x80, 0x30, 7, 0xff}, uint64(3))
	f.Fuzz(func(t *testing.T, which uint8, edits []byte, seed uint64) {
		data := bytes.Clone(images[int(which)%len(images)])
		for ; len(edits) >= 3; edits = edits[3:] { // each is two bytes of place and one of value
			data[int(binary.BigEndian.Uint16(edits))%len(data)] = edits[2]
		}
		for _, readOnly := range []bool{true, false} {
			file := &memory{data: data}
			m, err := Open(file, Options{ReadOnly: readOnly, Backing: func(string, string) (Backing, error) {
				return bytes.NewReader(make([]byte, 5000)), nil
			}})
			if err != nil {
				continue
			}
			m.limit = 8
			r := rand.New(rand.NewPCG(seed, 0))
			size := max(min(m.Size(), 1<<20), 1)
			p := make([]byte, 5000)
			for range 50 {
				off, n := r.Int64N(size), r.Int64N(int64(len(p)))
				switch r.IntN(6) {
				case 0:
					_, _ = m.ReadAt(p[:n], off)
				case 1, 2:
					_, _ = m.WriteAt(p[:n], off)
				case 3:
					_ = m.Discard(off, n)
				case 4:
					_ = m.WriteZeroes(off, n, n%2 == 0)
				default:
					_ = m.Sync()
				}
			}
			_, _ = m.Check(Repair{})
			if !readOnly && m.Size() < 1<<20 {
				_ = m.Resize(m.Size() + 512*r.Int64N(200))
			}
			_ = m.Close()
			require.Less(t, len(file.data), 64<<20, "the file has grown beyond all that was written")
		}
	})
}

func benchmark(b *testing.B, write bool) {
	path := filepath.Join(b.TempDir(), "disk")
	f, err := os.Create(path)
	require.NoError(b, err)
	defer f.Close()
	const size = 256 << 20
	require.NoError(b, Create(osFile{f}, CreateOptions{Size: size}))
	m, err := Open(vectorFile{osFile{f}}, Options{})
	require.NoError(b, err)
	p := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(p)) {
		_, err := m.WriteAt(p, off)
		require.NoError(b, err)
	}
	require.NoError(b, m.Sync())
	r := rand.New(rand.NewPCG(1, 1))
	iov := make([]unix.Iovec, 1)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		iov[0] = unix.Iovec{Base: &p[0], Len: 4096}
		off := r.Int64N(size/4096) * 4096
		if write {
			_, err = m.WriteVector(iov, off)
		} else {
			_, err = m.ReadVector(iov, off)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, m.Close())
}

// vectorFile is an osFile with preadv and pwritev, as block.File is.
type vectorFile struct{ osFile }

func (f vectorFile) ReadVector(iov []unix.Iovec, off int64) (int, error) {
	return f.vector(iov, off, unix.SYS_PREADV)
}
func (f vectorFile) WriteVector(iov []unix.Iovec, off int64) (int, error) {
	return f.vector(iov, off, unix.SYS_PWRITEV)
}

func (f vectorFile) vector(iov []unix.Iovec, off int64, call uintptr) (int, error) {
	n, _, errno := unix.Syscall6(call, f.Fd(), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func BenchmarkRandomRead(b *testing.B)  { benchmark(b, false) }
func BenchmarkRandomWrite(b *testing.B) { benchmark(b, true) }

func TestPreallocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, Create(osFile{f}, CreateOptions{Size: 3<<20 + 512, ClusterSize: 4096}))
	m, err := Open(osFile{f}, Options{})
	require.NoError(t, err)
	require.NoError(t, m.Preallocate())
	res, err := m.Check(Repair{})
	require.NoError(t, err)
	require.True(t, res.Clean())
	require.Equal(t, res.TotalClusters, res.AllocatedClusters)
	require.Zero(t, res.FragmentedClusters/100, strconv.FormatInt(res.FragmentedClusters, 10))
	require.NoError(t, m.Close())
	require.NoError(t, f.Close())
	d := &disk{t: t, path: path, want: make([]byte, 3<<20+512)}
	d.check()
}
