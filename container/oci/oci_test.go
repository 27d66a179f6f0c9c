package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	reader "vmm/bootdisk/ext4"
	"vmm/container/ext4"
	"vmm/internal/tooltest"
)

// entry is a tar header with what follows it.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}

func folder(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func link(typ byte, name, target string) entry {
	return entry{tar.Header{Typeflag: typ, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func layerOf(t testing.TB, data []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	require.NoError(t, err)
	return l
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = Platform.OS, Platform.Architecture
	config.Config.Cmd = []string{"/bin/sh"}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

func store(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	require.NoError(t, err)
	return s
}

// rootfs makes the image's root file system, which e2fsck finds nothing wrong with.
func rootfs(t testing.TB, s *Store, img *Image) *reader.FS {
	t.Helper()
	path, err := s.Rootfs(t.Context(), img)
	require.NoError(t, err)
	tooltest.Run(t, "e2fsprogs", "e2fsck", "-fn", path)
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	fs, err := reader.Open(f)
	require.NoError(t, err)
	return fs
}

func content(t testing.TB, fs *reader.FS, name string) string {
	t.Helper()
	f, err := fs.Open(name)
	require.NoError(t, err, name)
	b := make([]byte, f.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err, name)
	return string(b)
}

func names(t testing.TB, fs *reader.FS, dir string) string {
	t.Helper()
	list, err := fs.ReadDir(dir)
	require.NoError(t, err, dir)
	return strings.Join(list, " ")
}

// TestLayers lays layers over each other in all the ways that the specification knows.
func TestLayers(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]entry
		want   map[string]string // files' contents, and of a folder, whose name ends in /, the names
	}{
		"replaced": {
			[][]entry{{folder("a"), file("a/x", "one"), file("a/y", "y")}, {file("a/x", "two")}},
			map[string]string{"a/": "x y", "a/x": "two"},
		},
		"whiteout": {
			[][]entry{{folder("a"), file("a/x", "x"), folder("a/d"), file("a/d/z", ""), file("a/y", "y")}, {file("a/.wh.x", ""), file("a/.wh.d", "")}},
			map[string]string{"a/": "y"},
		},
		"whiteout and anew, in either order": {
			[][]entry{
				{folder("a"), file("a/x", "x"), folder("b"), file("b/x", "x")},
				{file(".wh.a", ""), folder("a"), file("a/new", ""), folder("b"), file("b/new", ""), file(".wh.b", "")},
			},
			map[string]string{"a/": "new", "b/": "new"},
		},
		"opaque": {
			[][]entry{{folder("a"), file("a/x", "x"), folder("a/d"), file("a/d/z", "")}, {folder("a"), file("a/new", ""), file("a/.wh..wh..opq", ""), file("a/later", "")}},
			map[string]string{"a/": "later new"},
		},
		"whiteouts of AUFS, and of nothing": {
			[][]entry{{file("x", "x")}, {file(".wh..wh.plnk", ""), file(".wh.nothing", "")}},
			map[string]string{"/": "x"},
		},
		"hard links survive": {
			[][]entry{{file("a", "one"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "c", "/a")}, {file("a", "two"), file(".wh.c", "")}, {link(tar.TypeLink, "d", "b")}},
			map[string]string{"a": "two", "b": "one", "d": "one", "/": "a b d"},
		},
		"below a link to a folder": {
			[][]entry{{folder("usr/lib"), link(tar.TypeSymlink, "lib", "usr/lib")}, {file("lib/x", "x")}, {folder("lib/d"), link(tar.TypeLink, "h", "lib/x")}},
			map[string]string{"usr/lib/": "d x", "h": "x"},
		},
		"a link's way stays inside": {
			[][]entry{{link(tar.TypeSymlink, "out", "/../../..")}, {file("out/x", "x")}},
			map[string]string{"x": "x"},
		},
		"a folder for a file and back": {
			[][]entry{{file("a", ""), folder("b"), file("b/x", "")}, {folder("a"), file("a/x", "x"), file("b", "b")}},
			map[string]string{"a/x": "x", "b": "b"},
		},
		"a folder for a link": {
			[][]entry{{folder("d"), link(tar.TypeSymlink, "l", "d")}, {folder("l"), file("l/x", "x")}},
			map[string]string{"d/": "", "l/x": "x"},
		},
		"parents that nobody names": {[][]entry{{file("./a/b/c", "c")}}, map[string]string{"a/b/c": "c"}},
		"names from the root":       {[][]entry{{file("/etc/passwd", "p"), file("a/../b", "b")}}, map[string]string{"etc/passwd": "p", "b": "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			var layers []v1.Layer
			for _, l := range c.layers {
				layers = append(layers, layerOf(t, archive(t, l...)))
			}
			img, err := s.keep(t.Context(), imageOf(t, layers...))
			require.NoError(t, err)
			fs := rootfs(t, s, img)
			for path, want := range c.want {
				if strings.HasSuffix(path, "/") {
					require.Equal(t, want, names(t, fs, path), path)
				} else {
					require.Equal(t, want, content(t, fs, path), path)
				}
			}
		})
	}
}

// TestHostileLayers has an error for each, and nothing left behind.
func TestHostileLayers(t *testing.T) {
	loop := []entry{link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/x", "")}
	deep := []entry{file(strings.Repeat("d/", 70)+"x", "")}
	twice := []entry{link(tar.TypeSymlink, "l0", ".")}
	for i := range 20 {
		twice = append(twice, link(tar.TypeSymlink, fmt.Sprintf("l%d", i+1), strings.Repeat(fmt.Sprintf("l%d/", i), 100)))
	}
	twice = append(twice, file("l20/x", ""))
	cut := archive(t, file("a", strings.Repeat("x", 4096)))[:2048]
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"path":            {archive(t, file("../x", "")), `"../x": leads out of the image`},
		"path, inside":    {archive(t, file("a/../../x", "")), `"a/../../x": leads out of the image`},
		"hard link":       {archive(t, link(tar.TypeLink, "passwd", "../../etc/passwd")), `hard link to "../../etc/passwd": leads out of the image`},
		"hard link, gone": {archive(t, link(tar.TypeLink, "passwd", "/etc/passwd")), `hard link to "/etc/passwd": no such file`},
		"hard link, dir":  {archive(t, folder("d"), link(tar.TypeLink, "e", "d")), `hard link to "d": no such file`},
		"loop":            {archive(t, loop...), "too many symbolic links on the way"},
		"many links":      {archive(t, twice...), "too many symbolic links on the way"},
		"deep":            {archive(t, deep...), "below more than 64 directories"},
		"below a file":    {archive(t, file("a", ""), file("a/b", "")), `"a" is not a directory`},
		"cut":             {cut, "unexpected EOF"},
		"not tar":         {bytes.Repeat([]byte("no tar"), 1000), "invalid tar header"},
		"long name":       {archive(t, file(strings.Repeat("n", 300), "")), "a name of more than 255 bytes"},
		"attributes": {
			archive(t, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 5000)}}}),
			"extended attributes of more than 4096 bytes",
		},
		"a file at the root": {archive(t, file(".", "")), "the root is not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			img, err := s.keep(t.Context(), imageOf(t, layerOf(t, c.data)))
			require.NoError(t, err)
			_, err = s.Rootfs(t.Context(), img)
			require.ErrorContains(t, err, c.want)
			left, err := os.ReadDir(filepath.Join(s.dir, "rootfs"))
			require.NoError(t, err)
			require.Len(t, left, 1, "but for the lock")
		})
	}
}

