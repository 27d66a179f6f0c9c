package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/container/oci"
)

// parseRun parses the arguments of vmm run.
func parseRun(t *testing.T, args ...string) (*runOptions, []string) {
	t.Helper()
	w := runWord()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	flags.SetInterspersed(!w.raw)
	o := w.flags(flags).(*runOptions)
	require.NoError(t, flags.Parse(args))
	return o, flags.Args()
}

// TestRunSpec makes of flags and an image's configuration what docker run would.
func TestRunSpec(t *testing.T) {
	t.Setenv("FROM_HERE", "here")
	file := filepath.Join(t.TempDir(), "env")
	require.NoError(t, os.WriteFile(file, []byte("# comment\n\nIN_FILE=a b\r\nFROM_HERE\nNOT_HERE\n"), 0o600))
	img := &oci.Image{ID: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0123", 16)}, Config: &v1.ConfigFile{Config: v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "LEVEL=1"}, WorkingDir: "/srv", User: "www", StopSignal: "SIGQUIT",
	}}}

	o, rest := parseRun(t, "image")
	spec, err := o.spec("image", img, rest[1:])
	require.NoError(t, err)
	require.Equal(t, []string{"/entry", "serve"}, spec.Args)
	require.Equal(t, []string{"PATH=/bin", "LEVEL=1"}, spec.Env)
	require.Equal(t, "/srv", spec.Dir)
	require.Equal(t, "www", spec.User)
	require.Equal(t, int(unix.SIGQUIT), spec.StopSignal)
	require.Equal(t, 10*time.Second, spec.StopTimeout)
	require.EqualValues(t, 1<<30, spec.Memory)
	require.Equal(t, 1, spec.CPUs)

	o, rest = parseRun(t, "-dit", "--rm", "-eLEVEL=2", "-e", "FROM_HERE", "--env-file", file, "-p8080:80", "-m512m", "--cpus=2", "-w", "/x", "-u0", "-h", "box", "--name=n",
		"--tmpfs", "/run:size=1m", "--tmpfs", "/tmp/", "--stop-timeout", "3", "--stop-signal", "9", "image", "-x", "--rm")
	require.Equal(t, []string{"image", "-x", "--rm"}, rest, "what follows the image is the command's")
	spec, err = o.spec("image", img, rest[1:])
	require.NoError(t, err)
	require.True(t, o.detach)
	require.True(t, spec.Stdin)
	require.True(t, spec.TTY)
	require.True(t, spec.AutoRemove)
	require.Equal(t, []string{"/entry", "-x", "--rm"}, spec.Args)
	require.Equal(t, []string{"PATH=/bin", "IN_FILE=a b", "LEVEL=2", "FROM_HERE=here"}, spec.Env)
	require.Equal(t, "/x", spec.Dir)
	require.Equal(t, "0", spec.User)
	require.Equal(t, "box", spec.Hostname)
	require.EqualValues(t, 512<<20, spec.Memory)
	require.Equal(t, map[string]string{"/run": "size=1m", "/tmp": ""}, spec.Tmpfs)
	require.Equal(t, 3*time.Second, spec.StopTimeout)
	require.Equal(t, 9, spec.StopSignal)
	require.Equal(t, "8080:80", shownPorts(&spec))

	o, rest = parseRun(t, "--entrypoint", "sh", "image", "-c", "ls")
	spec, err = o.spec("image", img, rest[1:])
	require.NoError(t, err)
	require.Equal(t, []string{"sh", "-c", "ls"}, spec.Args, "an entrypoint replaces the image's command too")
	o, _ = parseRun(t, "--entrypoint=", "image")
	_, err = o.spec("image", img, nil)
	require.ErrorContains(t, err, "run image: the image has no command of its own")
}

// TestRunMistakes has one line for each, with the flag and the value.
func TestRunMistakes(t *testing.T) {
	img := &oci.Image{Config: &v1.ConfigFile{Config: v1.Config{Cmd: []string{"sh"}}}}
	for want, args := range map[string][]string{
		"--tmpfs run: not an absolute path":               {"--tmpfs", "run"},
		"--cpus 0: not 1 to 64":                           {"--cpus", "0"},
		"--stop-timeout -1: not a time":                   {"--stop-timeout", "-1"},
		"--stop-signal NOPE: no such signal":              {"--stop-signal", "NOPE"},
		`variable "=x": has no name`:                      {"-e", "=x"},
		"--env-file /no/where: no such file or directory": {"--env-file", "/no/where"},
	} {
		o, _ := parseRun(t, append(args, "image")...)
		_, err := o.spec("image", img, nil)
		require.EqualError(t, err, want)
		require.ErrorAs(t, err, new(wordMistake))
	}
}

// TestWords runs words that need no machine, in a home of their own.
func TestWords(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for _, c := range []struct {
		args   string
		status int
		want   string // on both streams
	}{
		{"ps", 0, "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES\n"},
		{"images", 0, "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n"},
		{"ps -aq", 0, ""},
		{"rmi nothing", 125, "vmm: no image \"nothing\" here\n"},
		{"rmi -f nothing", 0, ""},
		{"rm -f nothing", 0, "nothing\n"},
		{"stop nothing nobody", 125, "vmm: no such container: nothing\nno such container: nobody\n"},
		{"logs", 125, "vmm: logs takes CONTAINER, not 0 arguments (vmm logs --help)\n"},
		{"run --pull never nothing", 125, "vmm: no image \"nothing\" here\n"},
		{"run --nope", 125, "vmm: run: unknown flag: --nope (vmm run --help)\n"},
		{"run -p 0:x image", 125, "invalid argument \"0:x\" for \"-p, --publish\" flag"},
		{"kill -s NOPE x", 125, "vmm: kill --signal NOPE: no such signal\n"},
		{"kernel list", 0, ""},
		{"kernel eat", 125, "vmm: kernel eat: not fetch or list\n"},
		{"load -i /no/where", 125, "vmm: stat /no/where: no such file or directory\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			status, out := runHere(t, strings.Fields(c.args)...)
			require.Equal(t, c.status, status, out)
			require.Contains(t, out, c.want)
			if c.want == "" {
				require.Empty(t, out)
			}
		})
	}
	for _, w := range words() {
		status, out := runHere(t, w.name, "--help")
		require.Zero(t, status)
		require.True(t, strings.HasPrefix(out, "Usage: vmm "+w.name), out)
		require.Contains(t, help, w.name, "in the help of vmm")
	}
}

// runHere runs the command in this process, and returns what it prints.
func runHere(t *testing.T, args ...string) (status int, out string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer f.Close()
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	p := &process{stdin: null, stdout: f, stderr: f, newMachine: newMachine}
	status = p.run(args)
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	return status, string(b)
}

func TestShown(t *testing.T) {
	require.Equal(t, `"nginx -g daemon off…"`, shownCommand([]string{"nginx", "-g", "daemon off; "}))
	for d, want := range map[time.Duration]string{0: "less than a second", time.Second: "1 second", 90 * time.Minute: "1 hour", 15 * 24 * time.Hour: "2 weeks"} {
		require.Equal(t, want, roughly(d))
	}
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1kB", 56_123_456: "56.1MB"} {
		require.Equal(t, want, size(n))
	}
	for name, want := range map[string][2]string{"nginx:latest": {"nginx", "latest"}, "h:5/a": {"h:5/a", "<none>"}, "a@sha256:01": {"a", "<none>"}} {
		repository, tag := splitName(name)
		require.Equal(t, want, [2]string{repository, tag})
	}
}
