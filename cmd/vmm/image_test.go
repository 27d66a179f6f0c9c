package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/tooltest"
)

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	return tooltest.Run(t, "qemu-utils", "qemu-img", args...)
}

// vmmImage runs "vmm image" with args, which must have the status; it returns what was printed.
func vmmImage(t *testing.T, status int, args ...string) (stdout, stderr string) {
	t.Helper()
	p := newTestProcess(t)
	got := p.run(append([]string{"image"}, args...))
	require.Equal(t, status, got, "vmm image %v: %s", args, p.stderr.String())
	return p.output(t), p.stderr.String()
}

// testContents is a raw file with data, zeroes and text.
func testContents(t *testing.T, path string, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		at := r.IntN(size - 40000)
		for i := range 1000 + r.IntN(30000) {
			data[at+i] = byte(r.Uint32())
		}
	}
	copy(data[size/2:], strings.Repeat("text ", 10000))
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return data
}

// TestImageConvert has qemu-img compare what was converted, each way.
func TestImageConvert(t *testing.T) {
	t.Chdir(t.TempDir())
	want := testContents(t, "raw", 9<<20)
	for _, options := range []string{"", "compat=0.10", "cluster_size=4k,refcount_bits=1", "lazy_refcounts=on,cluster_size=2M", "preallocation=metadata"} {
		args := []string{"convert", "-O", "qcow2", "raw", "new.qcow2"}
		if options != "" {
			args = append(args, "-o", options)
		}
		out, _ := vmmImage(t, statusOK, args...)
		require.Empty(t, out)
		qemuImg(t, "check", "new.qcow2")
		require.Contains(t, qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", "raw", "new.qcow2"), "identical")
		vmmImage(t, statusOK, "convert", "new.qcow2", "back")
		back, err := os.ReadFile("back")
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, back), options)
	}
	st, err := os.Stat("back")
	require.NoError(t, err)
	require.Less(t, describeJSON(t, "back").ActualSize, st.Size()/2, "holes stay holes")
	qemuImg(t, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "raw", "packed")
	vmmImage(t, statusOK, "convert", "-p", "packed", "-O", "qcow2", "unpacked")
	require.Contains(t, qemuImg(t, "compare", "raw", "unpacked"), "identical")
}

func describeJSON(t *testing.T, args ...string) (d imageDescription) {
	t.Helper()
	out, _ := vmmImage(t, statusOK, append([]string{"info", "-output", "json"}, args...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &d))
	return d
}

// TestImageInfo compares with what qemu-img says of the same images.
func TestImageInfo(t *testing.T) {
	t.Chdir(t.TempDir())
	testContents(t, "raw", 1<<20)
	qemuImg(t, "create", "-f", "qcow2", "-o", "compat=0.10", "v2", "3G")
	qemuImg(t, "create", "-f", "qcow2", "-o", "cluster_size=512,lazy_refcounts=on,refcount_bits=64,compression_type=zstd", "v3", "1000000")
	require.NoError(t, os.Mkdir("d", 0o700))
	qemuImg(t, "create", "-f", "qcow2", "-b", "../v3", "-F", "qcow2", "d/backed")
	qemuImg(t, "snapshot", "-c", "before", "d/backed")
	qemuImg(t, "snapshot", "-c", "after", "d/backed")
	for _, path := range []string{"raw", "v2", "v3", "d/backed"} {
		var want imageDescription
		require.NoError(t, json.Unmarshal([]byte(qemuImg(t, "info", "--output=json", path)), &want))
		require.Equal(t, want, describeJSON(t, path))
		// What people read: qemu-img's has more lines, such as the dates of snapshots.
		theirs := qemuImg(t, "info", path)
		ours, _ := vmmImage(t, statusOK, "info", path)
		for line := range strings.Lines(ours) {
			if !strings.Contains(line, "before") && !strings.Contains(line, "after") && !strings.HasPrefix(line, "ID ") {
				require.Contains(t, theirs, line)
			}
		}
	}
	ours, _ := vmmImage(t, statusOK, "info", "d/backed")
	require.Regexp(t, `Snapshot list:\nID +TAG\n1 +before\n2 +after\n`, ours)
}

func TestImageCreate(t *testing.T) {
	t.Chdir(t.TempDir())
	out, _ := vmmImage(t, statusOK, "create", "-f", "qcow2", "a", "20G")
	require.Equal(t, "Formatting 'a', fmt=qcow2 size=21474836480\n", out)
	qemuImg(t, "check", "a")
	require.Contains(t, qemuImg(t, "info", "a"), "virtual size: 20 GiB")
	out, _ = vmmImage(t, statusOK, "create", "-q", "raw", "1.5M")
	require.Empty(t, out)
	st, err := os.Stat("raw")
	require.NoError(t, err)
	require.EqualValues(t, 3<<19, st.Size())
	require.NoError(t, os.Mkdir("d", 0o700))
	out, _ = vmmImage(t, statusOK, "create", "-f", "qcow2", "-b", "../a", "d/b")
	require.Equal(t, "Formatting 'd/b', fmt=qcow2 size=21474836480 backing_file=../a backing_fmt=qcow2\n", out)
	require.Contains(t, qemuImg(t, "info", "--backing-chain", "d/b"), "d/../a")
	qemuImg(t, "check", "d/b")
}

