package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"vmm/container/ext4"
)

// Limits of what an image may hold. They are far beyond what images do hold, and keep those that were made to harm from
// taking the host's memory and disk.
const (
	maxFiles     = 1 << 20
	maxDirs      = 64       // on the way to a file
	maxFollow    = 40       // symbolic links on one path, as in Linux
	maxName      = 255      // bytes
	maxTarget    = 4095     // bytes of a symbolic link
	maxXattrs    = 4096     // bytes of a file's names and values
	maxUnpacked  = 64 << 30 // bytes of all layers
	bombRatio    = 200      // of a layer's unpacked bytes to its own,
	bombUnpacked = 1 << 30  // where it unpacks to more bytes than these
)

// Whiteouts are names of files that stand for the absence of others (OCI Image Format Specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
	metadataPrefix = ".wh..wh." // of AUFS itself, whose format it was
)

// tree is a file system while layers are laid over each other.
type tree struct {
	root  *ext4.Node
	files int
	layer int
	// seen tells the last layer with a word on a node: whiteouts are for those of the layers below.
	seen map[*ext4.Node]int
}

func newTree() *tree {
	root := newDir()
	return &tree{root: root, seen: map[*ext4.Node]int{root: 0}}
}

func newDir() *ext4.Node {
	return &ext4.Node{Mode: modeDir | 0o755, Children: map[string]*ext4.Node{}}
}

// File types in a mode, as stat(2) has them.
const (
	modeFIFO  = 0x1000
	modeChar  = 0x2000
	modeDir   = 0x4000
	modeBlock = 0x6000
	modeFile  = 0x8000
	modeLink  = 0xa000
	modeType  = 0xf000
)

func isLink(n *ext4.Node) bool { return n.Mode&modeType == modeLink }

// contents are those of a layer's files.
type contents interface {
	// file is what r has for the entry that it has just read.
	file(r *tar.Reader, h *tar.Header) (io.ReaderAt, error)
}

// add lays a layer over those that are there.
func (t *tree) add(r *tar.Reader, data contents) error {
	t.layer++
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.entry(r, h, data); err != nil {
			return fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
}

var errOutside = errors.New("leads out of the image")

// clean makes a path relative to the root, and refuses one that leads out of it.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("a zero byte in a name")
	}
	name = path.Clean(strings.TrimLeft(name, "/"))
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", errOutside
	}
	if strings.Count(name, "/") >= maxDirs {
		return "", fmt.Errorf("below more than %d directories", maxDirs)
	}
	return name, nil
}

