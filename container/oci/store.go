// Package oci keeps container images on the host: pulls them from registries, takes them from archives and folders, and makes
// root file systems of them.
//
// What it keeps lies in one folder, which several processes may use at once: an OCI image layout (Open Container Initiative
// Image Format Specification, image-layout.md), so that other programs can read it too, and beside its blobs the root file
// systems, made when they are first asked for:
//
//	index.json     the names
//	blobs/sha256/  manifests, configurations and compressed layers, each by its digest, and so once, whoever needs it
//	rootfs/        file systems, by the digest of the image's configuration
//
// Images are other people's: nothing in them makes this package write outside the folder, and what is too large or is not what
// its digest says gives an error.
package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vmm/internal/filelock"
)

// Platform is what images have to be for.
var Platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// RefName is the annotation that holds an image's name in the index.
const RefName = "org.opencontainers.image.ref.name"

// Store is a folder with images.
type Store struct {
	dir string
}

// Image is an image in a store.
type Image struct {
	Names  []string // in full; none where a newer image has taken them over
	ID     v1.Hash  // of its configuration
	Digest v1.Hash  // of its manifest
	Size   int64    // bytes of its layers, compressed
	Config *v1.ConfigFile

	layers []layer
}

// NotFoundError says that the store has no such image.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no image %q here", e.Name) }

// Open opens the store in the folder, and makes it if need be.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return nil, err
	}
	s := &Store{dir: dir}
	unlock, err := s.lock("index", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "index.json")); !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	const empty = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return nil, err
	}
	return s, os.WriteFile(filepath.Join(dir, "index.json"), []byte(empty), 0o644)
}

// lock takes the lock of that name.
//
// "index" is for index.json. "blobs" is shared by those who write blobs that the index does not name yet, and exclusive for who
// takes such away; it comes first.
func (s *Store) lock(what string, how int) (unlock func(), err error) {
	return filelock.Take(filepath.Join(s.dir, "."+what+".lock"), how)
}

// ShortName is a name as people say it.
func ShortName(full string) string {
	short := strings.TrimPrefix(full, name.DefaultRegistry+"/")
	return strings.TrimPrefix(short, "library/")
}

