package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// LoadLayout takes the images of an OCI image layout, a folder.
func (s *Store) LoadLayout(ctx context.Context, dir string) ([]*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: not an OCI image layout: %w", dir, err)
	}
	var list []*Image
	if err := s.loadIndex(ctx, index, nil, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no image for %s/%s in it", dir, Platform.OS, Platform.Architecture)
	}
	return list, nil
}

// loadIndex takes the images of an index that are for this platform. Names are inherited by those of an index in the index.
func (s *Store) loadIndex(ctx context.Context, index v1.ImageIndex, names []string, list *[]*Image) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		if err := ctx.Err(); err != nil {
			return err
		}
		own := names
		for _, key := range []string{"io.containerd.image.name", RefName} {
			if r, err := name.ParseReference(d.Annotations[key]); err == nil {
				own = []string{r.Name()}
				break
			}
		}
		switch {
		case d.MediaType.IsIndex():
			inner, err := index.ImageIndex(d.Digest)
			if err == nil && names == nil { // one level: an index of indexes of indexes is nobody's
				err = s.loadIndex(ctx, inner, append([]string{}, own...), list)
			}
			if err != nil {
				return err
			}
		case d.MediaType.IsImage() && (d.Platform == nil || d.Platform.Satisfies(Platform)):
			img, err := index.Image(d.Digest)
			if err != nil {
				return err
			}
			kept, err := s.keep(ctx, img, own...)
			if err != nil {
				return err
			}
			*list = append(*list, kept)
		}
	}
	return nil
}

// LoadArchive takes the images of an archive: one of docker save's, or an OCI image layout in a tar, also in gzip's compression.
func (s *Store) LoadArchive(ctx context.Context, r io.Reader) ([]*Image, error) {
	work, err := os.MkdirTemp(s.dir, ".load-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	archive := filepath.Join(work, "archive")
	if err := save(ctx, archive, r); err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return os.Open(archive) }
	if manifest, err := tarball.LoadManifest(opener); err == nil {
		return s.loadDocker(ctx, opener, manifest)
	}
	dir := filepath.Join(work, "layout")
	if err := unpackLayout(archive, dir); err != nil {
		return nil, err
	}
	list, err := s.LoadLayout(ctx, dir)
	if err != nil {
		return nil, errors.New("neither an archive of docker save's nor an OCI image layout in a tar")
	}
	return list, nil
}

// save writes the archive to a file, uncompressed.
func save(ctx context.Context, to string, r io.Reader) error {
	var start [2]byte
	n, err := io.ReadFull(r, start[:])
	if err != nil {
		return fmt.Errorf("no archive: %w", err)
	}
	r = io.MultiReader(bytes.NewReader(start[:n]), r)
	if start == [2]byte{0x1f, 0x8b} {
		if r, err = gzip.NewReader(r); err != nil {
			return err
		}
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := io.Copy(f, io.LimitReader(contextReader{ctx, r}, maxUnpacked+1))
	if err == nil && size > maxUnpacked {
		err = fmt.Errorf("an archive of more than %d GiB", maxUnpacked>>30)
	}
	return err
}

func (s *Store) loadDocker(ctx context.Context, opener tarball.Opener, manifest tarball.Manifest) ([]*Image, error) {
	var list []*Image
	for _, d := range manifest {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var tag *name.Tag
		var names []string
		for _, t := range d.RepoTags {
			parsed, err := name.NewTag(t)
			if err != nil {
				return nil, err
			}
			tag = &parsed
			names = append(names, parsed.Name())
		}
		if tag == nil && len(manifest) > 1 {
			return nil, errors.New("an archive with several images, of which one has no name")
		}
		img, err := tarball.Image(opener, tag)
		if err != nil {
			return nil, err
		}
		kept, err := s.keep(ctx, img, names...)
		if err != nil {
			return nil, err
		}
		list = append(list, kept)
	}
	return list, nil
}

var blobName = regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`)

// unpackLayout lays out an image layout's files, and no others.
func unpackLayout(archive, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not a tar archive: %w", err)
		}
		n := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || n != "index.json" && n != "oci-layout" && !blobName.MatchString(n) {
			continue
		}
		out, err := os.OpenFile(filepath.Join(dir, n), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
