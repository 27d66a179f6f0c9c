package bootdisk

import (
	"cmp"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxEntries is how many entries of a boot loader are looked at.
const maxEntries = 256

// loaderEntry is an entry of the Boot Loader Specification's type 1: a file of "key value" lines.
type loaderEntry struct {
	id      string // the file's name without .conf, and without a count of tries
	failed  bool   // the count of tries has come to 0
	title   string
	version string
	machine string
	sortKey string
	linux   string
	initrds []string
	options []string
	efi     bool // it starts a program and no kernel
}

// parseLoaderEntry reads a file of that name.
func parseLoaderEntry(name, text string) loaderEntry {
	e := loaderEntry{id: strings.TrimSuffix(name, ".conf")}
	// "+LEFT-DONE" at the end of the name counts tries.
	if base, count, found := cutLast(e.id, "+"); found {
		left, _, _ := strings.Cut(count, "-")
		if n, err := strconv.Atoi(left); err == nil {
			e.id, e.failed = base, n == 0
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.IndexAny(line, " \t")
		if i < 0 || line[0] == '#' {
			continue
		}
		key, value := line[:i], strings.TrimSpace(line[i:])
		switch key {
		case "title":
			e.title = value
		case "version":
			e.version = value
		case "machine-id":
			e.machine = value
		case "sort-key":
			e.sortKey = value
		case "linux":
			e.linux = value
		case "initrd":
			e.initrds = append(e.initrds, strings.Fields(value)...)
		case "options":
			e.options = append(e.options, value)
		case "efi":
			e.efi = true
		}
	}
	return e
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// before orders entries as a menu shows them, the default first (Boot Loader Specification, "Sorting").
func before(a, b loaderEntry) int {
	if a.failed != b.failed {
		if a.failed {
			return 1
		}
		return -1
	}
	if (a.sortKey != "") != (b.sortKey != "") {
		if a.sortKey != "" {
			return -1
		}
		return 1
	}
	if a.sortKey != "" {
		if c := cmp.Or(strings.Compare(a.sortKey, b.sortKey), strings.Compare(a.machine, b.machine), -compareVersions(a.version, b.version)); c != 0 {
			return c
		}
	}
	return -compareVersions(a.id, b.id)
}

// readLoaderEntries reads all entries of a volume below dir, sorted; none where there is no such folder.
func readLoaderEntries(v *volume, dir string) ([]loaderEntry, error) {
	names, err := v.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var entries []loaderEntry
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") || len(entries) == maxEntries {
			continue
		}
		text, err := v.read(dir + "/" + name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, parseLoaderEntry(name, text))
	}
	slices.SortStableFunc(entries, before)
	return entries, nil
}

// choose makes a choice of an entry. Variables in its options are those of GRUB's environment.
func (e loaderEntry) choose(v *volume, source string, variables map[string]string) *choice {
	c := &choice{title: cmp.Or(e.title, e.id), source: source, kernel: file{v, e.linux}}
	for _, name := range e.initrds {
		c.initrds = append(c.initrds, file{v, expandPlain(name, variables)})
	}
	c.initrds = slices.DeleteFunc(c.initrds, func(f file) bool { return f.path == "" })
	c.commandLine = strings.Join(strings.Fields(expandPlain(strings.Join(e.options, " "), variables)), " ")
	return c
}

// expandPlain replaces $name by the variables' values.
func expandPlain(s string, variables map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		n := 0
		for n < len(s) && (isLetter(s[n]) || isDigit(s[n]) || s[n] == '_') {
			n++
		}
		b.WriteString(variables[s[:n]])
		s = s[n:]
	}
}

