package kernel

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

// Module is one kernel module, uncompressed.
type Module struct {
	Name string // with underscores, as lsmod says it
	Data []byte
}

// Load returns the named modules of the kernel and all that they depend on, each after those that it needs. A name
// that the kernel has no module for is left out: what is a module in one series is built into the next.
func (k *Kernel) Load(names ...string) ([]Module, error) {
	if k.Modules == "" {
		return nil, nil
	}
	files := map[string]string{} // by module name
	err := filepath.WalkDir(k.Modules, func(path string, _ fs.DirEntry, err error) error {
		if name, isModule := moduleName(path); isModule {
			files[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var modules []Module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path, found := files[name]
		if !found || seen[name] {
			return nil
		}
		seen[name] = true
		data, needs, err := readModule(path)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		modules = append(modules, Module{Name: name, Data: data})
		return nil
	}
	for _, name := range names {
		if err := add(strings.ReplaceAll(name, "-", "_")); err != nil {
			return nil, err
		}
	}
	return modules, nil
}

// moduleName takes the module's name from its file's, which may have dashes and a compressor's suffix.
func moduleName(path string) (string, bool) {
	base := strings.TrimSuffix(filepath.Base(path), ".xz")
	name, isModule := strings.CutSuffix(base, ".ko")
	return strings.ReplaceAll(name, "-", "_"), isModule
}

// readModule returns the module and the names of those that it depends on. The package holds no modules.dep, which
// depmod makes at the installation; each module says the same of itself in its section .modinfo.
func readModule(path string) ([]byte, []string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasSuffix(path, ".xz") {
		z, err := xz.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if data, err = io.ReadAll(z); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, fmt.Errorf("%s: no section .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: .modinfo: %w", path, err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return data, strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return data, nil, nil
}
