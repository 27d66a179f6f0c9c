package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// qemuFiles returns what QEMU needs in the lab, each file at the path that it has here: the program, its libraries, and
// the firmware of its machines.
func qemuFiles(ctx context.Context, qemu string) (map[string]string, error) {
	files := map[string]string{qemu: qemu}
	out, err := exec.CommandContext(ctx, "ldd", qemu).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: ldd: %w: %s", qemu, err, bytes.TrimSpace(out))
	}
	// "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)", or the loader's path alone
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			files[word] = word
		}
	}
	firmware := 0
	for _, pattern := range []string{"/usr/share/seabios/*.bin", "/usr/share/qemu/*.bin", "/usr/share/qemu/*.rom"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			if _, err := os.Stat(path); err == nil { // not a link to a file of some other package
				files[path] = path
				firmware++
			}
		}
	}
	if firmware == 0 {
		return nil, fmt.Errorf("firmware of %s: none in /usr/share/qemu: apt-get install --no-install-recommends seabios", qemu)
	}
	return files, nil
}