func TestImageResize(t *testing.T) {
	t.Chdir(t.TempDir())
	vmmImage(t, statusOK, "create", "-f", "qcow2", "q", "10M")
	vmmImage(t, statusOK, "create", "r", "10M")
	for _, path := range []string{"q", "r"} {
		for _, tt := range []struct {
			args []string
			want int64
		}{{[]string{"+5M"}, 15 << 20}, {[]string{"20M"}, 20 << 20}, {[]string{"-shrink", "-8M"}, 12 << 20}, {[]string{"--shrink", "1M"}, 1 << 20}} {
			out, _ := vmmImage(t, statusOK, append([]string{"resize", path}, tt.args...)...)
			require.Equal(t, "Image resized.\n", out)
			require.Equal(t, tt.want, describeJSON(t, path).VirtualSize)
		}
	}
	qemuImg(t, "check", "q")
}

// TestImageCheck has the statuses of qemu-img, for images that it broke itself.
func TestImageCheck(t *testing.T) {
	t.Chdir(t.TempDir())
	testContents(t, "raw", 4<<20)
	qemuImg(t, "convert", "-O", "qcow2", "raw", "sound")
	out, _ := vmmImage(t, statusOK, "check", "sound")
	require.Equal(t, qemuImg(t, "check", "sound"), out)

	// The refcount of a cluster that nothing uses, and of one that is used. The 64 KiB clusters 1 and 2 are the refcounts' table and block.
	sound, err := os.ReadFile("sound")
	require.NoError(t, err)
	leak := append(bytes.Clone(sound), make([]byte, 16<<20-len(sound))...)
	leak[0x20000+2*200+1] = 1
	require.NoError(t, os.WriteFile("leak", leak, 0o600))
	corrupt := bytes.Clone(sound)
	corrupt[0x20000+2*6+1] = 0
	require.NoError(t, os.WriteFile("corrupt", corrupt, 0o600))
	for path, want := range map[string]int{"leak": statusLeaks, "corrupt": statusCorrupt, "raw": statusUncheckable} {
		_, theirs := tooltest.Status(t, "qemu-utils", "qemu-img", "check", path)
		require.Equal(t, want, theirs)
		vmmImage(t, want, "check", path)
		if path == "raw" {
			continue
		}
		out, _ := vmmImage(t, want, "check", "-output=json", path)
		output, _ := tooltest.Status(t, "qemu-utils", "qemu-img", "check", "--output=json", path)
		_, text, _ := strings.Cut(output, "{")
		var r, their imageCheckResult
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		require.NoError(t, json.Unmarshal([]byte("{"+text), &their))
		require.Equal(t, their, r)
		out, _ = vmmImage(t, statusOK, "check", "-r", "all", path)
		require.Contains(t, out, "Repaired: ")
		qemuImg(t, "check", path)
		require.Contains(t, qemuImg(t, "compare", path, "sound"), "identical")
	}
}

// TestImageMistakes: each gives one line, and leaves nothing behind.
func TestImageMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("raw", make([]byte, 1<<20), 0o600))
	vmmImage(t, statusOK, "create", "-f", "qcow2", "q", "1M")
	require.NoError(t, os.WriteFile("cut", []byte("QFI\xfb\x00\x00\x00\x03"), 0o600))
	before := list(t)
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"inof x", 2, `image inof: no such command (see "vmm image -help")`},
		{"info", 2, `image info: needs FILE (see "vmm image -help")`},
		{"info a b", 2, `image info: needs FILE (see "vmm image -help")`},
		{"info none", 1, "image info: none: no such file or directory"},
		{"info -f vmdk raw", 2, "image info: format vmdk: not raw or qcow2"},
		{"info -output yaml raw", 2, "image info: -output yaml: not human or json"},
		{"info -shrink raw", 2, `image info: -shrink: no such flag (see "vmm -help")`},
		{"info cut", 1, "image info: cut: "},
		{"create new", 2, "image create: needs a size (vmm image create -f raw new 20G)"},
		{"create new 20X", 2, "image create: 20X: not a size (use for example 512M or 20G)"},
		{"create -b q new", 2, "image create: a raw image has no backing file and no options (use -f qcow2)"},
		{"create -f qcow2 -b none new", 2, "image create: -b none: no such file or directory"},
		{"create -f qcow2 -o cluster_size=3k new 1G", 1, "image create: new: "},
		{"create -f qcow2 -o cluster_sise=4k new 1G", 2, "image create: -o cluster_sise=4k: \"cluster_sise\": no such setting"},
		{"create -f qcow2 -o lazy_refcounts=maybe new 1G", 2, `image create: -o lazy_refcounts=maybe: not a value for it (see "vmm image -help")`},
		{"create none/new 1G", 1, "image create: none/new: no such file or directory"},
		{"convert raw raw", 2, "image convert: raw: is both the old and the new file"},
		{"convert none new", 1, "image convert: none: no such file or directory"},
		{"convert cut new", 1, "image convert: cut: "},
		{"convert -o cluster_size=4k raw new", 2, "image convert: -o cluster_size=4k: a raw image has no options (use -O qcow2)"},
		{"check -r some q", 2, "image check: -r some: not leaks or all"},
		{"resize q 512K", 2, "image resize: 512K: the disk would become smaller, and what is behind its new end be lost (-shrink if that shall be)"},
		{"resize -shrink q -2M", 2, "image resize: -2M: the disk has 1048576 bytes"},
		{"resize q much", 2, "image resize: much: not a size (use for example 512M or 20G)"},
	} {
		stdout, stderr := vmmImage(t, tt.status, strings.Fields(tt.args)...)
		require.Empty(t, stdout, tt.args)
		require.True(t, strings.HasPrefix(stderr, "vmm: "+tt.want), "%s: %s", tt.args, stderr)
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		require.Equal(t, before, list(t), tt.args)
	}
	require.FileExists(t, filepath.Join(".", "raw"))
}

func TestImageHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"-help"}, {"info", "-help"}} {
		out, _ := vmmImage(t, statusOK, args...)
		require.Equal(t, imageHelp, out)
	}
}
