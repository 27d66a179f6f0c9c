// Package kernel finds kernels for guests, with their modules: Debian's cloud kernels, out of Debian's packages, as any user
// and without installing them. What it has taken once it keeps in the user's cache ($XDG_CACHE_HOME/vmm), and needs no network
// for again. Tests take single programs the same way.
//
// The packages come from wherever the machine's apt gets its own; apt checks their signatures.
package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CacheDir returns the folder that holds all that the project caches, and makes it.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir() // $XDG_CACHE_HOME, or ~/.cache
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "vmm")
	return dir, os.MkdirAll(dir, 0o755)
}

// lock keeps others out of the cache's entry name until the function that it returns is called. Locks lie in files of
// their own, which stay: a lock file that was removed could be held twice.
func lock(ctx context.Context, cache, name string) (func(), error) {
	path := filepath.Join(cache, "."+name+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				locked <- err
				return
			}
		}
	}()
	select {
	case err := <-locked:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() { // whenever the other lets go
			if <-locked == nil {
				_ = f.Close()
			}
		}()
		return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
	}
}

// apt runs apt's tools. Its zero value uses the machine's package lists, and private ones after update, where those
// can't be written.
type apt struct {
	options []string
}

// errNoPackage says that apt knows no such package.
var errNoPackage = errors.New("no such package in apt's lists")

// update gets fresh package lists: the machine's own as root, otherwise private ones in the cache.
func (a *apt) update(ctx context.Context, cache string) error {
	if os.Geteuid() != 0 {
		state := filepath.Join(cache, "apt")
		for _, dir := range []string{"lists/partial", "archives/partial"} {
			if err := os.MkdirAll(filepath.Join(state, dir), 0o755); err != nil {
				return err
			}
		}
		a.options = []string{"-o", "Dir::State::Lists=" + state + "/lists", "-o", "Dir::Cache=" + state}
	}
	_, err := a.run(ctx, "", "apt-get", "-q", "update")
	return err
}

// search lists the packages whose names begin with prefix.
func (a *apt) search(ctx context.Context, prefix string) ([]string, error) {
	out, err := a.run(ctx, "", "apt-cache", "pkgnames", prefix)
	return strings.Fields(string(out)), err
}

// depends lists what the package depends on.
func (a *apt) depends(ctx context.Context, name string) ([]string, error) {
	out, err := a.run(ctx, "", "apt-cache", "depends", "--important", name)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// unpack downloads the package and lays its files out below dir.
func (a *apt) unpack(ctx context.Context, name, dir string) error {
	debs, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	// As root apt would fetch as the user _apt, who may not write here.
	if _, err := a.run(ctx, debs, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("apt-get download %s: left %d packages", name, len(found))
	}
	_, err = a.run(ctx, "", "dpkg", "-x", found[0], dir)
	return err
}

// run runs one of apt's tools in dir and returns its standard output.
func (a *apt) run(ctx context.Context, dir, tool string, args ...string) ([]byte, error) {
	if _, err := exec.LookPath(tool); err != nil {
		return nil, fmt.Errorf("%w: Debian's packages need Debian's tools", err)
	}
	cmd := exec.CommandContext(ctx, tool, slices.Concat(a.options, args)...)
	if strings.HasPrefix(tool, "dpkg") {
		cmd.Args = append([]string{tool}, args...)
	}
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("%s %s: %w%s", tool, strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return out, nil
}

// lastLine returns the last line of a tool's complaint, ready to follow an error.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	return ": " + s[strings.LastIndexByte(s, '\n')+1:]
}

// install makes the cache's entry name, a folder, unless it is there: fill is given apt and a folder,
// which becomes the entry when it is filled, whole or not at all. With refreshed lists it is tried a second time: the machine's may
// be missing, or name files that the archive has dropped.
func install(ctx context.Context, name string, fill func(a *apt, dir string) error) (path string, fetched bool, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", false, err
	}
	path = filepath.Join(cache, name)
	if exists(path) {
		return path, false, nil
	}
	unlock, err := lock(ctx, cache, name)
	if err != nil {
		return "", false, err
	}
	defer unlock()
	if exists(path) { // another made it meanwhile
		return path, false, nil
	}
	try := func(a *apt) error {
		dir, err := os.MkdirTemp(cache, "."+name+"-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		if err := fill(a, dir); err != nil {
			return err
		}
		return os.Rename(dir, path)
	}
	var a apt
	if err = try(&a); err != nil && ctx.Err() == nil {
		if updateErr := a.update(ctx, cache); updateErr != nil {
			return "", false, errors.Join(err, updateErr)
		}
		err = try(&a)
	}
	if err != nil {
		return "", false, err
	}
	return path, true, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Package returns the folder that holds the files of the Debian package name, at their usual places below it.
func Package(ctx context.Context, name string) (string, error) {
	path, _, err := install(ctx, "package-"+name, func(a *apt, dir string) error {
		return a.unpack(ctx, name, dir)
	})
	return path, err
}