// TestBomb refuses a layer that unpacks to very much more than it is.
func TestBomb(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 1<<10 + 1 {
		_, err := z.Write(zeros)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	dir := t.TempDir()
	path := filepath.Join(dir, "layer")
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o644))
	err := makeRootfs(t.Context(), []layer{{path: path}}, v1.Hash{}, filepath.Join(dir, "rootfs"))
	require.ErrorContains(t, err, "layer 1 of 1: unpacks to more than 200 times its size: not an honest layer")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

// TestDigest refuses a layer that unpacks to something else than the configuration says.
func TestDigest(t *testing.T) {
	s := store(t)
	img, err := s.keep(t.Context(), imageOf(t, layerOf(t, archive(t, file("a", "a")))))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(img.layers[0].path, archive(t, file("a", "b")), 0o644))
	_, err = s.Rootfs(t.Context(), img)
	require.ErrorContains(t, err, "as the image says")
}

// TestSparse keeps the data of a file in GNU tar's sparse format.
func TestSparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("in the middle"), 1<<20)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(3<<20))
	require.NoError(t, f.Close())
	for _, format := range []string{"gnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			tooltest.Run(t, "tar", "tar", "-C", dir, "--format="+format, "-Scf", filepath.Join(dir, "tar"), "sparse")
			data, err := os.ReadFile(filepath.Join(dir, "tar"))
			require.NoError(t, err)
			require.Less(t, len(data), 1<<20)
			s := store(t)
			img, err := s.keep(t.Context(), imageOf(t, layerOf(t, data)))
			require.NoError(t, err)
			want := make([]byte, 3<<20)
			copy(want[1<<20:], "in the middle")
			require.True(t, bytes.Equal(want, []byte(content(t, rootfs(t, s, img), "sparse"))))
		})
	}
}

