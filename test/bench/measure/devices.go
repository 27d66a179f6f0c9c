package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DevicePlan is what is measured of the virtio devices, in guests with fio and iperf3. As JSON it is a part of a [Plan].
type DevicePlan struct {
	Kernel  Kernel
	Initrd  string // of package lab's test guests
	Root    string // their disk
	Rounds  int    // times that each figure is measured
	Seconds int    // that each measurement takes
	Traffic string // the program of vmm/test/lab/traffic
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
)

// measureDevices measures disks and networks.
func (p *Plan) measureDevices(ctx context.Context, r *Report, progress func(string, ...any)) error {
	if err := p.measureDisks(ctx, r, progress); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if err := p.measureNets(ctx, r, progress); err != nil {
		return fmt.Errorf("network: %w", err)
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
	for _, v := range []struct {
		name string
		args []string
	}{
		{VMM, p.guestCommand(true, "-disk", f.Name())},
		{qemuThreads, p.guestCommand(false, qemuDisk(f.Name(), "threads")...)},
		{qemuRing, p.guestCommand(false, qemuDisk(f.Name(), "io_uring")...)},
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

func qemuDisk(path, aio string) []string {
	return []string{
		"-object", "iothread,id=io", "-drive", "if=none,format=raw,id=data,cache=writeback,aio=" + aio + ",file=" + path,
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

// The network that is measured: a TAP with an address of the host's.
const (
	tapName  = "bench0"
	tapHost  = "192.168.177.1"
	tapGuest = "192.168.177.2"
)

func (p *Plan) measureNets(ctx context.Context, r *Report, progress func(string, ...any)) error {
	for _, args := range [][]string{
		{"tuntap", "add", "dev", tapName, "mode", "tap", "vnet_hdr"},
		{"addr", "add", tapHost + "/24", "dev", tapName},
		{"link", "set", tapName, "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	defer func() { _ = exec.Command("ip", "link", "del", tapName).Run() }()
	for _, args := range [][]string{{"iperf3", "-s", "-B", tapHost}, {p.Devices.Traffic, "serve", "tcp:" + tapHost + ":9000"}} {
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
	seconds := strconv.Itoa(p.Devices.Seconds)
	iperf := "iperf3 -f k -t " + seconds + " -c " + tapHost
	const last = ` | awk '/receiver/ { print $7 }'`
	const connections = 300
	tests := []struct {
		name, command, unit string
		rate                func(out string, took time.Duration) (float64, error)
	}{
		{"TCP, guest to host", iperf + last, "kbit/s", number},
		{"TCP, host to guest", iperf + " -R" + last, "kbit/s", number},
		{
			"TCP connections with a request and a response of 64 bytes",
			fmt.Sprintf("traffic connect -n %d -up 64 -down 64 tcp:%s:9000", connections, tapHost), "connections",
			func(_ string, took time.Duration) (float64, error) { return connections / took.Seconds(), nil },
		},
	}
	for _, v := range []struct {
		name string
		args []string
	}{
		{VMM + vhostOff, p.guestCommand(true, "-net", "tap,ifname="+tapName+",vhost=off")},
		{Q35 + vhostOff, p.guestCommand(false, qemuNet("off")...)},
		{VMM + vhostOn, p.guestCommand(true, "-net", "tap,ifname="+tapName+",vhost=on")},
		{Q35 + vhostOn, p.guestCommand(false, qemuNet("on")...)},
	} {
		err := p.inGuest(ctx, v.args, func(g *shell) error {
			if _, err := g.run("ip addr add " + tapGuest + "/24 dev eth0 && ip link set eth0 up && ping -q -c 3 " + tapHost + " >/dev/null"); err != nil {
				return err
			}
			for _, t := range tests {
				rate := Rates{Monitor: v.name, Test: t.name, Unit: t.unit}
				for range p.Devices.Rounds {
					begin := time.Now()
					out, err := g.run(t.command)
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
