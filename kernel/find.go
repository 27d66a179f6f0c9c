package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// versionOffset is where the setup header says where the kernel's version is, less 0x200 (Linux
// Documentation/arch/x86/boot.rst, kernel_version).
const versionOffset = 0x20e

// Open describes the kernel at path, a bzImage or a vmlinux. Its modules are those in the folder modules beside it, or else the
// host's of the same release; a kernel without either has to have all that is needed built in.
func Open(path string) (*Kernel, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	k := &Kernel{Image: path}
	if beside := filepath.Join(filepath.Dir(path), "modules"); exists(beside) {
		k.Modules = beside
	}
	var head [1024]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[headerMagic:headerMagic+4]) != "HdrS" {
		k.Image, k.ELF = "", path // of whatever kind: machine says what is wrong with it
		return k, nil
	}
	var version [128]byte
	n, _ := f.ReadAt(version[:], int64(binary.LittleEndian.Uint16(head[versionOffset:]))+0x200)
	k.Release, _, _ = strings.Cut(string(version[:n]), " ")
	if modules := filepath.Join("/lib/modules", k.Release); k.Modules == "" && k.Release != "" && !strings.Contains(k.Release, "/") && exists(modules) {
		k.Modules = modules
	}
	return k, nil
}

// NotFoundError says that there is no kernel that has what is needed, and which ones lack what.
type NotFoundError struct{ Unfit []string }

func (e *NotFoundError) Error() string {
	if len(e.Unfit) == 0 {
		return "no kernel here for guests"
	}
	return "no kernel here for guests (" + strings.Join(e.Unfit, "; ") + ")"
}

// Find finds the newest kernel that lacks nothing of what is needed: among those that were fetched or built, else in /boot.
func Find(lacks func(*Kernel) []string) (*Kernel, error) {
	fetched, err := Fetched()
	if err != nil {
		return nil, err
	}
	var unfit []string
	for _, k := range append(fetched, installed(bootDir)...) {
		if l := lacks(k); len(l) > 0 {
			unfit = append(unfit, fmt.Sprintf("%s lacks %s", cmp.Or(k.Image, k.ELF), strings.Join(l, ", ")))
			continue
		}
		return k, nil
	}
	return nil, &NotFoundError{unfit}
}

// bootDir is where the host keeps its kernels, but for tests.
var bootDir = "/boot"

// Fetched returns the kernels in the cache: those that were built for guests, and then those of packages, the newest first.
func Fetched() ([]*Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(cache, "linux-*", "release"))
	if err != nil {
		return nil, err
	}
	var list []*Kernel
	for _, path := range found {
		release, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		list = append(list, inCache(filepath.Dir(path), string(release)))
	}
	newestFirst(list)
	return list, nil
}

// installed returns the kernels of a system that this user may read and that have their modules there.
func installed(boot string) []*Kernel {
	found, _ := filepath.Glob(filepath.Join(boot, "vmlinuz-*"))
	var list []*Kernel
	for _, path := range found {
		if k, err := Open(path); err == nil && k.Modules != "" {
			list = append(list, k)
		}
	}
	newestFirst(list)
	return list
}

// ownSuffix ends the releases of kernels that scripts/build-kernel builds (CONFIG_LOCALVERSION in guest/kernel.config).
const ownSuffix = "-vmm"

// Own tells whether the kernel was built for guests, with all that they need built in.
func (k *Kernel) Own() bool { return strings.HasSuffix(k.Release, ownSuffix) }

func newestFirst(list []*Kernel) {
	own := func(k *Kernel) int {
		if k.Own() {
			return 0
		}
		return 1
	}
	slices.SortFunc(list, func(a, b *Kernel) int { return cmp.Or(own(a)-own(b), compareReleases(b.Release, a.Release)) })
}

// Lacks tells which of the modules the kernel has neither as modules nor built in. Of one without a folder of modules that is
// not known.
func (k *Kernel) Lacks(modules ...string) []string {
	if k.Modules == "" {
		return nil
	}
	have := map[string]bool{}
	_ = filepath.WalkDir(k.Modules, func(path string, _ os.DirEntry, err error) error {
		if name, isModule := moduleName(path); isModule {
			have[name] = true
		}
		if errors.Is(err, os.ErrPermission) {
			return filepath.SkipDir
		}
		return err
	})
	builtin, _ := os.ReadFile(filepath.Join(k.Modules, "modules.builtin"))
	for path := range strings.FieldsSeq(string(builtin)) {
		if name, isModule := moduleName(path); isModule {
			have[name] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(modules), func(m string) bool { return have[m] })
}
