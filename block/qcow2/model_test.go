package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/tooltest"
)

// osFile is a Storage for tests that look at the file with other tools.
type osFile struct{ *os.File }

func (f osFile) Size() int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	return tooltest.Run(t, "qemu-utils", "qemu-img", args...)
}

// disk is an image under test beside what it has to hold.
type disk struct {
	t     *testing.T
	path  string
	file  osFile
	image *Image
	want  []byte
	base  []byte // the backing file's contents

	snapshots map[string][]byte // what each has to hold
}

func (d *disk) open() {
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	require.NoError(d.t, err)
	d.file = osFile{f}
	d.image, err = Open(d.file, Options{Backing: func(string, string) (Backing, error) { return bytes.NewReader(d.base), nil }})
	require.NoError(d.t, err)
}

func (d *disk) close() {
	require.NoError(d.t, d.image.Close())
	require.NoError(d.t, d.file.Close())
}

// mostSnapshots is how many the refcounts have room for.
func (d *disk) mostSnapshots() int { return min(1<<(1<<d.image.refOrder)-2, 5) }

// check lets qemu-img look at the image, and compares all of it.
func (d *disk) check() {
	d.t.Helper()
	qemuImg(d.t, "check", "-f", "qcow2", d.path)
	raw := filepath.Join(filepath.Dir(d.path), "want")
	require.NoError(d.t, os.WriteFile(raw, d.want, 0o600))
	qemuImg(d.t, "compare", "-f", "qcow2", "-F", "raw", d.path, raw)
}

func (d *disk) compare() {
	d.t.Helper()
	got := make([]byte, len(d.want))
	n, err := d.image.ReadAt(got, 0)
	require.NoError(d.t, err)
	require.Equal(d.t, len(d.want), n)
	if !bytes.Equal(d.want, got) {
		at := 0
		for d.want[at] == got[at] {
			at++
		}
		d.t.Fatalf("differs from %#x on", at)
	}
}

func fillRandom(r *rand.Rand, p []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p)
}

// step does one random thing to the disk and to the model.
func (d *disk) step(r *rand.Rand) string {
	t := d.t
	cluster := d.image.clusterSize
	span := func(most int64) (off, n int64) {
		off = r.Int64N(int64(len(d.want))/512) * 512
		n = min((1+r.Int64N(most/512))*512, int64(len(d.want))-off)
		if r.IntN(3) == 0 { // whole clusters
			off &^= cluster - 1
			n = min((n+cluster-1)&^(cluster-1), int64(len(d.want))-off)
		}
		return off, n
	}
	switch k := r.IntN(100); {
	case k < 50:
		off, n := span(4 * cluster)
		p := make([]byte, n)
		fillRandom(r, p)
		copy(d.want[off:], p)
		m, err := d.image.WriteAt(p, off)
		require.NoError(t, err)
		require.EqualValues(t, n, m)
		return fmt.Sprintf("write %#x+%#x", off, n)
	case k < 70:
		off, n := span(8 * cluster)
		p := make([]byte, n)
		_, err := d.image.ReadAt(p, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(d.want[off:off+n], p), "read %#x+%#x", off, n)
		return fmt.Sprintf("read %#x+%#x", off, n)
	case k < 80:
		off, n := span(20 * cluster)
		unmap := r.IntN(2) == 0
		require.NoError(t, d.image.WriteZeroes(off, n, unmap))
		clear(d.want[off : off+n])
		return fmt.Sprintf("zeroes %#x+%#x %v", off, n, unmap)
	case k < 90:
		off, n := span(20 * cluster)
		require.NoError(t, d.image.Discard(off, n))
		// What is left is ours to choose, within limits.
		got := make([]byte, n)
		_, err := d.image.ReadAt(got, off)
		require.NoError(t, err)
		zero := make([]byte, 512)
		for i := int64(0); i < n; i += 512 {
			if sector := got[i:min(i+512, n)]; !bytes.Equal(sector, zero[:len(sector)]) {
				require.True(t, bytes.Equal(sector, d.want[off+i:off+i+int64(len(sector))]), "discard %#x+%#x left something else at %#x", off, n, off+i)
			}
		}
		copy(d.want[off:], got)
		return fmt.Sprintf("discard %#x+%#x", off, n)
	case k < 94:
		require.NoError(t, d.image.Sync())
		return "sync"
	case k < 96:
		size := int64(len(d.want)) + (r.Int64N(8*cluster/512)-4*cluster/512)*512
		size = max(size, 512)
		require.NoError(t, d.image.Resize(size))
		d.want = append(d.want, make([]byte, max(0, size-int64(len(d.want))))...)[:size]
		return fmt.Sprintf("resize %#x", size)
	case k < 98:
		d.close()
		d.check()
		d.open()
		return "reopen"
	case k < 99:
		res, err := d.image.Check(Repair{})
		require.NoError(t, err)
		require.True(t, res.Clean(), "%+v", res)
		return "check"
	case len(d.snapshots) < d.mostSnapshots():
		d.close()
		name := "s" + strconv.Itoa(len(d.snapshots))
		qemuImg(t, "snapshot", "-c", name, d.path)
		d.snapshots[name] = bytes.Clone(d.want)
		d.open()
		return "snapshot"
	}
	return "nothing"
}

