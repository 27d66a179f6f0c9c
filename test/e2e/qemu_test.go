package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// monitorVariable names the monitor that test guests get: with "qemu" in it, the proofs of the devices are held against
// QEMU. What fails there as well is the proof's fault, or the kernel's, or the lab's.
const monitorVariable = "E2E_MONITOR"

// withQEMU tells whether the guests run in QEMU.
func withQEMU() bool { return os.Getenv(monitorVariable) == "qemu" }

// qemuCommand returns the command that starts QEMU with the machine that this one of vmm's would make.
func qemuCommand(t *testing.T, vmm []string) []string {
	t.Helper()
	command := []string{
		lab.DefaultQEMU, "-M", "q35", "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", "stdio",
	}
	devices := 0
	add := func(backend, device string) {
		command = append(command, backend)
		command = append(command, strings.Fields(device)...)
	}
	for i := 1; i < len(vmm); i++ {
		flag := vmm[i]
		value := func() string { i++; return vmm[i] }
		id := fmt.Sprintf("d%d", devices)
		devices++
		switch flag {
		case "-kernel", "-initrd":
			command = append(command, flag, value())
		case "-mem":
			command = append(command, "-m", value())
		case "-cpus":
			command = append(command, "-smp", value())
		case "-append":
			command = append(command, "-append", "console=ttyS0 panic=-1 "+value())
		case "-disk":
			path, options := parseOptions(value())
			drive := "if=none,discard=unmap,werror=report,format=raw,id=" + id + ",file=" + path
			if _, readonly := options["readonly"]; readonly {
				drive += ",readonly=on"
			}
			if cache := options["cache"]; cache != "" {
				drive += ",cache=" + cache
			}
			device := "virtio-blk-pci,drive=" + id
			if serial := options["serial"]; serial != "" {
				device += ",serial=" + serial
			}
			if queues := options["queues"]; queues != "" {
				device += ",num-queues=" + queues
			}
			add("-drive", drive+" -device "+device)
		case "-net":
			kind, options := parseOptions(value())
			netdev := "tap,script=no,downscript=no,id=" + id
			device := "virtio-net-pci,romfile=,netdev=" + id
			if path, stream := strings.CutPrefix(kind, "stream=unix:"); stream {
				netdev = "stream,server=off,addr.type=unix,addr.path=" + path + ",id=" + id
			}
			if name := options["ifname"]; name != "" {
				netdev += ",ifname=" + name
			}
			if vhost := options["vhost"]; vhost != "" && vhost != "auto" {
				netdev += ",vhost=" + vhost
			}
			if queues := options["queues"]; queues != "" {
				netdev += ",queues=" + queues
				device += ",mq=on"
			}
			if mac := options["mac"]; mac != "" {
				device += ",mac=" + mac
			}
			add("-netdev", netdev+" -device "+device)
		case "-rng":
			add("-device", "virtio-rng-pci")
		case "-vsock":
			_, options := parseOptions("," + value())
			add("-device", "vhost-vsock-pci,guest-cid="+options["cid"])
		case "-console":
			target := value()
			if path, ok := strings.CutPrefix(target, "unix:"); ok {
				target = "socket,server=on,wait=off,path=" + path
			}
			add("-chardev", target+",id="+id+" -device virtio-serial-pci -device virtconsole,chardev="+id)
		case "-reboot":
			command = slices.DeleteFunc(command, func(arg string) bool { return arg == "-no-reboot" })
		case "-serial":
			at := slices.Index(command, "-serial")
			command[at+1] = value()
		case "-balloon":
			add("-device", "virtio-balloon-pci,free-page-reporting=on")
		default:
			t.Skipf("QEMU has no such thing: %s", flag)
		}
	}
	return slices.Clip(command)
}

// parseOptions takes a flag's value apart: what comes first, and the options, with or without a value, by their names.
func parseOptions(value string) (string, map[string]string) {
	first, rest, _ := strings.Cut(value, ",")
	options := map[string]string{}
	for option := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(option, "=")
		options[name] = value
	}
	return first, options
}

// TestQEMUCommand shows one.
func TestQEMUCommand(t *testing.T) {
	got := qemuCommand(t, []string{"vmm", "-disk", "/d,readonly,serial=one", "-net", "tap,ifname=t0,vhost=on,queues=2", "-rng"})
	require.Equal(t, "-drive if=none,discard=unmap,werror=report,format=raw,id=d0,file=/d,readonly=on -device virtio-blk-pci,drive=d0,serial=one "+
		"-netdev tap,script=no,downscript=no,id=d1,ifname=t0,vhost=on,queues=2 -device virtio-net-pci,romfile=,netdev=d1,mq=on "+
		"-device virtio-rng-pci", strings.Join(got[slices.Index(got, "stdio")+1:], " "))
}
