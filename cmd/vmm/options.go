package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"vmm/machine"
)

// bootOptions are the flags of the command without a name, which boots a machine.
type bootOptions struct {
	kernel, initrd   string
	cmdline, extra   string
	cmdlineGiven     bool
	name             machineName
	memory           memorySize
	cpus             cpuCount
	serial           serialTarget
	disks            diskList
	nics             nicList
	publish          publishList
	hostLoopback     bool
	seed             seedOptions
	rng              bool
	console          serialTarget // none without -console
	balloon          balloonSize
	vsock            vsockTarget
	grace            gracePeriod
	reboot, noReboot bool
	debug, debugExit bool
	version, help    bool
}

func (o *bootOptions) flags() *pflag.FlagSet {
	*o = bootOptions{
		cmdline: machine.DefaultCmdline,
		memory:  machine.DefaultMemory,
		cpus:    1,
		serial:  serialTarget{kind: serialStdio},
		console: serialTarget{kind: serialNone},
		grace:   gracePeriod(30 * time.Second),
	}
	f := pflag.NewFlagSet("vmm", pflag.ContinueOnError)
	f.StringVar(&o.kernel, "kernel", "", "")
	f.StringVar(&o.initrd, "initrd", "", "")
	f.StringVar(&o.extra, "append", "", "")
	f.StringVar(&o.cmdline, "cmdline", o.cmdline, "")
	f.Var(&o.name, "name", "")
	f.Var(&o.memory, "mem", "")
	f.Var(&o.cpus, "cpus", "")
	f.Var(&o.serial, "serial", "")
	f.Var(&o.disks, "disk", "")
	f.Var(&o.nics, "net", "")
	f.Var(&o.publish, "p", "")
	f.BoolVar(&o.hostLoopback, "host-loopback", false, "")
	f.Var(&o.seed.user, "user", "")
	f.Var(&o.seed.keys, "ssh-key", "")
	f.Var(&o.seed.hostname, "hostname", "")
	f.StringVar(&o.seed.file, "cloud-init", "", "")
	f.BoolVar(&o.rng, "rng", false, "")
	f.Var(&o.console, "console", "")
	f.Var(&o.balloon, "balloon", "")
	f.Lookup("balloon").NoOptDefVal = balloonOn
	f.Var(&o.vsock, "vsock", "")
	f.Var(&o.grace, "grace", "")
	f.BoolVar(&o.reboot, "reboot", false, "")
	f.BoolVar(&o.noReboot, "no-reboot", false, "")
	f.BoolVar(&o.debug, "debug", false, "")
	f.BoolVar(&o.debugExit, "debug-exit", false, "")
	f.BoolVar(&o.version, "version", false, "")
	f.BoolVar(&o.help, "help", false, "")
	return f
}

// virtioCmdline is machine.DefaultCmdline for a guest whose console is the virtio console.
const virtioCmdline = "console=hvc0 panic=-1"

