package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"vmm/cmd/vmm/internal/console"
	"vmm/machine"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	console.GuardMain()
	childMain()
	os.Exit(m.Run())
}

// fakeVM stands for the machine.
type fakeVM struct {
	cfg     machine.Config
	run     func(ctx context.Context, vm *fakeVM) (machine.Exit, error)
	pressed chan struct{} // receives each press of the power button
	breaks  atomic.Int32
	closed  bool
}

func (f *fakeVM) Run(ctx context.Context) (machine.Exit, error) { return f.run(ctx, f) }
func (f *fakeVM) PowerButton()                                  { f.pressed <- struct{}{} }
func (f *fakeVM) SendBreak()                                    { f.breaks.Add(1) }
func (f *fakeVM) Stats() machine.Stats {
	return machine.Stats{
		Exits:     map[string]uint64{"I/O": 1200, "MMIO": 7, "halt": 7},
		Unclaimed: 3,
		Ports:     []machine.AccessCount{{Addr: 0x3f8, Port: true, Count: 1190}, {Addr: 0x80, Port: true, Count: 10}},
		MMIO:      []machine.AccessCount{{Addr: 0xfed40000, Count: 7}},
		Holes:     []machine.AccessCount{{Addr: 0xfed40000, Count: 2}, {Addr: 0x2f8, Port: true, Count: 1}},
	}
}

func (f *fakeVM) Close() error {
	f.closed = true
	if f.cfg.Serial != nil {
		return f.cfg.Serial.Close()
	}
	return nil
}

// powerOff is a guest that does nothing else.
func powerOff(context.Context, *fakeVM) (machine.Exit, error) {
	return machine.Exit{Reason: machine.PowerOff}, nil
}

// testProcess is a process with files of its own.
type testProcess struct {
	*process
	vm     *fakeVM
	refuse error // what newMachine returns
	stderr bytes.Buffer
}

func newTestProcess(t *testing.T) *testProcess {
	t.Helper()
	stdin, err := os.Open(os.DevNull)
	require.NoError(t, err)
	stdout, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	require.NoError(t, err)
	t.Cleanup(func() { stdin.Close(); stdout.Close() })
	p := &testProcess{vm: &fakeVM{run: powerOff, pressed: make(chan struct{}, 8)}}
	p.process = &process{stdin: stdin, stdout: stdout, stderr: &p.stderr, newMachine: func(cfg machine.Config) (virtualMachine, error) {
		if p.refuse != nil {
			return nil, p.refuse
		}
		p.vm.cfg = cfg
		return p.vm, nil
	}}
	return p
}

func (p *testProcess) output(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(p.stdout.Name())
	require.NoError(t, err)
	return string(text)
}

// inFiles changes to a directory with a kernel and an initrd.
func inFiles(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("bzImage", []byte("kernel"), 0o600))
	require.NoError(t, os.WriteFile("u-root.cpio", []byte("initial RAM disk"), 0o600))
}

func TestHelp(t *testing.T) {
	const golden = "testdata/help.txt"
	for _, flag := range []string{"-help", "--help", "-h"} {
		p := newTestProcess(t)
		require.Equal(t, statusOK, p.run([]string{flag}))
		require.Empty(t, p.stderr.String())
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(p.output(t)), 0o600))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), p.output(t))
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	var o bootOptions
	text := helpText()
	o.flags().VisitAll(func(f *pflag.Flag) { require.Contains(t, text, "\n  -"+f.Name+" ") })
}

func TestVersion(t *testing.T) {
	p := newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-version"}))
	require.Regexp(t, `^vmm \S+ \(go1\.\S+.*\)\n$`, p.output(t))
}