// loaderEntries looks for entries of the Boot Loader Specification, and unified kernel images.
func (f *finder) loaderEntries(v *volume) (*choice, error) {
	for _, root := range []string{"", "/boot"} {
		entries, err := readLoaderEntries(v, root+"/loader/entries")
		if err != nil {
			return nil, err
		}
		entries = slices.DeleteFunc(entries, func(e loaderEntry) bool { return e.linux == "" || e.efi })
		unified, err := f.unified(v, root)
		if err != nil {
			return nil, err
		}
		preferred := loaderDefault(v, root)
		for _, e := range entries {
			if preferred == "" || match(preferred, e.id) {
				return e.choose(v, fmt.Sprintf("%s/loader/entries/%s.conf of %s", root, e.id, v), nil), nil
			}
		}
		for _, c := range unified {
			if preferred == "" || match(preferred, c.title) {
				return c, nil
			}
		}
		// The default is gone: the first of the menu.
		if len(entries) > 0 {
			return entries[0].choose(v, fmt.Sprintf("%s/loader/entries/%s.conf of %s", root, entries[0].id, v), nil), nil
		}
		if len(unified) > 0 {
			return unified[0], nil
		}
	}
	return nil, nil
}

// loaderDefault is the pattern of systemd-boot's default entry, from loader.conf, without .conf; empty for none.
func loaderDefault(v *volume, root string) string {
	text, err := v.read(root + "/loader/loader.conf")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == "default" && !strings.HasPrefix(value, "@") {
			return strings.TrimSuffix(strings.TrimSpace(value), ".conf")
		}
	}
	return ""
}

// match tells whether name is one that the pattern stands for. A pattern that makes no sense matches nothing.
func match(pattern, name string) bool {
	is, err := path.Match(pattern, name)
	return is && err == nil
}

// unified are the unified kernel images of a volume, the newest first: programs for UEFI with the kernel, the initial RAM
// disk and the command line in their sections (https://uapi-group.org/specifications/specs/unified_kernel_image/).
func (f *finder) unified(v *volume, root string) ([]*choice, error) {
	dir := root + "/EFI/Linux"
	names, err := v.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(strings.ToLower(name), ".efi") })
	slices.SortStableFunc(names, func(a, b string) int { return -compareVersions(a, b) })
	var out []*choice
	for _, name := range names[:min(len(names), maxEntries)] {
		i, err := v.fs.Open(dir + "/" + name)
		if err != nil {
			return nil, err
		}
		b, err := openUnified(i)
		if err != nil {
			v.notes = append(v.notes, fmt.Sprintf("%s/%s: %v", dir, name, err))
			continue
		}
		out = append(out, &choice{title: name, source: fmt.Sprintf("%s/%s of %s", dir, name, v), images: b})
	}
	return out, nil
}

func openUnified(i Image) (*Boot, error) {
	p, err := pe.NewFile(io.NewSectionReader(i, 0, i.Size()))
	if err != nil {
		return nil, err
	}
	section := func(name string, limit uint32) (Image, error) {
		s := p.Section(name)
		if s == nil {
			return nil, nil
		}
		n := s.VirtualSize // without the padding
		if n == 0 || n > s.Size {
			n = s.Size
		}
		if n > limit || int64(s.Offset)+int64(n) > i.Size() {
			return nil, fmt.Errorf("section %s of %d bytes at %d", name, n, s.Offset)
		}
		return io.NewSectionReader(i, int64(s.Offset), int64(n)), nil
	}
	b := &Boot{}
	if b.Kernel, err = section(".linux", maxKernel); err != nil {
		return nil, err
	}
	if b.Kernel == nil {
		return nil, errors.New("no kernel inside")
	}
	if b.Initrd, err = section(".initrd", maxInitrd); err != nil {
		return nil, err
	}
	cmdline, err := section(".cmdline", maxConfig)
	if err != nil || cmdline == nil {
		return b, err
	}
	text := make([]byte, cmdline.Size())
	if _, err := cmdline.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	b.CommandLine = strings.TrimRight(string(text), "\x00\n ")
	return b, nil
}

