package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"

	"vmm/container/initrd"
	"vmm/container/oci"
	"vmm/kernel"
	"vmm/test/lab"
)

// registryAddress is that of the registry on the host of a test.
const registryAddress = "127.0.0.1:5000"

// containerHost returns a host with a kernel for containers and a registry that has the images, and what runs vmm on it.
func containerHost(t *testing.T, images map[string]v1.Image) (h *host, vmm string) {
	t.Helper()
	h = ownHost(t)
	h.needDisk(t)
	dir := t.TempDir()
	k, err := kernel.Cloud(t.Context(), "6.1")
	require.NoError(t, err)
	modules, err := k.Load(append(initrd.Modules, "af_packet")...)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "kernel", "modules"), 0o755))
	for _, m := range modules {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel", "modules", m.Name+".ko"), m.Data, 0o644))
	}
	builtin, err := os.ReadFile(filepath.Join(k.Modules, "modules.builtin"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel", "modules", "modules.builtin"), builtin, 0o644))
	elf, err := os.ReadFile(k.ELF)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel", "vmlinux"), elf, 0o644))

	l, err := layout.Write(filepath.Join(dir, "images"), empty.Index)
	require.NoError(t, err)
	for name, img := range images {
		require.NoError(t, l.AppendImage(img, layout.WithAnnotations(map[string]string{oci.RefName: name})))
	}
	registry, err := lab.Registry(t.Context())
	require.NoError(t, err)
	h.background(t, "serving", h.carry(t, registry)+" "+registryAddress+" "+h.carry(t, filepath.Join(dir, "images")))

	state := h.dir(t)
	script := fmt.Sprintf("#!/bin/sh\nexport XDG_CACHE_HOME=%[1]s/cache XDG_STATE_HOME=%[1]s/state\nword=$1\nshift\n[ \"$word\" != run ] || set -- --kernel %[2]s/vmlinux \"$@\"\nexec %[3]s \"$word\" \"$@\"\n",
		state, h.carry(t, filepath.Join(dir, "kernel")), h.vmm())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vmm"), []byte(script), 0o755))
	vmm = h.carry(t, filepath.Join(dir, "vmm"))
	h.output(t, "chmod +x "+vmm)
	t.Cleanup(func() { h.cleanUp("for c in $(" + vmm + " ps -aq); do " + vmm + " rm -f $c; done") })
	return h, vmm
}

// TestContainer has a person who knows Docker run containers, each of which has a kernel of its own.
func TestContainer(t *testing.T) {
	t.Parallel()
	if withQEMU() {
		t.Skip("is about words of vmm's own: run without " + monitorVariable + "=qemu")
	}
	busybox, _, err := lab.BusyboxImage(t.Context())
	require.NoError(t, err)
	h, vmm := containerHost(t, map[string]v1.Image{"busybox": busybox})
	const image = registryAddress + "/busybox"
	// said runs a script in which the word vmm is the program, and returns all that it prints, and then its status.
	said := func(t *testing.T, script string) string {
		t.Helper()
		return h.output(t, "vmm() { "+vmm+" \"$@\"; }; run() { vmm run \"$@\"; }; ("+script+") 2>&1; echo status $?")
	}

	t.Run("status and streams", func(t *testing.T) {
		require.Contains(t, said(t, "vmm pull "+image), "sha256:")
		require.Equal(t, "OUT\nstatus 7\n", said(t, "run --rm "+image+" sh -c 'echo out | tr a-z A-Z; echo err >&2; exit 7' 2>/dev/null"))
		require.Equal(t, "err\nstatus 0\n", said(t, "run --rm "+image+" sh -c 'echo out; echo err >&2' >/dev/null"))
		require.Equal(t, "a/\na/b\nstatus 0\n", said(t, "cd $(mktemp -d); mkdir a; touch a/b; tar c a | run -i --rm "+image+" tar t"))
		require.Equal(t, "788895\nstatus 0\n", said(t, "run --rm "+image+" seq 1 200000 | (sleep 1; head -c 500000 >/dev/null; sleep 2; wc -c)"), "a slow reader gets all")
		require.Equal(t, "status 0\n", said(t, "vmm ps -aq"), "--rm leaves nothing")
	})
	t.Run("what it is like inside", func(t *testing.T) {
		got := said(t, "A=1 B=2; export A; echo C=3 >/tmp/env; run --rm -e A -e D=4 --env-file /tmp/env -w /work/dir -u user -h box --tmpfs /mem:size=1m --cpus 2 -m 256M "+image+
			` sh -c 'echo $A $C $D $COLOUR; pwd; id -u; id -G; hostname; echo ~; cat /new; ls /old; grep -c ^processor /proc/cpuinfo; df /mem | grep -c 1024; ls -ld /tmp | head -c 10'`)
		require.Equal(t, "1 3 4 blue\n/work/dir\n1000\n1000 2000\nbox\n/home/user\nof the upper layer\nls: /old: No such file or directory\n2\n1\ndrwxrwxrwtstatus 0\n", got)
		require.Equal(t, "sh: can't create /x: Read-only file system\ntmp\nstatus 0\n", said(t, "run --rm --read-only --tmpfs /fresh "+image+" sh -c 'echo >/x; echo tmp >/fresh/x; cat /fresh/x'"))
	})
	t.Run("orphans", func(t *testing.T) {
		require.Equal(t, "0\nstatus 1\n", said(t, `run --rm `+image+` sh -c '(sleep 0.2 &); sleep 1; ps | grep -c "\[sleep\]"'`), "somebody has reaped it")
	})
	t.Run("mistakes", func(t *testing.T) {
		require.Equal(t, "vmm: \"nosuch\": no such program in the image's PATH\nstatus 127\n", said(t, "run --rm "+image+" nosuch"))
		require.Equal(t, "vmm: \"/etc/passwd\": may not be run (its mode is -rw-r--r--)\nstatus 126\n", said(t, "run --rm "+image+" /etc/passwd"))
		require.Regexp(t, `^vmm: pulling .*\nvmm: pull .*/nosuch: .*NAME_UNKNOWN.*\nstatus 125\n$`, said(t, "run --rm "+registryAddress+"/nosuch"))
		require.Regexp(t, `^vmm: -p 127.0.0.1:5000:80: .*in use.*\nstatus 125\n$`, said(t, "run -d --rm -p 127.0.0.1:5000:80 "+image))
		require.Equal(t, "status 0\n", said(t, "vmm ps -aq"), "nothing half-made is left")
	})
	t.Run("in the background", func(t *testing.T) {
		require.Regexp(t, `^[0-9a-f]{12}\nstatus 0\n$`, said(t, "run -d --name web -p 127.0.0.1:8080:80 "+image+" sh -c '[ -e /www ] || { mkdir /www; echo page >/www/index.html; }; echo serving; exec httpd -f -p 80 -h /www'"))
		require.Equal(t, "page\nstatus 0\n", said(t, "until wget -qO /dev/null http://127.0.0.1:8080/; do sleep 0.1; done 2>/dev/null; wget -qO- http://127.0.0.1:8080/"))
		require.Regexp(t, `web\n.*status 0\n$`, said(t, "vmm ps | tail -1"))
		require.Equal(t, "serving\nstatus 0\n", said(t, "vmm logs web"))
		require.Contains(t, said(t, "run -d --name web "+image), `name "web": container`)
		require.Equal(t, "user\nstatus 3\n", said(t, "vmm exec -u user -i web sh -c 'id -un; sync; exit 3' </dev/null"))
		require.Equal(t, "143\nstatus 0\n", said(t, "vmm stop web >/dev/null; vmm wait web"))
		require.Regexp(t, `Exited \(143\)`, said(t, "vmm ps -a"))
		require.Equal(t, "web\npage\nstatus 0\n", said(t, "vmm start web; vmm exec web cat /www/index.html"))
		// The power fails: what was synced is there.
		require.Equal(t, "kept\nstatus 0\n", said(t, "vmm exec web sh -c 'echo kept >/kept; sync'; kill -9 $(pgrep -f '[m]onitor-container'); vmm wait web >/dev/null; vmm ps -a | grep -q 'Exited (255)' && vmm start web >/dev/null && vmm exec web cat /kept"))
		require.Contains(t, said(t, "vmm rmi "+image), "container web is made of it")
		require.Equal(t, "web\nstatus 0\n", said(t, "vmm rm -f web"))
	})
	t.Run("terminal", func(t *testing.T) {
		if !h.emulated() {
			t.Skip("only the lab has terminals: it is what runs where /dev/kvm runs no stock kernel (vmm probe)")
		}
		resize := make(chan lab.Size, 1)
		p := h.startOn(t, &lab.Size{Rows: 33, Cols: 111}, resize, vmm, "run", "-it", "--rm", image)
		p.expect("/ # ")
		p.send("stty size; tty\n")
		p.expect("33 111")
		resize <- lab.Size{Rows: 44, Cols: 99}
		p.send("until stty size | grep -q '44 99'; do sleep 0.1; done; echo re''sized; exit 5\n")
		p.expect("resized")
		require.Equal(t, 5, p.wait())
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		p := h.start(t, vmm, "run", "--rm", image, "sh", "-c", "trap 'echo caught; exit 9' INT; echo waiting; while :; do sleep 0.1; done")
		p.expect("waiting")
		p.signal("INT")
		p.expect("caught")
		require.Equal(t, 9, p.wait())
	})
	t.Run("many at once", func(t *testing.T) {
		n := times(3, 20)
		var all sync.WaitGroup
		outputs := make([]string, n)
		begin := time.Now()
		for i := range n {
			all.Go(func() {
				outputs[i] = said(t, fmt.Sprintf("run --rm -m 128M %s sh -c 'echo %d >/x; cat /x'", image, i))
			})
		}
		all.Wait()
		t.Logf("%d containers in %v", n, time.Since(begin).Round(time.Second))
		for i := range n {
			require.Equal(t, fmt.Sprintf("%d\nstatus 0\n", i), outputs[i])
		}
		require.Equal(t, "status 0\n", said(t, "vmm ps -aq"))
	})
	require.Contains(t, said(t, "vmm images; vmm rmi "+image), "Deleted: sha256:")
}
