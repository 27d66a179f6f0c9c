package probe

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/kvmtest"
	"vmm/internal/leak"
	"vmm/kvm"
)

var update = flag.Bool("update", false, "write the golden files")

// The golden files are embedded, so that the test binary can be carried to another machine.
//
//go:embed testdata
var goldenFiles embed.FS

func TestMain(m *testing.M) { leak.Main(m) }

// fakeKVM has every capability but those that it lacks.
type fakeKVM struct {
	lacks   []kvm.Cap
	mode    Mode
	modeErr error
	extErr  error
	closed  *bool
}

func (k fakeKVM) Extension(c kvm.Cap) (int, error) {
	for _, l := range k.lacks {
		if c == l {
			return 0, nil
		}
	}
	switch c {
	case kvm.CapNRVCPUs:
		return 8, k.extErr
	case kvm.CapMaxVCPUs:
		return 1024, k.extErr
	case kvm.CapMaxVCPUID:
		return 4096, k.extErr
	case kvm.CapNRMemslots:
		return 32764, k.extErr
	}
	return 1, k.extErr
}

func (k fakeKVM) KernelMode() (Mode, error) { return k.mode, k.modeErr }

func (k fakeKVM) Close() error {
	*k.closed = true
	return nil
}

// fakeRoot imitates the files of a host.
func fakeRoot(cpuFlags string, device bool, modules ...string) fstest.MapFS {
	root := fstest.MapFS{
		"proc/cpuinfo": {Data: []byte("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Example CPU @ 2 GHz\n" +
			"flags\t\t: fpu " + cpuFlags + "\nbugs\t\t:\n\nprocessor\t: 1\nvendor_id\t: none\n\n")},
		"sys/module/loop/parameters/nested": {Data: []byte("Y\n")},
	}
	if device {
		root["dev/kvm"] = &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o660}
	}
	for _, m := range modules {
		name, nested, ok := strings.Cut(m, "=")
		if ok {
			root["sys/module/"+name+"/parameters/nested"] = &fstest.MapFile{Data: []byte(nested + "\n")}
		} else {
			root["sys/module/"+name] = &fstest.MapFile{Mode: fs.ModeDir}
		}
	}
	return root
}

func TestReport(t *testing.T) {
	failing := func(err error) error { return fmt.Errorf("open /dev/kvm: %w", err) }
	for _, c := range []struct {
		name    string
		root    fs.FS
		openErr error
		kvm     fakeKVM
		ok      bool
	}{
		{name: "good", ok: true, kvm: fakeKVM{mode: Hardware},
			root: fakeRoot("vmx", true, "kvm", "kvm_intel=Y")},
		{name: "good-optional-absent", ok: true, kvm: fakeKVM{mode: Hardware, lacks: []kvm.Cap{kvm.CapCoalescedPIO}},
			root: fakeRoot("svm hypervisor", true, "kvm", "kvm_amd=0")},
		{name: "emulated", kvm: fakeKVM{mode: Emulated},
			root: fakeRoot("hypervisor", true, "kvm", "kvm_pvm")},
		{name: "required-absent", kvm: fakeKVM{mode: Hardware, lacks: []kvm.Cap{kvm.CapIRQChip, kvm.CapImmediateExit}},
			root: fakeRoot("vmx", true, "kvm", "kvm_intel=N")},
		{name: "busy", kvm: fakeKVM{mode: Unknown, modeErr: fmt.Errorf("create vm: %w", unix.EBUSY)},
			root: fakeRoot("vmx", true, "kvm", "kvm_intel=Y")},
		{name: "trial-failed", kvm: fakeKVM{mode: Unknown, modeErr: errors.New("the trial of kernel mode ended oddly")},
			root: fakeRoot("vmx", true, "kvm", "kvm_intel=Y")},
		{name: "no-answer", kvm: fakeKVM{mode: Hardware, extErr: errors.New("check extension: failed")},
			root: fakeRoot("vmx", true, "kvm", "kvm_intel=Y")},
		{name: "module-intel", openErr: failing(unix.ENOENT), root: fakeRoot("vmx", false)},
		{name: "module-amd", openErr: failing(unix.ENODEV), root: fakeRoot("svm hypervisor", true, "kvm")},
		{name: "container", openErr: failing(unix.ENOENT), root: fakeRoot("vmx", false, "kvm", "kvm_intel=Y")},
		{name: "firmware", openErr: failing(unix.ENOENT), root: fakeRoot("sse2", false)},
		{name: "nested-off", openErr: failing(unix.ENOENT), root: fakeRoot("hypervisor", false)},
		{name: "permission", openErr: failing(unix.EACCES), root: fakeRoot("svm", true, "kvm", "kvm_amd=1")},
		{name: "version", openErr: failing(&kvm.VersionError{Version: 11}), root: fakeRoot("svm", true)},
		{name: "not-kvm", openErr: failing(unix.ENOTTY), root: fakeRoot("svm", true)},
		{name: "other", openErr: failing(unix.EIO), root: fakeRoot("svm", true)},
		{name: "no-proc-no-sys", openErr: failing(unix.ENOENT), root: fstest.MapFS{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			closed := false
			c.kvm.closed = &closed
			p := prober{root: c.root, open: func(path string) (system, error) {
				require.Equal(t, kvm.DefaultPath, path)
				if c.openErr != nil {
					return nil, c.openErr
				}
				return c.kvm, nil
			}}
			r := p.report(kvm.DefaultPath)
			require.Equal(t, c.ok, r.OK())
			require.Equal(t, c.openErr == nil, closed, "what opened is closed")

			var text bytes.Buffer
			require.NoError(t, r.WriteText(&text))
			golden(t, c.name+".txt", text.Bytes())
		})
	}
}

