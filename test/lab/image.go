package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// applets are the programs of the test image, all the same file.
var applets = strings.Fields("sh ls cat echo true false id hostname ps mount df wget ping httpd tar sleep env pwd stty tty touch ip kill wc head uname sync grep tr mkdir rm dd cksum seq reboot")

// BusyboxImage returns a container image with busybox in it, of two layers, and the first of these, which holds all but a few words,
// as a tar archive.
func BusyboxImage(ctx context.Context) (img v1.Image, layer []byte, err error) {
	path, err := Busybox(ctx)
	if err != nil {
		return nil, nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	file := func(name, data string, mode int64) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: mode}, data}
	}
	var lower []entry
	for _, dir := range []string{"bin/", "etc/", "home/user/", "usr/"} {
		lower = append(lower, entry{tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, ""})
	}
	lower = append(lower, entry{tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, ""}, file("bin/busybox", string(program), 0o755))
	for _, a := range applets {
		lower = append(lower, entry{tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + a, Linkname: "bin/busybox"}, ""})
	}
	lower = append(lower,
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", 0o644),
		file("etc/group", "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n", 0o644),
		file("old", "of the lower layer", 0o644))
	var layers []v1.Layer
	for i, entries := range [][]entry{lower, {file(".wh.old", "", 0), file("new", "of the upper layer\n", 0o644)}} {
		data, err := archive(entries)
		if err != nil {
			return nil, nil, err
		}
		if i == 0 {
			layer = data
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, l)
	}
	if img, err = mutate.AppendLayers(empty.Image, layers...); err != nil {
		return nil, nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "COLOUR=blue"}}
	img, err = mutate.ConfigFile(img, config)
	return img, layer, err
}

// entry is one of a tar archive, with what follows its header.
type entry struct {
	header tar.Header
	data   string
}

func archive(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.header); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
