// Command bench measures vmm beside QEMU, prints the figures and writes them into docs/benchmarks.md, which explains them:
//
//	bench [-starts 9] [-boots 5] [-rounds 3] [-systems 2] [-containers 5] [-o docs/benchmarks.md]
//
// On this machine's KVM it measures all that this KVM can run, as root, for the kernel's tracing belongs to root; what is
// left, in the nested lab. It wants bin/vmm and out/u-root.cpio built, and QEMU installed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"vmm/block/image"
	"vmm/bootdisk"
	"vmm/internal/cpio"
	"vmm/kernel"
	"vmm/test/bench/measure"
	"vmm/test/lab"
)

func main() {
	var b bench
	flag.IntVar(&b.starts, "starts", 9, "timed starts of each monitor with each kernel; 0 leaves out starts, boots, exits and memory")
	flag.IntVar(&b.boots, "boots", 5, "timed boots of each monitor with each kernel")
	flag.IntVar(&b.systems, "systems", 2, "timed boots of a whole system by each monitor; 0 leaves them out")
	flag.IntVar(&b.rounds, "rounds", 3, "times that each figure of the devices is measured; 0 leaves them out")
	output := flag.String("o", "docs/benchmarks.md", "write the results into this `page`; nowhere if empty")
	flag.IntVar(&b.containers, "containers", 5, "timed containers by each runtime with each kernel; 0 leaves them out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	err := b.main(ctx, *output)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// bench is one run of the command.
type bench struct {
	starts, boots, rounds, systems, containers int

	qemu         string // the program
	dir          string // for what is made for this run
	runner, init string // files in dir
}

func (b *bench) main(ctx context.Context, page string) (err error) {
	if b.qemu, err = exec.LookPath(lab.DefaultQEMU); err != nil {
		return fmt.Errorf("%w: QEMU is what is compared with: scripts/setup qemu-system-x86 installs it, as root", err)
	}
	if b.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.build(ctx); err != nil {
		return err
	}
	r := results{Time: time.Now().UTC(), Starts: b.starts, Boots: b.boots}
	if r.Machine, err = describeMachine(ctx, b.qemu); err != nil {
		return err
	}
	whole := exec.CommandContext(ctx, "bin/vmm", "probe").Run() == nil // stock kernels run on this machine's KVM
	own := true
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil || os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: this machine's own KVM is not measured: it takes /dev/kvm and root, for tracing")
		own, whole = false, false
	}
	if own && b.starts > 0 {
		if r.Own, err = b.measureHere(ctx, whole); err != nil {
			return err
		}
	}
	if !whole && b.starts > 0 {
		if r.Lab, err = b.measureInLab(ctx); err != nil {
			return err
		}
	}
	if b.rounds > 0 {
		if r.Devices, err = b.measureDevices(ctx, whole); err != nil {
			return err
		}
	}
	if b.containers > 0 {
		if r.Containers, err = b.measureContainers(ctx, whole); err != nil {
			return err
		}
	}
	raw, err := json.MarshalIndent(&r, "", "\t")
	if err != nil {
		return err
	}
	text := r.markdown()
	_, err = io.WriteString(os.Stdout, text)
	err = errors.Join(err, os.WriteFile("out/bench.json", append(raw, '\n'), 0o644))
	if page != "" {
		err = errors.Join(err, rewrite(page, text))
	}
	return err
}

// build makes the runner, and the initramfs that holds the guest's init and nothing else.
func (b *bench) build(ctx context.Context) error {
	b.runner, b.init = filepath.Join(b.dir, "runner"), filepath.Join(b.dir, "init.cpio")
	program := filepath.Join(b.dir, "init")
	for path, pkg := range map[string]string{b.runner: "vmm/test/bench/runner", program: "vmm/test/bench/init"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(out))
		}
	}
	f, err := os.Create(b.init)
	if err != nil {
		return err
	}
	w := cpio.NewWriter(f)
	w.CharDevice("dev/console", 0o600, 5, 1) // init's standard streams
	err = w.Tree("init", program)
	return errors.Join(err, w.Close(), f.Close())
}

// plan returns what is the same here and in the lab, with the paths of here.
func (b *bench) plan() *measure.Plan {
	return &measure.Plan{
		VMM: "bin/vmm", QEMU: b.qemu, QEMUCPU: "host", Memory: 1 << 30, Initrd: "out/u-root.cpio", Init: b.init,
		StartRuns: b.starts, BootRuns: b.boots,
	}
}

