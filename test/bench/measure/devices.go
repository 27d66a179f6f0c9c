package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DevicePlan is what is measured of the virtio devices, in guests with fio and iperf3. As JSON it is a part of a [Plan].
type DevicePlan struct {
	Kernel  Kernel
	Initrd  string      // of package lab's test guests
	Root    string      // their disk
	Rounds  int         // times that each figure is measured
	Seconds int         // that each measurement takes
	Traffic string      // the program of vmm/test/lab/traffic
	System  *SystemPlan `json:",omitempty"` // nil: not measured
}

// Rates are what a monitor's device does in a second, one for each round.
type Rates struct {
	Monitor, Test, Unit string
	PerSecond           []float64
}

// diskSize is the size of the disk that is measured: it fits the page cache, as the path to the disk is what is compared,
// and not the disk.
const diskSize = 256 << 20

// diskTest is a run of fio's.
type diskTest struct {
	name, rw, bs string
	depth        int
	column       int // of fio's terse output, version 3
	unit         string
}

func diskTests() []diskTest {
	const readBandwidth, readIOPS, writeBandwidth, writeIOPS = 7, 8, 48, 49
	return []diskTest{
		{"4k random read, QD 1", "randread", "4k", 1, readIOPS, "IOPS"},
		{"4k random write, QD 1", "randwrite", "4k", 1, writeIOPS, "IOPS"},
		{"4k random read, QD 32", "randread", "4k", 32, readIOPS, "IOPS"},
		{"4k random write, QD 32", "randwrite", "4k", 32, writeIOPS, "IOPS"},
		{"1M sequential read, QD 4", "read", "1M", 4, readBandwidth, "KiB/s"},
		{"1M sequential write, QD 4", "write", "1M", 4, writeBandwidth, "KiB/s"},
	}
}

// Names of the variants, as reports have them.
const (
	qemuThreads = "QEMU aio=threads"
	qemuRing    = "QEMU aio=io_uring"
	vhostOff    = ", vhost=off"
	vhostOn     = ", vhost=on"
	userNet     = ", user"
	qcow2       = ", qcow2"
)

// measureDevices measures disks and networks.
func (p *Plan) measureDevices(ctx context.Context, r *Report, progress func(string, ...any)) error {
	if err := p.measureDisks(ctx, r, progress); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if err := p.measureNets(ctx, r, progress); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if p.Devices.System != nil {
		if err := p.measureSystem(ctx, r, progress); err != nil {
			return fmt.Errorf("whole system: %w", err)
		}
	}
	return nil
}

// guestCommand starts a test guest with a device more than its root disk.
func (p *Plan) guestCommand(vmm bool, device ...string) []string {
	monitor := Q35
	if vmm {
		monitor = VMM
	}
	d := p.Devices
	args := p.command(monitor, d.Kernel.Path, d.Initrd, quiet+" test.root=vda")
	if vmm {
		if !slices.Contains(device, "-net") {
			args = append(args, "-net", "none") // not the one that a disk brings
		}
		return append(append(args, "-disk", d.Root+",readonly"), device...)
	}
	args = append(args, "-drive", "if=none,format=raw,readonly=on,id=root,file="+d.Root, "-device", "virtio-blk-pci,drive=root")
	return append(args, device...)
}