func TestFullStandardOutput(t *testing.T) {
	p := newTestProcess(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	p.stdout = full
	require.Equal(t, statusFailed, p.run([]string{"-help"}))
	require.Contains(t, p.stderr.String(), "no space left on device")
}

func TestConfig(t *testing.T) {
	inFiles(t)
	for _, tt := range []struct {
		name string
		args []string
		want machine.Config
	}{
		{
			name: "as in the manual",
			args: []string{"-kernel", "bzImage", "-initrd", "u-root.cpio", "-mem", "1G"},
			want: machine.Config{Cmdline: machine.DefaultCmdline, Memory: 1 << 30, CPUs: 1},
		},
		{
			name: "all",
			args: []string{
				"--kernel=bzImage", "--initrd=u-root.cpio", "-mem=6g", "-cpus", "4", "-append", "-x quiet", "-serial", "none",
				"-reboot", "-debug-exit", "-debug",
			},
			want: machine.Config{
				Cmdline: machine.DefaultCmdline + " -x quiet", Memory: 6 << 30, CPUs: 4,
				RestartOnReset: true, DebugExit: true, Trace: true,
			},
		},
		{
			name: "a command line of one's own",
			args: []string{"-kernel", "bzImage", "-initrd", "u-root.cpio", "-cmdline", "root=/dev/vda", "-no-reboot"},
			want: machine.Config{Cmdline: "root=/dev/vda", Memory: machine.DefaultMemory, CPUs: 1},
		},
		{
			name: "an empty command line, with an addition",
			args: []string{"-kernel", "bzImage", "-initrd", "u-root.cpio", "-cmdline=", "-append", "quiet"},
			want: machine.Config{Cmdline: "quiet", Memory: machine.DefaultMemory, CPUs: 1},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestProcess(t)
			var images string
			p.vm.run = func(_ context.Context, vm *fakeVM) (machine.Exit, error) {
				images = readImage(vm.cfg.Kernel) + ", " + readImage(vm.cfg.Initrd)
				return machine.Exit{Reason: machine.PowerOff}, nil
			}
			require.Equal(t, statusOK, p.run(tt.args), p.stderr.String())
			require.True(t, p.vm.closed)
			require.Equal(t, "kernel, initial RAM disk", images)
			got := p.vm.cfg
			got.Kernel, got.Initrd, got.Serial = nil, nil, nil
			require.Equal(t, tt.want, got)
		})
	}
}

func readImage(image machine.Image) string {
	text, err := io.ReadAll(io.NewSectionReader(image, 0, image.Size()))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func TestExitStatus(t *testing.T) {
	inFiles(t)
	for _, tt := range []struct {
		name   string
		exit   machine.Exit
		err    error
		status int
		stderr string
	}{
		{name: "power off", exit: machine.Exit{Reason: machine.PowerOff}},
		{name: "reset", exit: machine.Exit{Reason: machine.Reset, Source: "triple fault"}},
		{name: "debug exit", exit: machine.Exit{Reason: machine.DebugExit, Code: 42}, status: 42},
		{name: "debug exit with a great number", exit: machine.Exit{Reason: machine.DebugExit, Code: 0x100}, status: 255},
		{name: "error", err: errors.New("read serial line: input/output error"), status: 1, stderr: "vmm: read serial line: input/output error\n"},
		{
			name:   "crash",
			err:    &machine.CrashError{What: "KVM internal error", Instruction: []byte{0x0f, 0xc7}},
			status: 1,
			stderr: "vmm: vCPU 0: KVM internal error\ninstruction: 0f c7\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestProcess(t)
			p.vm.run = func(context.Context, *fakeVM) (machine.Exit, error) { return tt.exit, tt.err }
			require.Equal(t, tt.status, p.run([]string{"-kernel", "bzImage"}))
			require.Equal(t, tt.stderr, p.stderr.String())
			require.True(t, p.vm.closed)
		})
	}
}

func TestDebugPrintsStatistics(t *testing.T) {
	inFiles(t)
	p := newTestProcess(t)
	require.Equal(t, statusOK, p.run([]string{"-kernel", "bzImage", "-debug"}))
	require.Equal(t, `vmm: exits to user space by reason:
          1200  I/O
             7  MMIO
             7  halt
vmm: accesses by port:
          1190  port 0x3f8
            10  port 0x80
vmm: accesses by address:
             7  address 0xfed40000
vmm: accesses to missing hardware, 3 in all:
             2  address 0xfed40000
             1  port 0x2f8
`, p.stderr.String())
}

func TestProbe(t *testing.T) {
	p := newTestProcess(t)
	status := p.run([]string{"probe"})
	require.Contains(t, []int{statusOK, statusFailed}, status)
	require.Contains(t, p.output(t), "/dev/kvm")

	p = newTestProcess(t)
	require.Equal(t, status, p.run([]string{"probe", "--json"}))
	require.True(t, json.Valid([]byte(p.output(t))), p.output(t))
	require.Contains(t, p.output(t), "/dev/kvm")

	p = newTestProcess(t)
	require.Equal(t, statusMistake, p.run([]string{"probe", "all"}))
	require.Equal(t, "vmm: \"all\": vmm probe takes no arguments\n", p.stderr.String())
}