// keep writes the image's blobs and has the names stand for it.
func (s *Store) keep(ctx context.Context, img v1.Image, names ...string) (*Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if config.Architecture != "" && config.Architecture != Platform.Architecture || config.OS != "" && config.OS != Platform.OS {
		return nil, fmt.Errorf("the image is for %s/%s: what runs here is %s/%s", config.OS, config.Architecture, Platform.OS, Platform.Architecture)
	}
	release, err := s.lock("blobs", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer release()
	digest, size, err := s.writeImage(ctx, img)
	if err != nil {
		return nil, err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return nil, err
	}
	unlock, err := s.lock("index", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	index.Manifests = rename(index.Manifests, v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size, Platform: &Platform}, names)
	if err := s.setIndex(index); err != nil {
		return nil, err
	}
	return s.read(digest, names)
}

// rename has the names stand for d. What had them before stays, without a name: a machine may have been made of it.
func rename(list []v1.Descriptor, d v1.Descriptor, names []string) []v1.Descriptor {
	for i := range list {
		if slices.Contains(names, list[i].Annotations[RefName]) {
			list[i].Annotations = nil
		}
	}
	list = append(list, d)
	for _, n := range names {
		d.Annotations = map[string]string{RefName: n}
		list = append(list, d)
	}
	// Who has a name needs no entry without one, and nobody needs two.
	named := map[v1.Hash]bool{}
	for _, d := range list {
		named[d.Digest] = named[d.Digest] || d.Annotations[RefName] != ""
	}
	nameless := map[v1.Hash]bool{}
	return slices.DeleteFunc(list, func(d v1.Descriptor) bool {
		if d.Annotations[RefName] != "" {
			return false
		}
		drop := named[d.Digest] || nameless[d.Digest]
		nameless[d.Digest] = true
		return drop
	})
}

func (s *Store) index() (*v1.IndexManifest, error) {
	f, err := os.Open(filepath.Join(s.dir, "index.json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return index, nil
}

// setIndex writes the index, whole or not at all.
func (s *Store) setIndex(index *v1.IndexManifest) error {
	b, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, "index.json")
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *Store) blob(h v1.Hash) string { return filepath.Join(s.dir, "blobs", h.Algorithm, h.Hex) }

// read reads what the store has of the image.
func (s *Store) read(digest v1.Hash, names []string) (*Image, error) {
	manifest, err := parse(s.blob(digest), v1.ParseManifest)
	if err != nil {
		return nil, err
	}
	config, err := parse(s.blob(manifest.Config.Digest), v1.ParseConfigFile)
	if err != nil {
		return nil, err
	}
	img := &Image{Names: names, ID: manifest.Config.Digest, Digest: digest, Config: config}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return nil, fmt.Errorf("image %s: %d layers, and %d digests of what they unpack to", digest, len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	for i, l := range manifest.Layers {
		img.Size += l.Size
		img.layers = append(img.layers, layer{s.blob(l.Digest), config.RootFS.DiffIDs[i]})
	}
	return img, nil
}

func parse[T any](path string, with func(io.Reader) (*T, error)) (*T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v, err := with(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// List returns the images, by their names.
func (s *Store) List() ([]*Image, error) {
	unlock, err := s.lock("index", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	names := map[v1.Hash][]string{}
	for _, d := range index.Manifests {
		own := names[d.Digest]
		if n := d.Annotations[RefName]; n != "" {
			own = append(own, n)
		}
		names[d.Digest] = own // also of one that has no name
	}
	var list []*Image
	for digest, n := range names {
		slices.Sort(n)
		img, err := s.read(digest, n)
		if err != nil {
			return nil, err
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b *Image) int {
		return cmp.Or(slices.Compare(a.Names, b.Names), strings.Compare(a.ID.Hex, b.ID.Hex))
	})
	return list, nil
}

// minID is how much of an ID names an image, in hexadecimal digits.
const minID = 6

// Get returns the image that has the name, or an ID that begins with it.
func (s *Store) Get(ref string) (*Image, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	if full, err := name.ParseReference(ref); err == nil {
		for _, img := range list {
			if slices.Contains(img.Names, full.Name()) {
				return img, nil
			}
		}
		if d, ok := full.(name.Digest); ok {
			for _, img := range list {
				if img.Digest.String() == d.DigestStr() && slices.ContainsFunc(img.Names, func(n string) bool { return strings.HasPrefix(n, d.Context().Name()) }) {
					return img, nil
				}
			}
		}
	}
	id := strings.TrimPrefix(ref, "sha256:")
	var found []*Image
	for _, img := range list {
		if len(id) >= minID && strings.HasPrefix(img.ID.Hex, id) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return nil, &NotFoundError{ref}
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d images have an ID that begins with %q", len(found), ref)
}

// Hold keeps images from being removed until release: while somebody makes a machine of one, who is not in use yet.
func (s *Store) Hold() (release func(), err error) { return s.lock("blobs", unix.LOCK_SH) }

// Rootfs returns the path of the image's root file system, a raw ext4 image that is never written to again. It is made when it
// is first asked for.
func (s *Store) Rootfs(ctx context.Context, img *Image) (string, error) {
	path := s.rootfs(img.ID)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	release, err := s.lock("blobs", unix.LOCK_SH)
	if err != nil {
		return "", err
	}
	defer release()
	unlock, err := filelock.Take(filepath.Join(s.dir, "rootfs", "."+img.ID.Hex+".lock"), unix.LOCK_EX) // goes with the image
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	if err := makeRootfs(ctx, img.layers, img.ID, path); err != nil {
		return "", fmt.Errorf("root file system of %s: %w", img.ID, err)
	}
	return path, nil
}

func (s *Store) rootfs(id v1.Hash) string {
	return filepath.Join(s.dir, "rootfs", id.Hex+"-"+rootfsVersion+".ext4")
}

// Remove takes the name away; the last one takes the image along, and so does an ID, unless inUse says that something depends
// on its root file system. It returns what it took: names, and the image's ID if that is gone too.
func (s *Store) Remove(ref string, inUse func(*Image) error) (gone []string, err error) {
	img, err := s.Get(ref)
	if err != nil {
		return nil, err
	}
	names := img.Names
	if full, err := name.ParseReference(ref); err == nil && slices.Contains(names, full.Name()) {
		names = []string{full.Name()}
	}
	last := len(names) == len(img.Names)
	if last {
		release, err := s.lock("blobs", unix.LOCK_EX)
		if err != nil {
			return nil, err
		}
		defer release()
		if err := inUse(img); err != nil {
			return nil, err
		}
	}
	unlock, err := s.lock("index", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
		return d.Digest == img.Digest && (last || slices.Contains(names, d.Annotations[RefName]))
	})
	if err := s.setIndex(index); err != nil {
		return nil, err
	}
	if !last {
		return names, nil
	}
	return append(slices.Clone(names), img.ID.String()), s.sweep(index)
}

// sweep removes the blobs and file systems that no image of the index needs.
func (s *Store) sweep(index *v1.IndexManifest) error {
	needed := map[string]bool{}
	for _, d := range index.Manifests {
		img, err := s.read(d.Digest, nil)
		if err != nil {
			return err
		}
		for _, h := range []v1.Hash{img.Digest, img.ID} {
			needed[s.blob(h)] = true
		}
		needed[s.rootfs(img.ID)] = true
		for _, l := range img.layers {
			needed[l.path] = true
		}
	}
	var errs []error
	for _, pattern := range []string{"blobs/*/*", "blobs/*/.new-*", "rootfs/*", "rootfs/.*"} {
		found, err := filepath.Glob(filepath.Join(s.dir, pattern))
		errs = append(errs, err)
		for _, path := range found {
			if !needed[path] {
				errs = append(errs, os.Remove(path))
			}
		}
	}
	return errors.Join(errs...)
}
