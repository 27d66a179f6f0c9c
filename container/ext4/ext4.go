// Package ext4 makes ext4 file systems out of trees of files that are held in memory, the files' data excepted (Linux
// Documentation/filesystems/ext4). They can be written to: there is a journal, and as much room as was asked for, which takes
// none on a host whose files can have holes.
//
// The same tree gives the same bytes. All metadata is at the front, the files' data behind it in the order of their names.
//
// # Deviations
//
//   - No copies of the superblock, no checksums of metadata, no blocks kept for root: the file systems are made anew from
//     where they came when they are lost.
//   - No indexes of large directories: a kernel makes them of those that grow.
package ext4

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Node is a file of any kind. One that is found below several names has as many hard links.
type Node struct {
	Mode         uint16 // type and permissions, as in stat(2)
	UID, GID     uint32
	Modified     time.Time
	Major, Minor uint32            // of a device
	Target       string            // of a symbolic link
	Xattrs       map[string][]byte // by their full names
	Data         io.ReaderAt       // of a regular file; nil if Size is 0
	Size         int64             // bytes of it
	Children     map[string]*Node  // of a directory

	number uint32
	links  int
}

// IsDir tells whether the node is a directory.
func (n *Node) IsDir() bool { return n.Mode&typeMask == typeDir }

// Options say what a file system is like.
type Options struct {
	Size int64 // bytes, which are rounded down to blocks of 4096
	UUID [16]byte
}

// Write makes a file system with the tree below root in w, which reads as zeros so far and need not be written whole. Its
// errors are those of w and of the files' data, and what cannot be expressed in ext4 or has no room.
//
// While it runs the nodes are the package's; afterwards the tree can be written again.
func Write(w io.WriterAt, root *Node, o Options) error {
	if !root.IsDir() {
		return errors.New("the root is not a directory")
	}
	b := &builder{w: w, options: o}
	if err := b.number(root); err != nil {
		return err
	}
	if err := b.plan(); err != nil {
		return err
	}
	return b.write()
}

// number gives each node its inode, breadth first, and checks what can be checked without its data.
func (b *builder) number(root *Node) error {
	if err := check("/", root); err != nil {
		return err
	}
	seen := map[*Node]bool{root: true}
	root.number, root.links = rootInode, 2 // its name is its own
	b.nodes = []*Node{root}
	b.parents = []*Node{root}
	for i := 0; i < len(b.nodes); i++ {
		dir := b.nodes[i]
		for _, name := range slices.Sorted(maps.Keys(dir.Children)) {
			n := dir.Children[name]
			if name == "" || name == "." || name == ".." || len(name) > maxNameLength || strings.ContainsAny(name, "/\x00") {
				return fmt.Errorf("%.300q is no name of a file", name)
			}
			switch {
			case !seen[n]:
				if err := check(name, n); err != nil {
					return err
				}
				seen[n] = true
				n.number, n.links = firstInode+uint32(len(b.nodes)-1), 0
				b.nodes = append(b.nodes, n)
				b.parents = append(b.parents, dir)
				if n.IsDir() {
					n.links = 1
					dir.links++
				}
			case n.IsDir():
				return fmt.Errorf("%q: a directory with two names", name)
			}
			if n.links++; n.links > maxLinks && !n.IsDir() {
				return fmt.Errorf("%q: more than %d links", name, maxLinks)
			}
		}
	}
	return nil
}

// check tells what is wrong with the node.
func check(name string, n *Node) error {
	switch n.Mode & typeMask {
	case typeDir, typeFIFO, typeSocket, typeChar, typeBlock:
	case typeFile:
		if n.Size < 0 || n.Size > maxFileBlocks*blockSize {
			return fmt.Errorf("%q: a file of %d bytes", name, n.Size)
		}
	case typeLink:
		if n.Target == "" || len(n.Target) > maxLinkLength {
			return fmt.Errorf("%q: a symbolic link to a path of %d bytes", name, len(n.Target))
		}
	default:
		return fmt.Errorf("%q: no type of file has the mode %#o", name, n.Mode)
	}
	return nil
}