// serve runs a registry whose handler is wrapped, and returns its address.
func serve(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	server := httptest.NewServer(wrap(registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(ref)
	require.NoError(t, err)
	require.NoError(t, remote.Write(r, img))
}

// TestPull gets an image by each kind of reference.
func TestPull(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler { return h })
	img := imageOf(t, layerOf(t, archive(t, file("a", "a"))), layerOf(t, archive(t, file("b", strings.Repeat("b", 100000)))))
	push(t, host+"/team/app:1", img)
	other, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "arm64"})
	require.NoError(t, err)
	push(t, host+"/team/arm", other)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	ref, err := name.ParseReference(host + "/team/multi")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(ref.(name.Tag), index))
	digest, err := img.Digest()
	require.NoError(t, err)

	s := store(t)
	for _, ref := range []string{"/team/app:1", "/team/multi", "/team/app@" + digest.String()} {
		var told sync.Map
		got, err := s.Pull(t.Context(), host+ref, func(digest string, done, total int64) { told.Store(digest, done == total) })
		require.NoError(t, err, ref)
		require.Equal(t, digest, got.Digest)
		require.Equal(t, "a", content(t, rootfs(t, s, got), "a"))
		found, err := s.Get(host + ref)
		require.NoError(t, err)
		require.Equal(t, got.ID, found.ID)
	}
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Len(t, list[0].Names, 3)
	got, err := s.Get(list[0].ID.Hex[:12])
	require.NoError(t, err)
	require.Equal(t, list[0].ID, got.ID)

	_, err = s.Pull(t.Context(), host+"/team/arm", nil)
	require.ErrorContains(t, err, "the image is for linux/arm64: what runs here is linux/amd64")
	_, err = s.Pull(t.Context(), host+"/team/none", nil)
	require.ErrorContains(t, err, "pull "+host+"/team/none: ")
	require.ErrorContains(t, err, "NAME_UNKNOWN")
}

// TestPullCut takes a blob up where its connection broke.
func TestPullCut(t *testing.T) {
	defer func(d time.Duration) { firstPause = d }(firstPause)
	firstPause = time.Millisecond
	random := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	var cuts, ranges atomic.Int32
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				h.ServeHTTP(w, r)
				return
			}
			from := 0
			if s := r.Header.Get("Range"); s != "" {
				ranges.Add(1)
				_, _ = fmt.Sscanf(s, "bytes=%d-", &from)
				r.Header.Del("Range")
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			whole := rec.Body.Bytes()
			body := whole[from:]
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(whole)-1, len(whole)))
				w.WriteHeader(http.StatusPartialContent)
			}
			const piece = 300_000
			_, _ = w.Write(body[:min(piece, len(body))])
			if len(body) > piece {
				cuts.Add(1)
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		})
	})
	img := imageOf(t, layerOf(t, archive(t, file("a", string(random)))))
	push(t, host+"/app", img)
	s := store(t)
	got, err := s.Pull(t.Context(), host+"/app", nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(random, []byte(content(t, rootfs(t, s, got), "a"))))
	require.EqualValues(t, 3, cuts.Load())
	require.EqualValues(t, 3, ranges.Load())
}

// TestPullForged refuses a layer that is not what its digest says.
func TestPullForged(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			body := rec.Body.Bytes()
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				body[len(body)/2] ^= 1
			}
			_, _ = w.Write(body)
		})
	})
	push(t, host+"/app", imageOf(t, layerOf(t, archive(t, file("a", "a")))))
	s := store(t)
	_, err := s.Pull(t.Context(), host+"/app", nil)
	require.ErrorContains(t, err, "sha256")
	list, err := s.List()
	require.NoError(t, err)
	require.Empty(t, list)
}