// measureHere measures on this machine's KVM: all, or where it can't run stock kernels, what comes before their first
// instruction.
func (b *bench) measureHere(ctx context.Context, whole bool) (*measure.Report, error) {
	p := b.plan()
	for i, series := range lab.Series() {
		kernel, err := kernel.Cloud(ctx, series)
		if err != nil {
			return nil, err
		}
		image := measure.Kernel{Name: "vmlinuz-" + series, Path: kernel.Image}
		if i == 0 {
			p.Starts = []measure.Kernel{image, {Name: "vmlinux-" + series, Path: kernel.ELF}}
		}
		if whole {
			p.Boots = append(p.Boots, image)
		}
	}
	if !whole {
		p.QEMUCPU = "host,-arch-capabilities" // a KVM in software refuses that MSR, which QEMU doesn't bear
	}
	fmt.Fprintln(os.Stderr, "bench: on this machine's KVM")
	return b.runHere(ctx, p)
}

// runHere has the runner measure on this machine.
func (b *bench) runHere(ctx context.Context, p *measure.Plan) (*measure.Report, error) {
	input, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.runner)
	// An interrupt is for the runner as well, which has something to clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("measure on this machine: %w", err)
	}
	return decode(&out)
}

// measureInLab measures all in the nested lab.
func (b *bench) measureInLab(ctx context.Context) (*measure.Report, error) {
	files, err := lab.Standard(ctx, ".", lab.Series()...)
	if err != nil {
		return nil, err
	}
	qemu, err := qemuFiles(ctx, b.qemu)
	if err != nil {
		return nil, err
	}
	p := b.plan()
	p.VMM, p.Initrd, p.Init = "/usr/local/bin/vmm", "/boot/u-root.cpio", "/lab/init.cpio"
	for i, series := range lab.Series() {
		image := measure.Kernel{Name: "vmlinuz-" + series, Path: "/boot/vmlinuz-" + series}
		if i == 0 {
			p.Starts = []measure.Kernel{image, {Name: "vmlinux-" + series, Path: "/boot/vmlinux-" + series}}
		}
		p.Boots = append(p.Boots, image)
	}
	maps.Copy(files, qemu)
	files["/lab/runner"], files[p.Init] = b.runner, b.init
	fmt.Fprintln(os.Stderr, "bench: in the nested lab")
	return b.runInLab(ctx, lab.Config{Files: files}, p)
}

// measureDevices measures the virtio devices, on this machine if its KVM runs stock kernels (here), or in a lab whose disk
// has QEMU. The guests have their tools, fio and iperf3, on the same disk.
func (b *bench) measureDevices(ctx context.Context, here bool) (*measure.Report, error) {
	series := lab.Series()[0]
	kernel, err := kernel.Cloud(ctx, series)
	if err != nil {
		return nil, err
	}
	initrd, _, err := lab.Guest(ctx, series)
	if err != nil {
		return nil, err
	}
	traffic, err := lab.Traffic(ctx)
	if err != nil {
		return nil, err
	}
	disk, err := lab.Rootfs(ctx, ".")
	if err != nil {
		return nil, err
	}
	p := b.plan()
	p.StartRuns, p.BootRuns = 0, 0
	p.Devices = &measure.DevicePlan{
		Kernel: measure.Kernel{Name: "vmlinuz-" + series, Path: kernel.Image}, Initrd: initrd, Root: disk, Traffic: traffic,
		Rounds: b.rounds, Seconds: 4,
	}
	if b.systems > 0 {
		if p.Devices.System, err = b.system(ctx); err != nil {
			return nil, err
		}
	}
	if here {
		fmt.Fprintln(os.Stderr, "bench: devices, on this machine's KVM")
		return b.runHere(ctx, p)
	}
	files, err := lab.Standard(ctx, ".", series)
	if err != nil {
		return nil, err
	}
	p.VMM, p.QEMU = "/usr/local/bin/vmm", "/usr/bin/qemu-system-x86_64"
	d := p.Devices
	d.Kernel.Path, d.Initrd, d.Root, d.Traffic = "/boot/vmlinuz-"+series, "/lab/guest.cpio", lab.GuestDisk, "/lab/traffic"
	maps.Copy(files, map[string]string{"/lab/runner": b.runner, d.Initrd: initrd, d.Traffic: traffic})
	if s := d.System; s != nil {
		for name, path := range map[string]*string{"/lab/system.qcow2": &s.Image, "/lab/system-kernel": &s.Kernel, "/lab/system-initrd": &s.Initrd} {
			files[name], *path = *path, name
		}
	}
	fmt.Fprintln(os.Stderr, "bench: devices, in the nested lab")
	return b.runInLab(ctx, lab.Config{Files: files, Disk: disk, GuestDisk: disk}, p)
}

