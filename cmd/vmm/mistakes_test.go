package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/cmd/vmm/internal/console"
	"vmm/machine"
)

// TestMistakes: each gives one line, status 2, and leaves nothing behind.
func TestMistakes(t *testing.T) {
	inFiles(t)
	require.NoError(t, os.Mkdir("dir", 0o700))
	require.NoError(t, os.WriteFile("empty", nil, 0o600))
	require.NoError(t, os.WriteFile("secret", []byte("x"), 0o000))
	require.NoError(t, unix.Mkfifo("fifo", 0o600))
	busy, err := console.OpenFile("busy")
	require.NoError(t, err)
	defer busy.Close()
	live, err := net.Listen("unix", "live")
	require.NoError(t, err)
	defer live.Close()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer port.Close()
	taken := port.Addr().String() + ":80"
	require.NoError(t, os.WriteFile("disk", make([]byte, 4096), 0o600))
	require.NoError(t, os.WriteFile("locked", make([]byte, 4096), 0o600))
	locked, err := block.Open("locked", block.Options{ReadOnly: true})
	require.NoError(t, err)
	defer locked.Close()
	before := list(t)

	boot := func(args ...string) []string { return append([]string{"-kernel", "bzImage"}, args...) }
	refused := func(field, reason string) error {
		return fmt.Errorf("new: %w", &machine.ConfigError{Field: field, Err: errors.New(reason)})
	}
	for _, tt := range []struct {
		args   []string
		refuse error // by package machine
		want   string
	}{
		{args: nil, want: `nothing to boot: give a -disk IMAGE, or a -kernel FILE (see "vmm -help")`},
		{args: []string{"-initrd", "u-root.cpio"}, want: "-initrd u-root.cpio: needs a -kernel"},
		{args: []string{"-disk", "disk", "-initrd", "u-root.cpio"}, want: "-initrd u-root.cpio: needs a -kernel"},
		{args: boot("-m", "1G"), want: `-m: no such flag (see "vmm -help")`},
		{args: boot("-memory", "1G"), want: "-memory: no such flag (did you mean -mem?)"},
		{args: boot("-cpu", "2"), want: "-cpu: no such flag (did you mean -cpus?)"},
		{args: boot("--intrd=x"), want: "--intrd=x: no such flag (did you mean -initrd?)"},
		{args: boot("-mem"), want: "-mem: needs a value"},
		{args: []string{"bzImage"}, want: `"bzImage": neither a flag nor a command (see "vmm -help")`},
		{args: []string{"/boot/vmlinuz"}, want: `"/boot/vmlinuz": not a flag (a kernel is given as -kernel /boot/vmlinuz)`},
		{args: []string{"help"}, want: `"help": no such command (did you mean -help?)`},
		{args: boot("quiet"), want: `"quiet": neither a flag nor a command (see "vmm -help")`},
		{args: boot("-reboot", "-no-reboot"), want: "-reboot and -no-reboot: only one of them can be"},
		{args: boot("-debug=maybe"), want: "-debug=maybe: takes no value, or true or false"},
		{args: boot("-grace", "soon"), want: "-grace soon: not a time (use for example 30s or 2m)"},

		{args: boot("-mem", "100X"), want: "-mem 100X: not a size (use for example 512M or 2G)"},
		{args: boot("-mem=0"), want: "-mem 0: a machine needs memory (use for example 512M or 2G)"},
		{args: boot("-mem", "99999999T"), want: "-mem 99999999T: more than any machine can address"},
		{args: boot("-mem", "64K"), refuse: refused("Memory", "too little"), want: "-mem 64K: too little"},
		{args: boot("-cpus", "0"), want: "-cpus 0: not a number from 1 to 64"},
		{args: boot("-cpus", "65"), want: "-cpus 65: not a number from 1 to 64"},
		{args: boot("-cpus", "9"), refuse: refused("CPUs", "too many"), want: "-cpus 9: too many"},
		{args: boot("-append", "xyz"), refuse: refused("Cmdline", "too long"), want: "-append: too long"},

		{args: []string{"-kernel", "missing"}, want: "-kernel missing: no such file or directory"},
		{args: []string{"-kernel", ""}, want: `nothing to boot: give a -disk IMAGE, or a -kernel FILE (see "vmm -help")`},
		{args: []string{"-kernel", "dir"}, want: "-kernel dir: is a directory"},
		{args: []string{"-kernel", "empty"}, want: "-kernel empty: is empty"},
		{args: []string{"-kernel", "fifo"}, want: "-kernel fifo: not a regular file"},
		{args: []string{"-kernel", "bzImage/x"}, want: "-kernel bzImage/x: not a directory"},
		{args: boot(), refuse: refused("Kernel", "not a Linux kernel"), want: "-kernel bzImage: not a Linux kernel"},
		{args: boot("-initrd", "missing"), want: "-initrd missing: no such file or directory"},
		{args: boot("-initrd", "dir"), want: "-initrd dir: is a directory"},
		{args: boot("-initrd", "u-root.cpio"), refuse: refused("Initrd", "does not fit"), want: "-initrd u-root.cpio: does not fit"},

		{args: boot("-serial", "modem"), want: "-serial modem: not a serial target (use stdio, file:PATH, pty, unix:PATH or none)"},
		{args: boot("-serial", "file:dir"), want: "-serial file:dir: is a directory"},
		{args: boot("-serial", "file:no/such"), want: "-serial file:no/such: no such file or directory"},
		{args: boot("-serial", "file:fifo"), want: "-serial file:fifo: nothing reads from it"},
		{args: boot("-serial", "file:busy"), want: "-serial file:busy: in use by another process"},
		{args: boot("-serial", "unix:live"), want: "-serial unix:live: in use by another process"},
		{args: boot("-serial", "unix:busy"), want: "-serial unix:busy: exists and is not a socket"},
		{args: boot("-serial", "unix:no/such"), want: "-serial unix:no/such: no: no such file or directory"},

		{args: boot("-disk", ""), want: "-disk : needs a path (-disk PATH,readonly)"},
		{args: boot("-disk", "missing"), want: "-disk missing: no such file or directory"},
		{args: boot("-disk", "dir"), want: "-disk dir: is a directory"},
		{args: boot("-disk", "empty"), want: "-disk empty: is empty"},
		{args: boot("-disk", "fifo"), want: "-disk fifo: neither a file nor a block device"},
		{args: boot("-disk", "locked"), want: "-disk locked: in use by another process or disk: an image can have one writer, or several readers"},
		{args: boot("-disk", "disk", "-disk", "disk"), want: "-disk disk: in use by another process or disk: an image can have one writer, or several readers"},
		{args: boot("-disk", "disk,read-only"), want: `-disk disk,read-only: "read-only": no such setting (there are readonly, serial, id, queues, cache, discard, format, snapshot)`},
		{args: boot("-disk", "disk,readonly=maybe"), want: "-disk disk,readonly=maybe: readonly=maybe: not on or off"},
		{args: boot("-disk", "disk,queues=0"), want: "-disk disk,queues=0: queues=0: not a number from 1 to 64"},
		{args: boot("-disk", "disk,queues=1,queues=2"), want: "-disk disk,queues=1,queues=2: queues: given twice"},
		{args: boot("-disk", "disk,cache=fast"), want: "-disk disk,cache=fast: cache=fast: not one of writeback, none, unsafe"},
		{args: boot("-disk", "disk,serial=123456789012345678901"), want: "-disk disk,serial=123456789012345678901: serial=123456789012345678901: 21 bytes, at most 20"},
		{args: boot("-disk", "disk,format=vmdk"), want: "-disk disk,format=vmdk: format=vmdk: not one of raw, qcow2"},
		{args: boot("-disk", "disk,format=qcow2"), want: "-disk disk: not a qcow2 image"},
		{args: boot("-name", "my_vm"), want: "-name my_vm: not a name (use at most 63 letters, digits and hyphens)"},
		{args: boot("-disk", "a,id=x", "-disk", "b,id=x"), want: "-disk b,id=x: id=x: another disk has it"},
		{args: boot("-disk", "disk"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
		{args: boot("-net", "bridge"), want: "-net bridge: not a network (use user, tap, stream=unix:PATH or none)"},
		{args: boot("-net", "stream="), want: "-net stream=: not a network (use user, tap, stream=unix:PATH or none)"},
		{args: boot("-net", "stream=unix:x,queues=2"), want: "-net stream=unix:x,queues=2: queues: is not for stream"},
		{args: boot("-net", "stream=unix:none"), want: "-net stream=unix:none: no such file or directory (nobody listens there: start passt --socket none first)"},
		{args: boot("-net", "stream=tcp:1"), want: "-net stream=tcp:1: not an address (use unix:PATH)"},
		{args: boot("-user", "Me"), want: "-user Me: not a name for a user (use small letters, digits, _ and -; root is one already)"},
		{args: boot("-user", "root"), want: "-user root: not a name for a user (use small letters, digits, _ and -; root is one already)"},
		{args: boot("-user", "me"), want: "-user me: could not log in without an -ssh-key (or a password, in a -cloud-init FILE)"},
		{args: boot("-ssh-key", "missing"), want: "-ssh-key missing: no such file or directory"},
		{args: boot("-ssh-key", "empty"), want: "-ssh-key empty: has no key in it"},
		{args: boot("-ssh-key", "u-root.cpio"), want: `-ssh-key u-root.cpio: "initial RAM disk": not a public key of SSH`},
		{args: boot("-hostname", "a.b"), want: "-hostname a.b: not a name (use at most 63 letters, digits and hyphens)"},
		{args: boot("-cloud-init", "missing"), want: "-cloud-init missing: no such file or directory"},
		{args: boot("-cloud-init", "dir"), want: "-cloud-init dir: is a directory"},
		{args: boot("-cloud-init", "u-root.cpio"), want: "-cloud-init u-root.cpio: cloud-init would not know what it is: its first line has to be #cloud-config, #!/bin/sh or the like"},
		{args: boot("-net", "user,queues=2"), want: "-net user,queues=2: queues: is not for user"},
		{args: boot("-net", "user", "-net", "user"), want: "-net user: only one network can be a user network"},
		{args: boot("-net", "user", "-net", "none"), want: "-net none: none goes with no other network"},
		{args: boot("-net", "user,subnet=fd00::/64"), want: "-net user,subnet=fd00::/64: subnet=fd00::/64: not an IPv4 network (use for example 10.0.2.0/24)"},
		{args: boot("-net", "user,subnet=10.0.2.0/30"), want: "-net user,subnet=10.0.2.0/30: network 10.0.2.0/30: not an IPv4 network of /8 to /27"},
		{args: boot("-p", "8080:80"), want: "-p 8080:80: needs -net user"},
		{args: boot("-net", "none", "-disk", "disk", "-p", "8080:80"), want: "-p 8080:80: needs -net user"},
		{args: boot("-net", "none", "-host-loopback"), want: "-host-loopback: needs -net user"},
		{args: boot("-net", "user", "-p", "http:80"), want: `-p http:80: port "http": not a number from 1 to 65535`},
		{args: boot("-net", "user", "-p", taken), want: "-p " + taken + ": address already in use (another program listens there: choose another port)"},
		{args: boot("-disk", "disk", "-p", taken), want: "-p " + taken + ": address already in use (another program listens there: choose another port)"},
		{args: boot("-net", "tap,mac=1:2"), want: "-net tap,mac=1:2: mac=1:2: not a unicast address (use for example 52:54:00:12:34:56)"},
		{args: boot("-net", "tap,mac=01:00:00:00:00:01"), want: "-net tap,mac=01:00:00:00:00:01: mac=01:00:00:00:00:01: not a unicast address (use for example 52:54:00:12:34:56)"},
		{args: boot("-net", "tap,mtu=10"), want: "-net tap,mtu=10: mtu=10: not a number from 68 to 65535"},
		{args: boot("-net", "tap,vhost=yes"), want: "-net tap,vhost=yes: vhost=yes: not one of auto, on, off"},
		{args: boot("-net", "tap,ifname=a-name-that-is-too-long"), want: `-net tap,ifname=a-name-that-is-too-long: interface name "a-name-that-is-too-long": at most 15 bytes`},
		{args: boot("-console", "modem"), want: "-console modem: not a serial target (use stdio, file:PATH, pty, unix:PATH or none)"},
		{args: boot("-console", "unix:live"), want: "-console unix:live: in use by another process"},
		{args: boot("-console", "stdio", "-serial", "stdio"), want: "-serial stdio and -console stdio: only one of them can be"},
		{args: boot("-console", "unix:new"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
		{args: boot("-balloon=much"), want: "-balloon much: not a size (use for example 512M or 2G)"},
		{args: boot("-vsock", "cid=3"), want: "-vsock cid=3: needs a path (-vsock path=PATH)"},
		{args: boot("-vsock", "path=new,cid=2"), want: "-vsock path=new,cid=2: cid=2: not a number from 3 to 4294967294"},
		{args: boot("-vsock", "path=live"), want: "-vsock path=live: in use by another process"},
		{args: boot("-vsock", "path=new"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},

		// What was opened before the machine refused goes again.
		{args: boot("-serial", "file:new"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
		{args: boot("-serial", "unix:new"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
		{args: boot("-serial", "pty"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
		{args: boot("-serial", "none"), refuse: refused("Kernel", "bad"), want: "-kernel bzImage: bad"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			p := newTestProcess(t)
			p.refuse = tt.refuse
			descriptors := list(t, "/proc/self/fd")
			require.Equal(t, statusMistake, p.run(tt.args))
			require.Equal(t, "vmm: "+tt.want+"\n", p.stderr.String())
			require.Empty(t, p.output(t))
			require.Equal(t, before, list(t))
			require.Len(t, list(t, "/proc/self/fd"), len(descriptors), "leaked a descriptor")
		})
	}
	t.Run("a file of somebody else's", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root may read everything: run the tests as another user")
		}
		p := newTestProcess(t)
		require.Equal(t, statusMistake, p.run([]string{"-kernel", "secret"}))
		require.Equal(t, "vmm: -kernel secret: permission denied\n", p.stderr.String())
	})
}

// list returns the names in dir, by default the current one.
func list(t *testing.T, dir ...string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(append(dir, ".")[0])
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestHostThatCannot(t *testing.T) {
	inFiles(t)
	p := newTestProcess(t)
	p.refuse = &fs.PathError{Op: "open", Path: "/dev/kvm", Err: unix.EACCES}
	require.Equal(t, statusFailed, p.run([]string{"-kernel", "bzImage", "-serial", "file:log"}))
	require.Equal(t, "vmm: open /dev/kvm: permission denied (\"vmm probe\" tells what this host lacks)\n", p.stderr.String())
	require.NoFileExists(t, "log")
}