// TestLoad takes images from archives and folders.
func TestLoad(t *testing.T) {
	img := imageOf(t, layerOf(t, archive(t, file("a", "a"))))
	tag, err := name.NewTag("team/app:2")
	require.NoError(t, err)
	var docker bytes.Buffer
	require.NoError(t, tarball.Write(tag, img, &docker))
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	require.NoError(t, err)
	require.NoError(t, l.AppendImage(img, layout.WithAnnotations(map[string]string{RefName: "team/app:2"})))
	tooltest.Run(t, "tar", "tar", "-C", dir, "-czf", dir+".tgz", ".")
	oci, err := os.ReadFile(dir + ".tgz")
	require.NoError(t, err)
	for name, load := range map[string]func(s *Store) ([]*Image, error){
		"docker save": func(s *Store) ([]*Image, error) { return s.LoadArchive(t.Context(), &docker) },
		"layout":      func(s *Store) ([]*Image, error) { return s.LoadLayout(t.Context(), dir) },
		"layout, tar": func(s *Store) ([]*Image, error) { return s.LoadArchive(t.Context(), bytes.NewReader(oci)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			list, err := load(s)
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.Equal(t, []string{"index.docker.io/team/app:2"}, list[0].Names)
			got, err := s.Get("team/app:2")
			require.NoError(t, err)
			require.Equal(t, "a", content(t, rootfs(t, s, got), "a"))
		})
	}
	for name, data := range map[string]string{"empty": "", "text": strings.Repeat("text", 1000)} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			_, err := s.LoadArchive(t.Context(), strings.NewReader(data))
			require.Error(t, err)
			left, err := filepath.Glob(filepath.Join(s.dir, ".load-*"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestRemove takes away what nothing else needs.
func TestRemove(t *testing.T) {
	s := store(t)
	shared := layerOf(t, archive(t, file("a", "a")))
	one, err := s.keep(t.Context(), imageOf(t, shared), "index.docker.io/library/one:latest", "index.docker.io/library/uno:latest")
	require.NoError(t, err)
	two, err := s.keep(t.Context(), imageOf(t, shared, layerOf(t, archive(t, file("b", "b")))), "index.docker.io/library/two:latest")
	require.NoError(t, err)
	path, err := s.Rootfs(t.Context(), one)
	require.NoError(t, err)

	free := func(*Image) error { return nil }
	gone, err := s.Remove("uno", free)
	require.NoError(t, err)
	require.Equal(t, []string{"index.docker.io/library/uno:latest"}, gone)
	_, err = s.Remove("one", func(*Image) error { return os.ErrPermission })
	require.ErrorIs(t, err, os.ErrPermission)
	require.FileExists(t, path)
	gone, err = s.Remove("one", free)
	require.NoError(t, err)
	require.Equal(t, []string{"index.docker.io/library/one:latest", one.ID.String()}, gone)
	require.NoFileExists(t, path)
	require.Equal(t, "a", content(t, rootfs(t, s, two), "a"))
	_, err = s.Remove("one", free)
	require.EqualError(t, err, `no image "one" here`)
	_, err = s.Remove(two.ID.Hex[:10], free)
	require.NoError(t, err)
	left, err := filepath.Glob(filepath.Join(s.dir, "blobs", "*", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestTakenOver keeps an image whose name a newer one has.
func TestTakenOver(t *testing.T) {
	s := store(t)
	const full = "index.docker.io/library/app:latest"
	older, err := s.keep(t.Context(), imageOf(t, layerOf(t, archive(t, file("a", "1")))), full)
	require.NoError(t, err)
	newer, err := s.keep(t.Context(), imageOf(t, layerOf(t, archive(t, file("a", "2")))), full)
	require.NoError(t, err)
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, older.ID, list[0].ID)
	require.Empty(t, list[0].Names)
	got, err := s.Get("app")
	require.NoError(t, err)
	require.Equal(t, newer.ID, got.ID)
	_, err = s.keep(t.Context(), imageOf(t, layerOf(t, archive(t, file("a", "1")))), full)
	require.NoError(t, err)
	list, err = s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
}

// TestAtOnce has several processes' worth of users of one folder.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	img := imageOf(t, layerOf(t, archive(t, file("a", "a"))))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			s, err := Open(dir)
			if err == nil {
				var kept *Image
				if kept, err = s.keep(context.Background(), img, fmt.Sprintf("index.docker.io/library/app:%d", i)); err == nil {
					_, err = s.Rootfs(context.Background(), kept)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s, err := Open(dir)
	require.NoError(t, err)
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Len(t, list[0].Names, 8)
}

// TestPullWithCredentials takes them from the user's Docker configuration.
func TestPullWithCredentials(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	s := store(t)
	_, err := s.Pull(t.Context(), host+"/app", nil)
	require.ErrorContains(t, err, "401")
	// printf me:secret | base64
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{"`+host+`":{"auth":"bWU6c2VjcmV0"}}}`), 0o600))
	r, err := name.ParseReference(host + "/app")
	require.NoError(t, err)
	require.NoError(t, remote.Write(r, imageOf(t, layerOf(t, archive(t, file("a", "a")))), remote.WithAuthFromKeychain(authn.DefaultKeychain)))
	_, err = s.Pull(t.Context(), host+"/app", nil)
	require.NoError(t, err)
}

// nowhere takes what is written, and knows only how much that was.
type nowhere struct{ n int64 }

func (w *nowhere) WriteAt(p []byte, _ int64) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}

// noContents has zeros for every file.
type noContents struct{}

func (noContents) file(*tar.Reader, *tar.Header) (io.ReaderAt, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// FuzzLayers lays whatever somebody calls a layer over an honest one. What a tree accepts is a file system.
func FuzzLayers(f *testing.F) {
	lower := archive(f, folder("a"), file("a/x", "x"), link(tar.TypeSymlink, "l", "a"), link(tar.TypeLink, "h", "a/x"), folder("l2/b"))
	f.Add(archive(f, file("a/.wh.x", ""), file("l/y", "y"), link(tar.TypeLink, "h2", "l/../h"), file("a/.wh..wh..opq", "")))
	f.Add(archive(f, link(tar.TypeSymlink, "a", "../../.."), file("a/b", "")))
	f.Fuzz(func(t *testing.T, upper []byte) {
		tr := newTree()
		require.NoError(t, tr.add(tar.NewReader(bytes.NewReader(lower)), noContents{}))
		if tr.add(tar.NewReader(bytes.NewReader(upper)), noContents{}) != nil {
			return
		}
		size := int64(0)
		var sum func(n *ext4.Node, depth int)
		sum = func(n *ext4.Node, depth int) {
			if depth > maxDirs+1 {
				t.Fatal("deeper than allowed")
			}
			size += n.Size
			for _, c := range n.Children {
				sum(c, depth+1)
			}
		}
		sum(tr.root, 0)
		if size < 1<<20 { // others have no data that could be read here
			if err := ext4.Write(&nowhere{}, tr.root, ext4.Options{Size: 64 << 20}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAttributes keeps what a layer says of its files' owners, rights, devices, times and attributes.
func TestAttributes(t *testing.T) {
	s := store(t)
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	img, err := s.keep(t.Context(), imageOf(t, layerOf(t, archive(t,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "ping", Mode: 0o755, Uid: 1, Gid: 70000, ModTime: at, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "twenty bytes of caps", "SCHILY.xattr.com.apple.quarantine": "not for Linux",
		}}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "spool", Mode: 0o3770, Gid: 8}},
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 8, Devminor: 1}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711}},
	))))
	require.NoError(t, err)
	path, err := s.Rootfs(t.Context(), img)
	require.NoError(t, err)
	for name, want := range map[string][]string{
		"ping":  {"User:     1", "Group: 70000", "Mode:  0755", `security.capability (20) = "twenty bytes of caps"`, "2020"},
		"su":    {"Mode:  04755"},
		"spool": {"Mode:  03770", "Group:     8", "Type: directory"},
		"null":  {"Type: character special", "01:03"},
		"disk":  {"Type: block special", "08:01"},
		"pipe":  {"Type: FIFO"},
		"/":     {"Mode:  0711"},
	} {
		said := tooltest.Run(t, "e2fsprogs", "debugfs", "-R", "stat "+name, path)
		for _, words := range want {
			require.Contains(t, said, words, name)
		}
		require.NotContains(t, said, "apple")
	}
}