// measureContainers measures runs of containers, on this machine if its KVM runs stock kernels (here) and it has runc, or in a lab:
// with Debian's kernel, and with the one that scripts/build-kernel has built, if it has.
func (b *bench) measureContainers(ctx context.Context, here bool) (*measure.Report, error) {
	img, layer, err := lab.BusyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag("busybox")
	if err != nil {
		return nil, err
	}
	c := &measure.ContainerPlan{Archive: filepath.Join(b.dir, "busybox.tar"), Layer: filepath.Join(b.dir, "layer.tar"), Runs: b.containers}
	if err := errors.Join(tarball.WriteToFile(c.Archive, tag, img), os.WriteFile(c.Layer, layer, 0o600)); err != nil {
		return nil, err
	}
	debian, err := kernel.Cloud(ctx, lab.Series()[0])
	if err != nil {
		return nil, err
	}
	kernels := map[string]*kernel.Kernel{"Debian's " + lab.Series()[0]: debian}
	built, err := kernel.Fetched()
	if err != nil {
		return nil, err
	}
	for _, k := range built {
		if k.Own() && c.Builtin == "" {
			c.Builtin = "built, " + k.Release
			kernels[c.Builtin] = k
		}
	}
	if c.Builtin == "" {
		fmt.Fprintln(os.Stderr, "bench: no kernel with all built in (scripts/build-kernel builds one), and so no container's machine that QEMU boots too")
	}
	p := b.plan()
	p.StartRuns, p.BootRuns, p.Containers = 0, 0, c
	files, err := lab.Standard(ctx, ".", lab.Series()[0])
	if err != nil {
		return nil, err
	}
	for _, title := range slices.Sorted(maps.Keys(kernels)) {
		k := kernels[title]
		path := k.ELF
		if !here {
			dir := "/lab/kernel-" + k.Release
			files[dir+"/vmlinux"], files[dir+"/modules"] = k.ELF, k.Modules
			path = dir + "/vmlinux"
		}
		c.Kernels = append(c.Kernels, measure.Kernel{Name: title, Path: path})
	}
	if here {
		fmt.Fprintln(os.Stderr, "bench: containers, on this machine's KVM")
		return b.runHere(ctx, p)
	}
	disk, err := lab.Rootfs(ctx, ".")
	if err != nil {
		return nil, err
	}
	maps.Copy(files, map[string]string{"/lab/runner": b.runner, "/lab/busybox.tar": c.Archive, "/lab/layer.tar": c.Layer})
	p.VMM, p.QEMU, c.Archive, c.Layer = "/usr/local/bin/vmm", "/usr/bin/qemu-system-x86_64", "/lab/busybox.tar", "/lab/layer.tar"
	fmt.Fprintln(os.Stderr, "bench: containers, in the nested lab")
	// With memory to spare, or the host (L1) compacts it in the middle of a fault.
	return b.runInLab(ctx, lab.Config{Files: files, Disk: disk, Memory: 8 << 30}, p)
}

// system is the image of a whole Debian, and what it boots as files of their own.
func (b *bench) system(ctx context.Context) (_ *measure.SystemPlan, err error) {
	s := &measure.SystemPlan{Kernel: filepath.Join(b.dir, "system-kernel"), Initrd: filepath.Join(b.dir, "system-initrd"), Runs: b.systems}
	if s.Image, err = lab.CloudImage(ctx, "."); err != nil {
		return nil, err
	}
	i, err := image.Open(s.Image, image.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer i.Close()
	boot, err := bootdisk.Find(i.Disk, i.Disk.Size())
	if err != nil {
		return nil, err
	}
	s.Append = boot.CommandLine
	for path, from := range map[string]bootdisk.Image{s.Kernel: boot.Kernel, s.Initrd: boot.Initrd} {
		data, err := io.ReadAll(io.NewSectionReader(from, 0, from.Size()))
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// runInLab has the runner measure in a lab of its own.
func (b *bench) runInLab(ctx context.Context, cfg lab.Config, p *measure.Plan) (*measure.Report, error) {
	input, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var out bytes.Buffer
	status, err := l.Run(ctx, &lab.Cmd{
		Args: []string{"/lab/runner"}, Stdin: bytes.NewReader(input), Stdout: &out, Stderr: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	if status != 0 {
		return nil, fmt.Errorf("measure in the lab: exit status %d", status)
	}
	return decode(&out)
}

func decode(r io.Reader) (*measure.Report, error) {
	var report measure.Report
	if err := json.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("the runner's report: %w", err)
	}
	return &report, nil
}
