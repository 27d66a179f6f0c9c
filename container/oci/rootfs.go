package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"vmm/container/ext4"
)

// RootfsSize is what the root file system of an image has room for, in bytes: its own files, and those that a machine writes
// to its own copy. Neither takes room on the host that is not in use.
const RootfsSize = 64 << 30

// rootfsVersion is part of the root file systems' names: another one has those be made anew that an older vmm has left.
const rootfsVersion = "1"

// layer is where a layer's compressed bytes are, and the digest of those that they unpack to.
type layer struct {
	path   string
	diffID v1.Hash
}

// makeRootfs lays the layers over each other and writes the file system that they make to path, whole or not at all.
func makeRootfs(ctx context.Context, layers []layer, id v1.Hash, path string) (err error) {
	dir := filepath.Dir(path)
	spool, err := newSpool(ctx, dir)
	if err != nil {
		return err
	}
	defer spool.close()
	t := newTree()
	for i, l := range layers {
		if err := spool.lay(t, l); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	f, err := os.CreateTemp(dir, ".rootfs-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(f.Chmod(0o444), f.Truncate(RootfsSize)); err != nil {
		return err
	}
	o := ext4.Options{Size: RootfsSize}
	if digest, err := hex.DecodeString(id.Hex); err == nil {
		copy(o.UUID[:], digest)
	}
	if err := ext4.Write(cancelable{ctx, f}, t.root, o); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// cancelable is a file that cannot be written to any more when the context has ended.
type cancelable struct {
	ctx context.Context
	*os.File
}

func (c cancelable) WriteAt(p []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.File.WriteAt(p, off)
}

// spool holds unpacked layers while they are laid over each other, in a file without a name.
type spool struct {
	ctx  context.Context
	file *os.File
	end  int64 // bytes
}

func newSpool(ctx context.Context, dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, ".layers-")
	if err != nil {
		return nil, err
	}
	return &spool{ctx: ctx, file: f}, os.Remove(f.Name())
}

func (s *spool) close() { _ = s.file.Close() }

// lay unpacks a layer, compares it with its digest, and lays it over the tree.
func (s *spool) lay(t *tree, l layer) error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	r, err := unpack(f)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	begin := s.end
	limit := max(bombUnpacked, bombRatio*st.Size())
	var buf [256 << 10]byte
	for {
		n, err := r.Read(buf[:])
		sum.Write(buf[:n])
		if _, err := s.file.WriteAt(buf[:n], s.end); err != nil {
			return err
		}
		s.end += int64(n)
		switch {
		case s.end > maxUnpacked:
			return fmt.Errorf("the layers unpack to more than %d GiB", maxUnpacked>>30)
		case s.end-begin > limit:
			return fmt.Errorf("unpacks to more than %d times its size: not an honest layer", bombRatio)
		case s.ctx.Err() != nil:
			return s.ctx.Err()
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("unpack: %w", err)
		}
		break
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != l.diffID.Hex {
		return fmt.Errorf("unpacks to sha256:%s, not to %s as the image says", got, l.diffID)
	}
	end := s.end // of the layer; data of sparse files comes behind it
	section := &offsetReader{io.NewSectionReader(s.file, begin, end-begin), begin}
	return t.add(tar.NewReader(section), &layerContents{s, section})
}

// unpack undoes whichever compression a layer has: media types are not always true.
func unpack(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	start, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxMemory(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// offsetReader knows where in the spool it is.
type offsetReader struct {
	*io.SectionReader
	base int64
}

func (r *offsetReader) offset() int64 {
	at, _ := r.Seek(0, io.SeekCurrent)
	return r.base + at
}

// layerContents finds files' data in the spool, where the layer has put them.
type layerContents struct {
	s *spool
	r *offsetReader
}

func (c *layerContents) file(r *tar.Reader, h *tar.Header) (io.ReaderAt, error) {
	if h.Size == 0 {
		return nil, nil
	}
	if !sparse(h) {
		at := c.r.offset()
		if h.Size > c.r.base+c.r.Size()-at {
			return nil, io.ErrUnexpectedEOF
		}
		return io.NewSectionReader(c.s.file, at, h.Size), nil
	}
	// Its data is in pieces: it is laid out behind the layers.
	begin := c.s.end
	if h.Size > maxUnpacked-begin {
		return nil, fmt.Errorf("the layers unpack to more than %d GiB", maxUnpacked>>30)
	}
	c.s.end += h.Size
	if err := c.s.file.Truncate(c.s.end); err != nil {
		return nil, err
	}
	var buf, zeros [64 << 10]byte
	for at := begin; ; {
		n, err := io.ReadFull(r, buf[:])
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := c.s.file.WriteAt(buf[:n], at); err != nil {
				return nil, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && at == c.s.end {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := c.s.ctx.Err(); err != nil {
			return nil, err
		}
	}
	return io.NewSectionReader(c.s.file, begin, h.Size), nil
}

// sparse tells whether the entry's data has holes (GNU tar's formats).
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, key := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.numblocks"} {
		if _, ok := h.PAXRecords[key]; ok {
			return true
		}
	}
	return false
}