// TestModel does thousands of random things to images of all kinds, and has QEMU look at what becomes of them.
func TestModel(t *testing.T) {
	for _, tt := range []struct {
		name    string
		size    int64
		options string // of qemu-img; empty where Create makes the image
		create  CreateOptions
		base    int64 // size of the backing file
	}{
		{name: "64K", size: 4 << 20},
		{name: "4K", size: 1<<20 + 512, create: CreateOptions{ClusterSize: 4096}},
		{name: "512, 1 bit", size: 256 << 10, create: CreateOptions{ClusterSize: 512, RefcountBits: 1}},
		{name: "512, 64 bits", size: 300 << 10, create: CreateOptions{ClusterSize: 512, RefcountBits: 64}},
		{name: "1K, 2 bits, backing", size: 300 << 10, create: CreateOptions{ClusterSize: 1024, RefcountBits: 2}, base: 100<<10 + 1},
		{name: "2M", size: 8 << 20, create: CreateOptions{ClusterSize: 2 << 20}},
		{name: "4K, backing as long", size: 1 << 20, create: CreateOptions{ClusterSize: 4096}, base: 1 << 20},
		{name: "4K, backing longer", size: 512 << 10, create: CreateOptions{ClusterSize: 4096}, base: 1 << 20},
		{name: "v2", size: 1 << 20, create: CreateOptions{Version: 2, ClusterSize: 4096}},
		{name: "v2, backing", size: 1 << 20, create: CreateOptions{Version: 2, ClusterSize: 4096}, base: 700 << 10},
		{name: "QEMU's", size: 2 << 20, options: "cluster_size=8k,refcount_bits=32,lazy_refcounts=on"},
		{name: "QEMU's, preallocated", size: 2 << 20, options: "cluster_size=4k,refcount_bits=8,preallocation=metadata"},
		{name: "QEMU's, full", size: 1 << 20, options: "cluster_size=1k,preallocation=falloc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			d := &disk{t: t, path: filepath.Join(t.TempDir(), "disk.qcow2"), want: make([]byte, tt.size), base: make([]byte, tt.base), snapshots: map[string][]byte{}}
			fillRandom(r, d.base)
			copy(d.want, d.base)
			o := tt.create
			o.Size = tt.size
			if tt.base > 0 {
				require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(d.path), "base"), d.base, 0o600))
				o.BackingFile, o.BackingFormat = "base", "raw"
			}
			if tt.options != "" {
				qemuImg(t, "create", "-f", "qcow2", "-o", tt.options, d.path, strconv.FormatInt(tt.size, 10))
			} else {
				f, err := os.Create(d.path)
				require.NoError(t, err)
				require.NoError(t, Create(osFile{f}, o))
				require.NoError(t, f.Close())
			}
			d.open()
			d.image.limit = 8 // tables in memory, so that they come and go
			var log []string
			defer func() {
				if t.Failed() {
					t.Log(log)
				}
			}()
			steps := 1000
			if testing.Short() {
				steps = 100
			}
			for range steps {
				log = append(log, d.step(r))
				if d.image.limit > 8 && r.IntN(2) == 0 {
					d.image.limit = 8
				}
			}
			d.compare()
			list, err := d.image.Snapshots()
			require.NoError(t, err)
			require.Len(t, list, len(d.snapshots))
			d.close()
			d.check()
			for name, want := range d.snapshots {
				out := filepath.Join(t.TempDir(), name)
				qemuImg(t, "convert", "-f", "qcow2", "-l", name, "-O", "raw", d.path, out)
				got, err := os.ReadFile(out)
				require.NoError(t, err)
				n := min(len(want), len(got)) // qemu-img gives as much as the disk has now
				require.True(t, bytes.Equal(want[:n], got[:n]), "a snapshot has changed")
			}
		})
	}
}
