package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// maxTransfers is how many layers are fetched at a time, as in Docker.
const maxTransfers = 3

// writeImage writes the image's blobs that are not here yet: the manifest last. It returns the manifest's digest and size.
func (s *Store) writeImage(ctx context.Context, img v1.Image) (digest v1.Hash, size int64, err error) {
	layers, err := img.Layers()
	if err != nil {
		return digest, 0, err
	}
	g, inGroup := errgroup.WithContext(ctx)
	g.SetLimit(maxTransfers)
	for _, l := range layers {
		g.Go(func() error {
			digest, err := l.Digest()
			if err != nil {
				return err
			}
			size, err := l.Size()
			if err != nil {
				return err
			}
			return s.writeBlob(inGroup, digest, size, l.Compressed)
		})
	}
	if err := g.Wait(); err != nil {
		return digest, 0, err
	}
	raw := func(b []byte) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return digest, 0, err
	}
	id, err := img.ConfigName()
	if err != nil {
		return digest, 0, err
	}
	if err := s.writeBlob(ctx, id, int64(len(config)), raw(config)); err != nil {
		return digest, 0, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return digest, 0, err
	}
	if digest, err = img.Digest(); err != nil {
		return digest, 0, err
	}
	size = int64(len(manifest))
	return digest, size, s.writeBlob(ctx, digest, size, raw(manifest))
}

// writeBlob writes a blob, whole or not at all, and compares it with its digest. One that is there stays as it is.
func (s *Store) writeBlob(ctx context.Context, h v1.Hash, size int64, open func() (io.ReadCloser, error)) (err error) {
	if h.Algorithm != "sha256" || len(h.Hex) != 2*sha256.Size {
		return fmt.Errorf("blob %s: not a digest of SHA-256", h)
	}
	path := s.blob(h)
	if st, err := os.Stat(path); err == nil && st.Size() == size {
		return nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	sum := sha256.New()
	got, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(contextReader{ctx, r}, size+1))
	if err != nil {
		return err
	}
	if found := hex.EncodeToString(sum.Sum(nil)); got != size || found != h.Hex {
		return fmt.Errorf("blob %s: got %d bytes of sha256:%s, not %d", h, got, found, size)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// contextReader reads until its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
