package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
)

func TestNewest(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  string
	}{
		"by number, not by letter": {
			[]string{"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-47-cloud-amd64"},
			"linux-image-6.1.0-56-cloud-amd64",
		},
		"an unsigned one may be ahead": {
			[]string{"linux-image-6.12.111+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64-unsigned"},
			"linux-image-6.12.117+deb12-cloud-amd64-unsigned",
		},
		"signed, of two alike": {
			[]string{"linux-image-6.12.9+deb13-cloud-amd64-unsigned", "linux-image-6.12.9+deb13-cloud-amd64"},
			"linux-image-6.12.9+deb13-cloud-amd64",
		},
		"no other flavours": {
			[]string{"linux-image-6.1.0-56-amd64", "linux-image-6.1.0-56-cloud-amd64-dbg", "linux-image-6.1.0-56-cloud-arm64"},
			"",
		},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, newest(c.names)) })
	}
}

// bzImage makes the least image that has this payload, of the unpacked size given.
func bzImage(payload []byte, size int) []byte {
	image := make([]byte, 2*512, 2*512+len(payload)+4)
	image[setupSects] = 1
	copy(image[headerMagic:], "HdrS")
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)+4))
	image = append(image, payload...)
	return binary.LittleEndian.AppendUint32(image, uint32(size))
}

func compress(t *testing.T, w io.WriteCloser, b *bytes.Buffer, data []byte) []byte {
	t.Helper()
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestDecompress(t *testing.T) {
	kernel := bytes.Repeat([]byte("vmlinux "), 4096)
	for name, packer := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"lz4": func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w, err := packer(&b)
			require.NoError(t, err)
			payload := compress(t, w, &b, kernel)
			got, err := Decompress(bzImage(payload, len(kernel)))
			require.NoError(t, err)
			require.True(t, bytes.Equal(kernel, got))

			_, err = Decompress(bzImage(payload, len(kernel)+1))
			require.ErrorContains(t, err, "payload of 32768 bytes, not 32769 as it says")
		})
	}
}

func TestDecompressBad(t *testing.T) {
	beyond := bzImage([]byte("12345678"), 8)
	binary.LittleEndian.PutUint32(beyond[payloadOffset:], 1)
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":               {nil, "not a bzImage"},
		"other":               {make([]byte, 4096), "not a bzImage"},
		"beyond the image":    {beyond, "payload [0x401, 0x40d) in an image of 0x40c bytes"},
		"unknown compression": {bzImage([]byte("12345678"), 8), "payload: unknown compression (starts with 31 32 33 34)"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decompress(c.image)
			require.EqualError(t, err, c.want)
		})
	}
}

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"/x/kvm-amd.ko":          "kvm_amd",
		"/x/virtio_console.ko":   "virtio_console",
		"/x/virtio-rng.ko.xz":    "virtio_rng",
		"/x/modules.builtin":     "",
		"/x/modules.alias.ko.gz": "",
	} {
		name, isModule := moduleName(path)
		require.Equal(t, want != "", isModule, path)
		if isModule {
			require.Equal(t, want, name)
		}
	}
}

// TestInstall holds the cache to its word: one makes an entry, all get it, and a failure leaves nothing.
func TestInstall(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, _, err := install(context.Background(), "entry", func(_ *apt, dir string) error {
				made.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
			})
			if err != nil {
				t.Errorf("install: %v", err)
				return
			}
			got, err := os.ReadFile(filepath.Join(path, "file"))
			if err != nil || string(got) != "whole" {
				t.Errorf("entry holds %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, made.Load())
}

func TestInstallFails(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	full := errors.New("disk full")
	_, _, err := install(ctx, "entry", func(_ *apt, dir string) error {
		cancel() // so that it isn't tried with fresh lists
		return errors.Join(full, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	})
	require.ErrorIs(t, err, full)
	cache, err := CacheDir()
	require.NoError(t, err)
	left, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Len(t, left, 1, "only the lock stays")
	require.Equal(t, ".entry.lock", left[0].Name())
}