func (t *tree) entry(r *tar.Reader, h *tar.Header, data contents) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is not a directory")
		}
		return describe(t.root, h)
	}
	dir, err := t.dir(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if len(base) > maxName {
		return errors.New("a name of more than 255 bytes")
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		switch {
		case base == opaqueWhiteout:
			t.hideBelow(dir)
		case !strings.HasPrefix(base, metadataPrefix):
			t.hide(dir, hidden)
		}
		return nil
	}
	old := dir.Children[base]
	var n *ext4.Node
	switch h.Typeflag {
	case tar.TypeLink:
		if n, err = t.linked(h.Linkname); err != nil {
			return err
		}
		t.seen[n] = t.layer
		dir.Children[base] = n
		return nil
	case tar.TypeDir:
		if n = newDir(); old != nil && old.IsDir() {
			n = old
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		n = &ext4.Node{Mode: modeFile, Size: h.Size}
		if n.Data, err = data.file(r, h); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget {
			return fmt.Errorf("a symbolic link to a path of %d bytes", len(h.Linkname))
		}
		n = &ext4.Node{Mode: modeLink, Target: h.Linkname}
	case tar.TypeChar, tar.TypeBlock:
		n = &ext4.Node{Mode: modeChar, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
		if h.Typeflag == tar.TypeBlock {
			n.Mode = modeBlock
		}
	case tar.TypeFifo:
		n = &ext4.Node{Mode: modeFIFO}
	default:
		return fmt.Errorf("an entry of the unknown type %q", h.Typeflag)
	}
	if err := describe(n, h); err != nil {
		return err
	}
	if n != old {
		if err := t.count(); err != nil {
			return err
		}
	}
	t.seen[n] = t.layer
	dir.Children[base] = n
	return nil
}

func (t *tree) count() error {
	if t.files++; t.files > maxFiles {
		return fmt.Errorf("more than %d files", maxFiles)
	}
	return nil
}

// describe gives the node what an entry says of its owner, rights and attributes.
func describe(n *ext4.Node, h *tar.Header) error {
	if h.Uid < 0 || h.Uid > 1<<32-1 || h.Gid < 0 || h.Gid > 1<<32-1 {
		return fmt.Errorf("the owner %d:%d", h.Uid, h.Gid)
	}
	n.Mode = n.Mode&modeType | uint16(h.Mode&0o7777)
	n.UID, n.GID, n.Modified = uint32(h.Uid), uint32(h.Gid), h.ModTime
	n.Xattrs = nil
	size := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		// Others than these no Linux would take: an image that was made elsewhere has them.
		if ok && slices.ContainsFunc([]string{"user.", "trusted.", "security.", "system.posix_acl_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			if n.Xattrs == nil {
				n.Xattrs = map[string][]byte{}
			}
			n.Xattrs[name] = []byte(value)
			if size += len(name) + len(value); size > maxXattrs {
				return fmt.Errorf("extended attributes of more than %d bytes", maxXattrs)
			}
		}
	}
	return nil
}

// dir returns the directory at a clean path, and makes what is missing of it. Symbolic links lead on inside the tree, as they
// would for a process whose root it is.
func (t *tree) dir(name string) (*ext4.Node, error) {
	todo := strings.Split(name, "/")
	way := []*ext4.Node{t.root} // from the root to where we are
	for links := 0; len(todo) > 0; {
		word := todo[0]
		todo = todo[1:]
		here := way[len(way)-1]
		t.seen[here] = t.layer
		switch word {
		case "", ".":
			continue
		case "..":
			way = way[:max(len(way)-1, 1)]
			continue
		}
		next := here.Children[word]
		switch {
		case next == nil:
			next = newDir()
			if err := t.count(); err != nil {
				return nil, err
			}
			here.Children[word] = next
		case isLink(next):
			if links++; links > maxFollow || len(todo) > 1000 {
				return nil, errors.New("too many symbolic links on the way")
			}
			if strings.HasPrefix(next.Target, "/") {
				way = way[:1]
			}
			todo = append(strings.Split(next.Target, "/"), todo...)
			continue
		case !next.IsDir():
			return nil, fmt.Errorf("%q is not a directory", word)
		}
		if way = append(way, next); len(way) > maxDirs+1 {
			return nil, fmt.Errorf("below more than %d directories", maxDirs)
		}
	}
	here := way[len(way)-1]
	t.seen[here] = t.layer
	return here, nil
}

// linked returns what a hard link leads to.
func (t *tree) linked(name string) (*ext4.Node, error) {
	to, err := clean(name)
	if err != nil {
		return nil, fmt.Errorf("hard link to %.300q: %w", name, err)
	}
	dir, err := t.dir(path.Dir(to))
	if err != nil {
		return nil, fmt.Errorf("hard link to %.300q: %w", name, err)
	}
	n := dir.Children[path.Base(to)]
	if n == nil || n.IsDir() {
		return nil, fmt.Errorf("hard link to %.300q: no such file", name)
	}
	return n, nil
}

// hide takes away what lower layers have below the name.
func (t *tree) hide(dir *ext4.Node, name string) {
	switch n := dir.Children[name]; {
	case n == nil:
	case t.seen[n] < t.layer:
		delete(dir.Children, name)
	case n.IsDir():
		t.hideBelow(n)
	}
}

func (t *tree) hideBelow(dir *ext4.Node) {
	for _, name := range slices.Collect(maps.Keys(dir.Children)) {
		t.hide(dir, name)
	}
}