const help = `Usage: vmm -disk IMAGE [flags]      boot the system on a disk in a virtual machine
       vmm -kernel FILE [flags]     boot a Linux kernel
       vmm run [flags] IMAGE [CMD]  run a container image in a machine of its own
       vmm WORD ...                 start, exec, ps, logs, stop, kill, wait, rm; pull, load,
                                    images, rmi; kernel: as in Docker (vmm WORD --help)
       vmm image COMMAND            make, convert, check and resize disk images
       vmm probe [-json]            tell what this host's KVM offers and lacks

The guest's first serial port is this terminal: every key goes to the guest, and
  Ctrl-A x  quits at once     Ctrl-A b  sends a break (Linux: magic SysRq)
  Ctrl-A h  lists the keys    Ctrl-A Ctrl-A  sends a Ctrl-A

Flags, with one dash or two:
  -kernel FILE     Linux kernel: a bzImage, or an ELF file (vmlinux)
  -initrd FILE     initial RAM disk
  -append TEXT     added to the kernel's command line, where the last word wins
  -cmdline TEXT    instead of the disk's own command line, or of the default one with
                   -kernel, which is "%s"
  -name NAME       a name for the machine, in the list of processes
  -mem SIZE        memory, in units of K, M, G or T; without one, of M (default %s)
  -cpus N          virtual CPUs, 1 to %d (default %d)
  -serial TARGET   the first serial port's other end (default %s):
                   stdio      standard input and output
                   file:PATH  output is appended to a file; no input
                   pty        a new pseudo-terminal, whose name is printed
                   unix:PATH  a socket, for one client at a time
                   none       nothing
  -disk PATH[,SETTING...]
                   a disk in an image (raw or qcow2) or on a block device; any number
                   of times: vda, vdb, ... of a Linux guest, in their order. Without
                   -kernel the first one is booted: its boot loader's configuration
                   says which kernel, and with what. The settings:
                   snapshot     what the guest writes is thrown away at the end
                   format=F     raw or qcow2 (default: what the file looks like)
                   readonly     the guest cannot write
                   serial=TEXT  serial number, at most 20 bytes (default: the id)
                   id=NAME      a name for the disk, unique
                   queues=N     request queues, 1 to 64 (default 1)
                   cache=MODE   writeback (default): durable after the guest's flush;
                                none: as well, past the host's page cache;
                                unsafe: flushes are ignored
                   discard      let the guest free blocks of the image
  -user NAME       for images with cloud-init: the name of the user (default: the image's),
                   who may sudo
  -ssh-key FILE    public keys that may log in as the user; any number of times
  -hostname NAME   the guest's name (default: the -name)
  -cloud-init FILE user data of one's own (#cloud-config ..., or a script), which wins
                   over the three above
  -net user[,SETTING...]
                   a network card on a network that needs no root: DHCP, DNS and the way
                   out by this process's own sockets. It is the default with a -disk;
                   -net none is no card. The settings:
                   mac=ADDRESS  the guest's address (default: the same at each start)
                   subnet=NET   IPv4 network (default 10.0.2.0/24): .2 is the router, .3
                                the name server, .15 the guest
                   ipv6=MODE    on, off or auto (default): if the host has a way out by it
  -p [[HOSTIP:]HOSTPORT:]PORT[/udp]
                   lead a port of the host's to one of the guest's; any number of times.
                   Without HOSTIP it is one of all the host's addresses, without
                   HOSTPORT a free one, which is printed
  -host-loopback   let the guest reach the host's 127.0.0.1, as the router's address
  -net tap[,SETTING...]
                   a network card on a TAP interface of the host; any number of times:
                   eth0, eth1, ... of a Linux guest, in their order. The settings:
                   ifname=NAME  the interface: attached to if it exists, else made and
                                removed at the end (default: vmtap0, vmtap1, ...)
                   mac=ADDRESS  the guest's address (default: a random one)
                   mtu=N        told to the guest (default: the interface's)
                   queues=N     pairs of queues, 1 to 64 (default 1)
                   vhost=MODE   on: frames are moved by the host's kernel, vhost-net;
                                off: by vmm; auto (default): by the kernel if it can
  -net stream=unix:PATH[,mac=ADDRESS][,mtu=N]
                   a network card on a socket where passt listens, or any other that
                   knows QEMU's stream network: needs no root
  -rng             an entropy device: /dev/hwrng of a Linux guest
  -console TARGET  a virtio console, hvc0 of a Linux guest, with the targets of -serial.
                   On stdio it is the terminal, -serial is none, and the kernel's
                   console is hvc0, where the command line doesn't say otherwise
  -balloon         a balloon: what the guest has free goes back to the host;
                   -balloon=SIZE has it give up that much from the start
  -vsock path=PATH[,cid=N]
                   sockets to the guest (AF_VSOCK), whose address is N (default 3): a
                   program connects to PATH, writes "CONNECT port" and reads "OK port";
                   a guest that connects to a port of the host's reaches PATH_port
  -reboot          boot again when the guest resets itself (default without -kernel)
  -no-reboot       end when the guest resets itself (default with -kernel)
  -grace TIME      how long a guest that SIGTERM (or SIGHUP or SIGINT) tells to power
                   off may take until it is stopped; a second signal stops it at once
                   (default %s)
  -debug           print statistics and accesses to missing hardware at the end
  -debug-exit      let a write of N to port 0xf4 end the machine with status N
                   (255 for any greater N)
  -version         print the version
  -help            print this text

Examples:
  vmm run --rm -it -p 8080:80 nginx
  vmm -disk debian.qcow2
  vmm -disk ubuntu.img -user me -ssh-key ~/.ssh/id_ed25519.pub -p 127.0.0.1:2222:22
  vmm -disk ubuntu.img,snapshot -mem 2G -cpus 2 -p 8080:80
  vmm -kernel bzImage -initrd u-root.cpio -mem 1G
  vmm -kernel vmlinux -cpus 4 -append "root=/dev/vda ro quiet"
  vmm -kernel bzImage -initrd u-root.cpio -serial unix:/tmp/vm.sock
  printf 'uname -r\npoweroff\n' | vmm -kernel bzImage -initrd u-root.cpio

Exit status: 0 when the guest powers off or resets itself, and after Ctrl-A x; 1 when
the machine fails or the host cannot run it; 2 for a mistake in the flags; 128+N when
signal N stopped a guest that did not power off.
`