// syslinux looks for SYSLINUX's configuration, as Alpine's images have it.
func (f *finder) syslinux(v *volume) (*choice, error) {
	for _, dir := range []string{"/boot/extlinux", "/boot", "/extlinux", "", "/boot/syslinux", "/syslinux"} {
		for _, name := range []string{"extlinux.conf", "syslinux.cfg"} {
			text, err := v.read(dir + "/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			c, err := parseSyslinux(v, dir, text)
			if err != nil {
				return nil, fmt.Errorf("%s/%s: %w", dir, name, err)
			}
			c.source = fmt.Sprintf("%s/%s of %s", dir, name, v)
			return c, nil
		}
	}
	return nil, nil
}

// parseSyslinux finds the default entry.
func parseSyslinux(v *volume, dir, text string) (*choice, error) {
	type label struct {
		name, title, kernel, commandLine string
		initrds                          []string
	}
	var labels []label
	preferred := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		key = strings.ToLower(key)
		if key == "default" {
			preferred = value
		}
		if key == "label" && len(labels) < maxEntries {
			labels = append(labels, label{name: value, title: value})
		}
		if len(labels) == 0 {
			continue
		}
		l := &labels[len(labels)-1]
		switch key {
		case "kernel", "linux":
			l.kernel = value
		case "initrd":
			l.initrds = strings.Split(value, ",")
		case "append":
			l.commandLine = value
		case "menu":
			if word, rest, _ := strings.Cut(value, " "); strings.EqualFold(word, "default") {
				preferred = l.name
			} else if strings.EqualFold(word, "label") {
				l.title = strings.ReplaceAll(strings.TrimSpace(rest), "^", "")
			}
		}
	}
	if len(labels) == 0 {
		return nil, errors.New("no entry")
	}
	at := slices.IndexFunc(labels, func(l label) bool { return l.name == preferred })
	l := labels[max(at, 0)]
	if l.kernel == "" {
		return nil, fmt.Errorf("entry %q has no kernel", l.name)
	}
	full := func(p string) string {
		if strings.HasPrefix(p, "/") {
			return p
		}
		return dir + "/" + p
	}
	c := &choice{title: l.title, kernel: file{v, full(l.kernel)}}
	var words []string
	for _, word := range strings.Fields(l.commandLine) {
		if list, is := strings.CutPrefix(word, "initrd="); is { // the old way
			l.initrds = strings.Split(list, ",")
			continue
		}
		words = append(words, word)
	}
	for _, p := range l.initrds {
		c.initrds = append(c.initrds, file{v, full(p)})
	}
	c.commandLine = strings.Join(words, " ")
	return c, nil
}

// newest looks for the newest kernel by its name, for a disk without a boot loader's configuration.
func (f *finder) newest(v *volume) (*choice, error) {
	for _, dir := range []string{"/boot", ""} {
		names, err := v.fs.ReadDir(dir + "/")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		versions := []string{}
		for _, name := range names {
			if version, is := strings.CutPrefix(name, "vmlinuz-"); is && !strings.Contains(version, "rescue") {
				versions = append(versions, version)
			}
		}
		if len(versions) == 0 {
			continue
		}
		version := slices.MaxFunc(versions, func(a, b string) int {
			// A kernel's release candidate is marked by a hyphen, which for others comes after the release.
			return compareVersions(strings.Replace(a, "-rc", "~rc", 1), strings.Replace(b, "-rc", "~rc", 1))
		})
		c := &choice{
			title: "Linux " + version, kernel: file{v, dir + "/vmlinuz-" + version},
			source:      fmt.Sprintf("%s/vmlinuz-%s of %s, without a boot loader's configuration", dir, version, v),
			commandLine: "root=" + v.rootName() + " ro",
		}
		for _, initrd := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version, "initramfs-" + version} {
			if slices.Contains(names, initrd) {
				c.initrds = []file{{v, dir + "/" + initrd}}
				break
			}
		}
		if dir == "" {
			// The kernels are on a file system of their own; the root is on another one.
			root := slices.IndexFunc(f.volumes, func(other *volume) bool { return other != v && other.kind == "ext4" })
			if root < 0 {
				return nil, fmt.Errorf("/vmlinuz-%s, and no file system for the root", version)
			}
			c.commandLine = "root=" + f.volumes[root].rootName() + " ro"
		}
		return c, nil
	}
	return nil, nil
}

// rootName is the volume for the kernel's root=, in the form that it understands without an initial RAM disk.
func (v *volume) rootName() string {
	if v.uuid != "" {
		return "PARTUUID=" + v.uuid
	}
	return "/dev/vda"
}
