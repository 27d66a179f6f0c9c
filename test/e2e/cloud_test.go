package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// outside is an address of the host's that is none of its loopback interface's own, and so one that guests may reach.
const outside = "198.51.100.1"

// cloudHost returns a host of the test's own, and the image of a whole Debian on it, which can only be read.
func cloudHost(t *testing.T) (h *host, image string) {
	t.Helper()
	h = ownHost(t) // whose processor the lab below has, as nothing else runs there meanwhile
	h.need(t, "ssh", "wrk", "python3")
	image, err := lab.CloudImage(t.Context(), root)
	require.NoError(t, err)
	if !h.emulated() {
		return h, image
	}
	l, err := lab.Start(context.Background(), lab.Config{Files: h.files, Disk: shared.rootfs, GuestDisk: image})
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return &host{runner: l, files: h.files, lab: l}, lab.GuestDisk
}

// TestCloudImage has a person take a whole Debian from its disk image: without a kernel to find, without root, with a network,
// and by the second boot still the same machine.
func TestCloudImage(t *testing.T) {
	t.Parallel()
	if withQEMU() {
		t.Skip("is about what vmm finds on a disk by itself: run without " + monitorVariable + "=qemu")
	}
	h, image := cloudHost(t)
	dir := strings.TrimSpace(h.output(t, "mktemp -d -p /var/tmp"))
	t.Cleanup(func() { h.cleanUp("rm -rf " + dir) })
	disk := dir + "/box.qcow2"
	h.output(t, fmt.Sprintf("ip address add %s/32 dev lo; sysctl -qw net.ipv4.ping_group_range='0 0'; ssh-keygen -q -t ed25519 -N '' -f %s/key", outside, dir))
	t.Cleanup(func() { h.cleanUp("ip address del " + outside + "/32 dev lo") })
	h.output(t, fmt.Sprintf("%s image create -q -f qcow2 -b %s -F qcow2 %s 3G", h.vmm(), image, disk))
	// As many bytes that nobody can have guessed, and a server of files that listens on that address only; and one on loopback.
	h.output(t, "mkdir "+dir+"/www; head -c "+strconv.Itoa(times(1<<20, 200<<20))+" /dev/urandom >"+dir+"/www/big")
	sum := strings.Fields(h.output(t, "sha256sum "+dir+"/www/big"))[0]
	h.background(t, "serving", fmt.Sprintf("cd %s/www; busybox httpd -p %s:8000; busybox httpd -p 127.0.0.1:8001; echo serving; exec sleep 100000", dir, outside))
	t.Cleanup(func() { h.cleanUp("pkill -f 'busybox [h]ttpd'") })

	command := []string{
		h.vmm(), "-disk", disk, "-mem", "1G", "-append", "quiet", "-name", "box", "-user", "me", "-ssh-key", dir + "/key.pub", "-p", "127.0.0.1:2222:22", "-p", "127.0.0.1:8080:80",
	}
	const ssh = "ssh -p 2222 -i %[1]s/key -o UserKnownHostsFile=%[1]s/known -o StrictHostKeyChecking=%[2]s -o ConnectTimeout=60 me@127.0.0.1 "
	var p *process
	in := func(script string) string {
		t.Helper()
		p.alive()
		return h.output(t, fmt.Sprintf(ssh, dir, "yes")+"'"+script+"'")
	}
	powerOff := func() {
		t.Helper()
		h.output(t, fmt.Sprintf(ssh, dir, "yes")+"sudo systemctl poweroff || true") // which may be faster than SSH's goodbye
		require.Zero(t, p.wait())
		h.output(t, h.vmm()+" image check "+disk)
	}
	boot := func() {
		t.Helper()
		p = h.start(t, command...)
		// In steps: the whole takes longer than a process may be silent to the test. The kernel talks into the prompt.
		for _, text := range []string{"running 'init-local'", "running 'init'", "login: "} {
			p.expect(text)
		}
		// A login prompt and an SSH server come at about the same time.
		h.output(t, "until "+fmt.Sprintf(ssh, dir, "accept-new")+"true 2>"+dir+"/error; do\n"+
			"if grep -qi verification "+dir+"/error || ! kill -0 "+p.pid+"; then cat "+dir+"/error >&2; exit 1; fi; sleep 1; done")
		require.Equal(t, "running\n", in("systemctl is-system-running --wait || systemctl --failed"))
	}
	boot()
	require.Contains(t, in("cloud-init status --wait"), "status: done")
	require.Empty(t, in("sudo grep -h WARNING /var/log/cloud-init.log || true"))
	require.Equal(t, "box\nme\nroot\n", in("hostname; whoami; sudo whoami"))
	require.Equal(t, "10.0.2.15", strings.Fields(in("hostname -I"))[0])
	require.Equal(t, "nameserver 10.0.2.3\n", in("resolvectl dns >/dev/null; sed s/,.*// /run/systemd/resolve/resolv.conf | grep ^nameserver"))
	require.Regexp(t, `^ *2\.[89]G`, in("findmnt -no SIZE /"), "the file system has grown to the disk's new size")

	if !long() {
		// The rest takes ten more minutes on an emulated processor.
		powerOff()
		return
	}
	require.Equal(t, sum, strings.Fields(in("wget -qO- http://" + outside + ":8000/big | sha256sum"))[0])
	require.Contains(t, in("ping -c 2 "+outside), " 0% packet loss")
	require.Equal(t, "closed\n", in("wget -q -T 10 -t 1 -O /dev/null http://10.0.2.2:8001/big || echo closed"), "the host's loopback is not for the guest")

	in("mkdir site; echo hello from the guest >site/index.html; sudo systemd-run -q --unit=web python3 -m http.server -d $PWD/site 80; until wget -qO- http://127.0.0.1/ >/dev/null; do sleep 0.5; done")
	p.alive()
	load := h.output(t, "wrk -t 1 -c 8 -d 10s --timeout 60s http://127.0.0.1:8080/")
	require.NotContains(t, load, "Socket errors", load)
	require.NotContains(t, load, "Non-2xx", load)
	requests := regexp.MustCompile(`(?m)^\s*(\d+) requests in`).FindStringSubmatch(load)
	require.NotNil(t, requests, load)
	require.NotEqual(t, "0", requests[1], load)
	require.Equal(t, "hello from the guest\n", h.output(t, "wget -qO- http://127.0.0.1:8080/"))
	in("echo kept >kept")
	powerOff()

	// The same machine again: it has its key, its user and its files.
	boot()
	require.Equal(t, "kept\n", in("cat kept"))
	require.NotContains(t, in("journalctl -b -k -q"), "recovery", "the file system was not clean")
	p.signal("TERM")
	require.Zero(t, p.wait())
	h.output(t, h.vmm()+" image check "+disk)
	raw := h.dir(t) + "/raw"
	t.Cleanup(func() { h.cleanUp("rm -f " + raw) })
	h.output(t, h.vmm()+" image convert "+disk+" "+raw)
	h.output(t, fmt.Sprintf("e2fsck -fn '%s?offset=%d'", raw, 68<<20))
}