func helpText() string {
	var o bootOptions
	o.flags()
	return fmt.Sprintf(help, o.cmdline, &o.memory, machine.MaxCPUs, o.cpus, &o.serial, &o.grace)
}

// parse reads args and checks what concerns the flags alone.
func (o *bootOptions) parse(args []string) error {
	flags := o.flags()
	if err := parseFlags(flags, args, o.operandHint); err != nil {
		return err
	}
	if o.console.kind == serialStdio {
		// Whoever wants the virtio console on the terminal wants it for the console.
		if !flags.Changed("serial") {
			o.serial = serialTarget{kind: serialNone}
		}
		if !flags.Changed("cmdline") {
			o.cmdline = virtioCmdline
		}
	}
	switch {
	case o.help || o.version:
		return nil
	case o.reboot && o.noReboot:
		return errors.New("-reboot and -no-reboot: only one of them can be")
	case o.serial.kind == serialStdio && o.console.kind == serialStdio:
		return errors.New("-serial stdio and -console stdio: only one of them can be")
	case o.kernel == "" && o.initrd != "":
		return fmt.Errorf("-initrd %s: needs a -kernel", o.initrd)
	case o.kernel == "" && !o.bootsDisk():
		return errors.New(`nothing to boot: give a -disk IMAGE, or a -kernel FILE (see "vmm -help")`)
	}
	if o.seed.user != "" && o.seed.keys.keys == nil && o.seed.file == "" {
		return fmt.Errorf("-user %s: could not log in without an -ssh-key (or a password, in a -cloud-init FILE)", o.seed.user)
	}
	if len(o.nics) == 0 && len(o.disks) > 0 {
		if err := o.nics.Set("user"); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(o.nics, func(n nic) bool { return n.kind == nicUser }) {
		switch {
		case len(o.publish.forwards) > 0:
			return fmt.Errorf("-p %s: needs -net user", o.publish.forwards[0])
		case o.hostLoopback:
			return errors.New("-host-loopback: needs -net user")
		}
	}
	o.cmdlineGiven = flags.Changed("cmdline")
	if o.bootsDisk() && !o.noReboot {
		o.reboot = true // a whole system knows how to, and does so after its updates
	}
	return nil
}

// bootsDisk tells whether what boots is on the first disk.
func (o *bootOptions) bootsDisk() bool { return o.kernel == "" && len(o.disks) > 0 }

// threads is how many threads the machine has that may all want to run: one for each vCPU and queue, and some for the rest.
func (o *bootOptions) threads() int {
	n := int(o.cpus) + 4
	for _, d := range o.disks {
		n += d.queues
	}
	for _, c := range o.nics {
		n += 2 * c.queues
	}
	return n
}

func (o *bootOptions) operandHint(operand string) string {
	switch {
	case o.kernel == "" && strings.ContainsAny(operand, "./"):
		return "not a flag (a kernel is given as -kernel " + operand + ")"
	case operand == "help":
		return "no such command (did you mean -help?)"
	}
	return `neither a flag nor a command (see "vmm -help")`
}

// explain turns what machine.New says about a value into what the user knows: the flag.
func (o *bootOptions) explain(err error) error {
	var bad *machine.ConfigError
	if !errors.As(err, &bad) {
		return fmt.Errorf(`%w ("vmm probe" tells what this host lacks)`, err)
	}
	switch bad.Field {
	case "Kernel":
		if o.bootsDisk() {
			return fmt.Errorf("-disk %s: its kernel: %w", o.disks[0].path, bad.Err)
		}
		return mistakef("-kernel %s: %w", o.kernel, bad.Err)
	case "Initrd":
		if o.bootsDisk() {
			return mistakef("-mem %s: the disk's initial RAM disk: %w", &o.memory, bad.Err)
		}
		return mistakef("-initrd %s: %w", o.initrd, bad.Err)
	case "Memory":
		return mistakef("-mem %s: %w", &o.memory, bad.Err)
	case "CPUs":
		return mistakef("-cpus %d: %w", o.cpus, bad.Err)
	case "Cmdline":
		return mistakef("-append: %w", bad.Err)
	}
	return mistake{err}
}

// bare is the system's own error in err, without the operation and the path that the caller names anyway.
func bare(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
