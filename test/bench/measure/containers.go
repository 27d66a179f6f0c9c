package measure

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ContainerPlan is what is measured of containers. As JSON it is a part of a [Plan].
type ContainerPlan struct {
	Kernels []Kernel // each with its modules in a folder beside it, if it has any
	Builtin string   // the name of the kernel that has all built in, which QEMU boots too; empty for none
	Archive string   // the image, as docker save would write it
	Layer   string   // the image's one layer, as a tar archive
	Runs    int
}

// Timeline is the middle of what vmm writes down of containers' lives (container.Timeline), as the parts that follow each other, in
// seconds.
type Timeline struct {
	Kernel                                     string
	Build, Boot, Setup, Start, Command, Finish float64
}

// runcRun is a runtime's name, as reports have it.
const runcRun = "runc run"

// containerLimit bounds one run.
const containerLimit = 5 * time.Minute

// measureContainers times runs of true in a container, from before the fork to after the wait, with everything in caches.
func (p *Plan) measureContainers(ctx context.Context, r *Report, progress func(string, ...any)) error {
	c := p.Containers
	dir, err := os.MkdirTemp("", "containers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	env := append(os.Environ(), "XDG_CACHE_HOME="+dir+"/cache", "XDG_STATE_HOME="+dir+"/state")
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, containerLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = env
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
		}
		return out.String(), nil
	}
	out, err := run(p.VMM, "load", "-i", c.Archive)
	if err != nil {
		return err
	}
	image := strings.TrimSpace(out[strings.LastIndex(out, ": ")+2:])
	bundle, err := makeBundle(run, dir, c.Layer)
	if err != nil {
		return err
	}
	for _, k := range c.Kernels {
		vmm := []string{p.VMM, "run", "--rm", "--kernel", k.Path, image, "true"}
		if _, err := run(vmm...); err != nil { // makes the root file system and the initrd
			return err
		}
		commands := map[string][]string{VMM: vmm, runcRun: {"runc", "run", "-b", bundle, "bench"}}
		runtimes := []string{VMM, runcRun}
		if k.Name == c.Builtin {
			roots, err := filepath.Glob(filepath.Join(dir, "cache", "vmm", "images", "rootfs", "*.ext4"))
			if err != nil || len(roots) != 1 {
				return fmt.Errorf("root file systems: %v: %w", roots, err)
			}
			runtimes = append(runtimes, MicroVM)
			commands[MicroVM] = p.microVMRun(k.Path, roots[0])
		}
		times, err := interleave(k.Name, runtimes, c.Runs, progress, func(runtime string) (float64, error) {
			begin := time.Now()
			out, err := run(commands[runtime]...)
			took := time.Since(begin).Seconds()
			if err == nil && runtime == MicroVM && !strings.Contains(out, ran) {
				err = fmt.Errorf("the command did not run: %q", out)
			}
			return took, err
		})
		if err != nil {
			return err
		}
		r.Containers = append(r.Containers, times...)
		line, err := p.timeline(run, dir, image, k)
		if err != nil {
			return err
		}
		r.Timelines = append(r.Timelines, line)
	}
	return nil
}

// ran is what the guest of microVMRun says when its command has ended well: a kernel that panics ends QEMU as well.
const ran = "true has run"

// microVMRun has QEMU do the same: the kernel, the root file system, true, and the end. Its microvm knows virtio-mmio best.
func (p *Plan) microVMRun(kernel, root string) []string {
	return []string{
		p.QEMU, "-M", "microvm", "-accel", "kvm", "-cpu", p.QEMUCPU, "-m", strconv.FormatUint(p.Memory>>20, 10) + "M", "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernel,
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + root, "-device", "virtio-blk-device,drive=root",
		"-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net",
		"-append", `console=ttyS0 quiet panic=-1 reboot=t root=/dev/vda rw init=/bin/sh -- -c "true && echo ` + ran + `; busybox reboot -f"`,
	}
}

// makeBundle makes what runc runs: the image's files, and a configuration like Docker's.
func makeBundle(run func(...string) (string, error), dir, layer string) (string, error) {
	bundle := filepath.Join(dir, "bundle")
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return "", err
	}
	if _, err := run("tar", "-C", rootfs, "-xf", layer); err != nil {
		return "", err
	}
	if _, err := run("runc", "spec", "-b", bundle); err != nil {
		return "", err
	}
	path := filepath.Join(bundle, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return "", err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return "", fmt.Errorf("%s: no process", path)
	}
	process["terminal"], process["args"] = false, []string{"/bin/true"}
	if b, err = json.Marshal(spec); err != nil {
		return "", err
	}
	return bundle, os.WriteFile(path, b, 0o600)
}

// timeline runs containers that leave behind when they were where.
func (p *Plan) timeline(run func(...string) (string, error), dir, image string, k Kernel) (Timeline, error) {
	parts := make([][]float64, 6)
	for range p.Containers.Runs {
		if _, err := run(p.VMM, "run", "--name", "line", "--kernel", k.Path, image, "true"); err != nil {
			return Timeline{}, err
		}
		found, err := filepath.Glob(filepath.Join(dir, "state", "vmm", "containers", "*", "state.json"))
		if err != nil || len(found) != 1 {
			return Timeline{}, fmt.Errorf("states: %v: %w", found, err)
		}
		b, err := os.ReadFile(found[0])
		if err != nil {
			return Timeline{}, err
		}
		var state struct {
			Timeline struct{ Built, Up, Ready, Running, Exited, Ended time.Duration }
		}
		if err := json.Unmarshal(b, &state); err != nil {
			return Timeline{}, err
		}
		last := time.Duration(0)
		t := state.Timeline
		for i, at := range []time.Duration{t.Built, t.Up, t.Ready, t.Running, t.Exited, t.Ended} {
			parts[i] = append(parts[i], (at - last).Seconds())
			last = at
		}
		if _, err := run(p.VMM, "rm", "line"); err != nil {
			return Timeline{}, err
		}
	}
	middle := func(values []float64) float64 {
		slices.Sort(values)
		return values[len(values)/2]
	}
	return Timeline{k.Name, middle(parts[0]), middle(parts[1]), middle(parts[2]), middle(parts[3]), middle(parts[4]), middle(parts[5])}, nil
}