func TestJSON(t *testing.T) {
	closed := false
	p := prober{
		root: fakeRoot("vmx hypervisor", true, "kvm", "kvm_intel=Y"),
		open: func(string) (system, error) { return fakeKVM{mode: Emulated, closed: &closed}, nil },
	}
	r := p.report(kvm.DefaultPath)
	out, err := json.MarshalIndent(r, "", "  ")
	require.NoError(t, err)
	golden(t, "report.json", append(out, '\n'))

	var back Report
	require.NoError(t, json.Unmarshal(out, &back))
	require.Equal(t, r, back)

	p = prober{root: fstest.MapFS{}, open: func(string) (system, error) { return nil, unix.ENOENT }}
	out, err = json.Marshal(p.report(kvm.DefaultPath))
	require.NoError(t, err)
	require.NotContains(t, string(out), "null", "what is absent is an empty list")
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := path.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
		return
	}
	want, err := goldenFiles.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestWriteTextError(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	defer w.Close()
	require.ErrorIs(t, new(Report).WriteText(w), unix.EPIPE)
}

func TestHostWithoutKVM(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "kvm")
	r := Host(missing)
	require.False(t, r.OK())
	require.Equal(t, Device{Path: missing}, r.Device)
	require.Equal(t, Unknown, r.KernelMode)
	require.NotEmpty(t, r.CPU.Vendor)

	r = Host(os.DevNull)
	require.True(t, r.Device.Exists)
	require.False(t, r.Device.Opens)
	require.Equal(t, "crw-rw-rw-", r.Device.Mode)
}

func TestThisHost(t *testing.T) {
	kvmtest.Require(t)
	r := Host(kvm.DefaultPath)
	require.True(t, r.Device.Exists)
	require.True(t, r.Device.Opens)
	require.Equal(t, kvm.APIVersion, r.APIVersion)
	require.Positive(t, r.Limits.MaxVCPUs)
	require.Positive(t, r.Limits.Memslots)
	require.NotEmpty(t, r.Modules)
	for _, c := range r.Capabilities {
		require.True(t, c.Value > 0 || !c.Required, "%s", c.Name)
	}
	// A processor with virtualization has no reason to emulate.
	if r.CPU.Virtualization != "" {
		require.Equal(t, Hardware, r.KernelMode)
	}
	require.NotEqual(t, Unknown, r.KernelMode, "%v", r.Problems)
	require.Equal(t, r.KernelMode == Hardware, r.OK(), "%v", r.Problems)
	t.Logf("kernel mode: %s", r.KernelMode)
}

// TestKernelMode tries the telling instructions one by one: a KVM that emulates fails at each of them. It knows the
// simple ones anyway.
func TestKernelMode(t *testing.T) {
	kvmtest.Require(t)
	sys, err := kvm.Open(kvm.DefaultPath)
	require.NoError(t, err)
	defer func() { require.NoError(t, sys.Close()) }()
	want, err := KernelMode(sys)
	require.NoError(t, err)

	cpuid, err := sys.SupportedCPUID()
	require.NoError(t, err)
	mode, err := try(sys, cpuid, cmpxchg16b)
	require.NoError(t, err)
	require.Equal(t, want, mode)
	if hasXSAVE(cpuid) {
		mode, err = try(sys, cpuid, xrstor64)
		require.NoError(t, err)
		require.Equal(t, want, mode)
	}
	mode, err = try(sys, cpuid, []byte{0x90}) // nop
	require.NoError(t, err)
	require.Equal(t, Hardware, mode)
	mode, err = try(sys, cpuid, []byte{0x0F, 0x0B}) // ud2
	require.EqualError(t, err, "the trial of kernel mode ended with KVM_EXIT_SHUTDOWN")
	require.Equal(t, Unknown, mode)
}

func TestCapabilities(t *testing.T) {
	kvmtest.Require(t)
	sys, err := kvm.Open(kvm.DefaultPath)
	require.NoError(t, err)
	defer func() { require.NoError(t, sys.Close()) }()
	list, err := Capabilities(sys)
	require.NoError(t, err)
	require.Equal(t, Host(kvm.DefaultPath).Capabilities, list)
}

func TestKernelModeError(t *testing.T) {
	kvmtest.Require(t)
	sys, err := kvm.Open(kvm.DefaultPath)
	require.NoError(t, err)
	require.NoError(t, sys.Close())
	mode, err := KernelMode(sys)
	require.ErrorIs(t, err, unix.EBADF)
	require.Equal(t, Unknown, mode)
}