func (p *Plan) measureDisks(ctx context.Context, r *Report, progress func(string, ...any)) (err error) {
	f, err := os.CreateTemp("", "disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, diskSize); err != nil {
		return fmt.Errorf("disk of %d bytes: %w", diskSize, err)
	}
	image := f.Name() + ".qcow2"
	if out, err := exec.CommandContext(ctx, p.VMM, "image", "create", "-q", "-f", "qcow2", image, strconv.Itoa(diskSize)).CombinedOutput(); err != nil {
		return fmt.Errorf("qcow2 image: %w: %s", err, out)
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	for _, v := range []struct {
		name string
		args []string
	}{
		{VMM, p.guestCommand(true, "-disk", f.Name())},
		{qemuThreads, p.guestCommand(false, qemuDisk(f.Name(), "raw", "threads")...)},
		{qemuRing, p.guestCommand(false, qemuDisk(f.Name(), "raw", "io_uring")...)},
		{VMM + qcow2, p.guestCommand(true, "-disk", image)},
		{qemuThreads + qcow2, p.guestCommand(false, qemuDisk(image, "qcow2", "threads")...)},
		{qemuRing + qcow2, p.guestCommand(false, qemuDisk(image, "qcow2", "io_uring")...)},
	} {
		err := p.inGuest(ctx, v.args, func(g *shell) error {
			// Each page of the disk is touched before it counts.
			if _, err := g.run("dd if=/dev/zero of=/dev/vdb bs=1M 2>/dev/null; [ $(cat /sys/block/vdb/size) = " + strconv.Itoa(diskSize/512) + " ]"); err != nil {
				return err
			}
			for _, t := range diskTests() {
				rate := Rates{Monitor: v.name, Test: t.name, Unit: t.unit}
				for range p.Devices.Rounds {
					out, err := g.run(fmt.Sprintf("fio --name=x --filename=/dev/vdb --direct=1 --ioengine=libaio --rw=%s --bs=%s --iodepth=%d "+
						"--time_based --runtime=%d --randrepeat=1 --output-format=terse --terse-version=3 | cut -d ';' -f %d",
						t.rw, t.bs, t.depth, p.Devices.Seconds, t.column))
					if err != nil {
						return err
					}
					n, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
					if err != nil {
						return fmt.Errorf("fio: %w", err)
					}
					rate.PerSecond = append(rate.PerSecond, n)
				}
				progress("%s, %s: %.0f %s", t.name, v.name, rate.PerSecond, t.unit)
				r.Disks = append(r.Disks, rate)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func qemuDisk(path, format, aio string) []string {
	return []string{
		"-object", "iothread,id=io", "-drive", "if=none,format=" + format + ",id=data,cache=writeback,aio=" + aio + ",file=" + path,
		"-device", "virtio-blk-pci,drive=data,iothread=io",
	}
}

// inGuest runs f with the guest of a monitor.
func (p *Plan) inGuest(ctx context.Context, args []string, f func(g *shell) error) error {
	g, err := startShell(ctx, args)
	if err != nil {
		return err
	}
	return g.end(f(g))
}

// The networks that are measured: a TAP with an address of the host's, and one of the user's own, whose guest reaches another
// address of the host's.
const (
	tapName  = "bench0"
	tapHost  = "192.168.177.1"
	tapGuest = "192.168.177.2"

	userHost   = "198.51.100.1"
	userRouter = "10.0.2.2"
	userGuest  = "10.0.2.15"
)

// netTest is a measurement in the guest; server is an address of the host's.
type netTest struct {
	name, unit string
	command    func(server string) string
	rate       func(out string, took time.Duration) (float64, error)
}

func (p *Plan) netTests() []netTest {
	iperf := "iperf3 -f k -t " + strconv.Itoa(p.Devices.Seconds) + " -c "
	const last = ` | awk '/receiver/ { print $7 }'`
	const connections = 300
	return []netTest{
		{"TCP, guest to host", "kbit/s", func(server string) string { return iperf + server + last }, number},
		{"TCP, host to guest", "kbit/s", func(server string) string { return iperf + server + " -R" + last }, number},
		{
			"TCP connections with a request and a response of 64 bytes", "connections",
			func(server string) string {
				return fmt.Sprintf("traffic connect -n %d -up 64 -down 64 tcp:%s:9000", connections, server)
			},
			func(_ string, took time.Duration) (float64, error) { return connections / took.Seconds(), nil },
		},
	}
}

func (p *Plan) measureNets(ctx context.Context, r *Report, progress func(string, ...any)) error {
	for _, args := range [][]string{
		{"tuntap", "add", "dev", tapName, "mode", "tap", "vnet_hdr"},
		{"addr", "add", tapHost + "/24", "dev", tapName},
		{"addr", "add", userHost + "/32", "dev", tapName},
		{"link", "set", tapName, "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	defer func() { _ = exec.Command("ip", "link", "del", tapName).Run() }()
	for _, args := range [][]string{{"iperf3", "-s"}, {p.Devices.Traffic, "serve", "tcp:0.0.0.0:9000"}} {
		server := exec.CommandContext(ctx, args[0], args[1:]...)
		server.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := server.Start(); err != nil {
			return err
		}
		defer func() {
			_ = server.Process.Kill()
			_ = server.Wait()
		}()
	}
	const (
		onTAP  = "ip addr add " + tapGuest + "/24 dev eth0 && ip link set eth0 up && ping -q -c 3 " + tapHost + " >/dev/null"
		onUser = "ip addr add " + userGuest + "/24 dev eth0 && ip link set eth0 up && ip route add default via " + userRouter + " && ping -q -c 3 " + userRouter + " >/dev/null"
	)
	for _, v := range []struct {
		name, setUp, server string
		args                []string
	}{
		{VMM + vhostOff, onTAP, tapHost, p.guestCommand(true, "-net", "tap,ifname="+tapName+",vhost=off")},
		{Q35 + vhostOff, onTAP, tapHost, p.guestCommand(false, qemuNet("off")...)},
		{VMM + vhostOn, onTAP, tapHost, p.guestCommand(true, "-net", "tap,ifname="+tapName+",vhost=on")},
		{Q35 + vhostOn, onTAP, tapHost, p.guestCommand(false, qemuNet("on")...)},
		{VMM + userNet, onUser, userHost, p.guestCommand(true, "-net", "user")},
		{Q35 + userNet, onUser, userHost, p.guestCommand(false, "-netdev", "user,id=net", "-device", "virtio-net-pci,romfile=,netdev=net")},
	} {
		err := p.inGuest(ctx, v.args, func(g *shell) error {
			if _, err := g.run(v.setUp); err != nil {
				return err
			}
			for _, t := range p.netTests() {
				rate := Rates{Monitor: v.name, Test: t.name, Unit: t.unit}
				for range p.Devices.Rounds {
					begin := time.Now()
					out, err := g.run(t.command(v.server))
					took := time.Since(begin)
					if err != nil {
						return err
					}
					n, err := t.rate(out, took)
					if err != nil {
						return err
					}
					rate.PerSecond = append(rate.PerSecond, n)
				}
				progress("%s, %s: %.0f %s", t.name, v.name, rate.PerSecond, t.unit)
				r.Nets = append(r.Nets, rate)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func number(out string, _ time.Duration) (float64, error) {
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

func qemuNet(vhost string) []string {
	return []string{
		"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + tapName + ",vhost=" + vhost,
		"-device", "virtio-net-pci,romfile=,netdev=net",
	}
}
