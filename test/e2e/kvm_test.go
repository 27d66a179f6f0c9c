package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/kernel"
	"vmm/machine/probe"
)

// TestPayloads runs the tests of tiny guests, which `make test-unit` runs on this machine's KVM, on the one that runs
// stock kernels.
func TestPayloads(t *testing.T) {
	h := kvmHost(t)
	for _, pkg := range []string{"kvm", "machine", "machine/probe"} {
		t.Run(pkg, func(t *testing.T) {
			binary := h.carry(t, gocmd(t, filepath.Base(pkg)+".test", "test", "-c", "-o", "OUT", "./"+pkg))
			testdata := h.carry(t, filepath.Join(root, pkg, "testdata"))
			script := "cd " + filepath.Dir(testdata) + " && REQUIRE_KVM=1 exec " + binary + " -test.v"
			p := h.start(t, "/bin/sh", "-c", script)
			require.Zero(t, p.wait())
			require.Contains(t, p.out.from(0), "\nPASS\n")
			for line := range strings.Lines(p.out.from(0)) {
				if strings.Contains(line, "--- SKIP") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}

func TestProbe(t *testing.T) {
	h := kvmHost(t)
	t.Run("text", func(t *testing.T) {
		text := h.output(t, h.vmm()+" probe")
		require.Regexp(t, `(?m)^kernel mode +hardware$`, text)
		require.Contains(t, text, "Virtual machines with stock kernels run here.")
	})
	t.Run("JSON", func(t *testing.T) {
		var report probe.Report
		require.NoError(t, json.Unmarshal([]byte(h.output(t, h.vmm()+" probe -json")), &report))
		require.Equal(t, probe.Hardware, report.KernelMode)
		require.True(t, report.OK())
		require.NotEmpty(t, report.Capabilities)
	})
}

// TestEmulatingKVM boots a stock kernel where KVM cannot run it, and looks at what the user is told.
func TestEmulatingKVM(t *testing.T) {
	if mode := probe.Host("/dev/kvm").KernelMode; mode != probe.Emulated {
		t.Skipf("needs a KVM that emulates kernel code; here its kernel mode is: %v", mode)
	}
	h := machineHere(t)
	// 6.12 comes to such an instruction at once; 6.1 works for minutes before.
	p := h.start(t, h.vmm(), "-kernel", h.kernel("vmlinuz-6.12"), "-initrd", h.initramfs())
	require.Equal(t, 1, p.wait())
	told := p.errors.from(0)
	require.Regexp(t, `(?m)^vmm: vCPU 0: KVM internal error: emulation failure at RIP 0x[0-9a-f]+: this host's KVM emulates the `+
		`guest's kernel code and lacks this instruction, so that it cannot run stock kernels`, told)
	require.Regexp(t, `(?m)^instruction: ([0-9a-f]{2} )*[0-9a-f]{2}$`, told)
	require.Regexp(t, `(?m)^RIP [0-9a-f]{16}  RFLAGS [0-9a-f]{8}$`, told)
	require.Regexp(t, `(?m)^RAX [0-9a-f]{16}  RBX [0-9a-f]{16}`, told)
}

// TestMemtest boots memtest86+, a program in a bzImage's form that is no Linux: its 64-bit form by the 64-bit protocol,
// its 32-bit form by the 32-bit one.
func TestMemtest(t *testing.T) {
	t.Parallel()
	h := ownHost(t)
	dir, err := kernel.Package(t.Context(), "memtest86+")
	require.NoError(t, err)
	for _, bits := range []string{"x64", "ia32"} {
		t.Run(bits, func(t *testing.T) {
			image := h.carry(t, filepath.Join(dir, "boot/memtest86+"+bits+".bin"))
			p := h.start(t, h.vmm(), "-kernel", image, "-cmdline", "console=ttyS0,115200", "-mem", "32M")
			p.expect("Memtest86+")
			p.expect("Pass")
			p.signal("TERM")
			p.signal("TERM")
			require.Equal(t, 128+15, p.wait())
		})
	}
}
