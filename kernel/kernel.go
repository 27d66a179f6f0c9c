package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Default is, as a series, the kernel that Debian's release gives to clouds: the one that linux-image-cloud-amd64
// depends on.
const Default = "default"

// Kernel is a kernel that guests can run.
type Kernel struct {
	Release string // as uname -r says it, if that is known
	Image   string // the bzImage
	ELF     string // the vmlinux that was in it, or is all there is; may be empty
	Modules string // the folder lib/modules/RELEASE; empty for none
	Fetched bool   // whether it had to be fetched now
}

// Cloud returns the newest cloud kernel of the series, say "6.1", or that of [Default], from the cache if it holds one
// and else from apt's sources.
func Cloud(ctx context.Context, series string) (*Kernel, error) {
	if series == Default {
		var err error
		if series, err = defaultSeries(ctx); err != nil {
			return nil, fmt.Errorf("find Debian's default cloud kernel: %w", err)
		}
	}
	dir, fetched, err := install(ctx, "linux-"+series, func(a *apt, dir string) error {
		prefix := "linux-image-" + series + "."
		names, err := a.search(ctx, prefix)
		if err != nil {
			return err
		}
		name := newest(names)
		if name == "" {
			return fmt.Errorf("%s*-cloud-amd64: %w", prefix, errNoPackage)
		}
		tree := filepath.Join(dir, "tree")
		if err := a.unpack(ctx, name, tree); err != nil {
			return err
		}
		return arrange(tree, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("get Debian's cloud kernel, series %s: %w", series, err)
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	k := inCache(dir, string(release))
	k.Fetched = fetched
	return k, nil
}

// inCache is the kernel in a folder of the cache.
func inCache(dir, release string) *Kernel {
	return &Kernel{
		Release: strings.TrimSpace(release),
		Image:   filepath.Join(dir, "vmlinuz"),
		ELF:     filepath.Join(dir, "vmlinux"),
		Modules: filepath.Join(dir, "modules"),
	}
}

// defaultSeries returns the series of the kernel that linux-image-cloud-amd64 depends on.
func defaultSeries(ctx context.Context) (string, error) {
	dir, _, err := install(ctx, "linux-"+Default, func(a *apt, dir string) error {
		names, err := a.depends(ctx, "linux-image-cloud-amd64")
		if err != nil {
			return err
		}
		m := cloudPackage.FindStringSubmatch(newest(names))
		if m == nil {
			return fmt.Errorf("linux-image-cloud-amd64: %w", errNoPackage)
		}
		version := strings.SplitN(m[1], ".", 3)
		return os.WriteFile(filepath.Join(dir, "series"), []byte(strings.Join(version[:min(2, len(version))], ".")), 0o644)
	})
	if err != nil {
		return "", err
	}
	series, err := os.ReadFile(filepath.Join(dir, "series"))
	return string(series), err
}

// cloudPackage matches the packages of cloud kernels; the first group is the release. The unsigned ones hold the same
// kernel, and come out earlier.
var cloudPackage = regexp.MustCompile(`^linux-image-([0-9][0-9.]*(?:-[0-9]+)?(?:\+deb[0-9]+)?)-cloud-amd64(?:-unsigned)?$`)

// newest returns the name with the highest release, the signed one of two alike, or "" if none is a cloud kernel's.
func newest(names []string) string {
	var best, bestRelease string
	for _, name := range names {
		m := cloudPackage.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		c := compareReleases(m[1], bestRelease)
		if best == "" || c > 0 || c == 0 && len(name) < len(best) {
			best, bestRelease = name, m[1]
		}
	}
	return best
}

var number = regexp.MustCompile(`[0-9]+`)

// compareReleases compares by the numbers in the releases.
func compareReleases(a, b string) int {
	parse := func(s string) []int {
		var ns []int
		for _, digits := range number.FindAllString(s, -1) {
			n, _ := strconv.Atoi(digits) // only digits; one that overflows is the largest int
			ns = append(ns, n)
		}
		return ns
	}
	return slices.Compare(parse(a), parse(b))
}

// arrange takes the kernel and the modules out of the package's tree, under names that hold no version, unpacks the
// vmlinux, and removes the tree.
func arrange(tree, dir string) error {
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("%d kernels in the package, not 1", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	modules := ""
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} { // since Debian 13 it is below /usr
		if path := filepath.Join(tree, lib, release); exists(path) {
			modules = path
		}
	}
	if modules == "" {
		return fmt.Errorf("no modules of %s in the package", release)
	}
	for from, to := range map[string]string{images[0]: "vmlinuz", modules: "modules"} {
		if err := os.Rename(from, filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	image, err := os.ReadFile(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		return err
	}
	elf, err := Decompress(image)
	if err != nil {
		return fmt.Errorf("vmlinuz-%s: %w", release, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), elf, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "release"), []byte(release+"\n"), 0o644)
}
