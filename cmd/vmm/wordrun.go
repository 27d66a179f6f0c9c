package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/cmd/vmm/internal/console"
	"vmm/container"
	"vmm/container/initrd"
	"vmm/container/oci"
	"vmm/container/wire"
	"vmm/kernel"
)

// runOptions are those of vmm run.
type runOptions struct {
	detach, remove, readOnly bool
	interactive, tty         bool
	name, workdir, user      string
	entrypoint, hostname     string
	entrypointGiven          func() bool
	env, envFiles, tmpfs     []string
	ports                    publishList
	cpus                     int
	memory                   memorySize
	stopSignal               string
	stopTimeout              int
	kernel, pull             string
}

const (
	defaultStopTimeout = 10 // seconds, as in Docker
	defaultMemory      = 1 << 30
)

func runWord() *word {
	return &word{
		name: "run", operands: "IMAGE [COMMAND [ARG...]]", least: 1, most: -1, raw: true,
		short: "Run a command in a new container, with a machine and a kernel of its own. IMAGE is a reference, or oci:FOLDER,\ndocker-archive:FILE or - for an archive on standard input.",
		flags: func(f *pflag.FlagSet) any {
			o := &runOptions{memory: defaultMemory}
			f.BoolVarP(&o.detach, "detach", "d", false, "run in the background, and print the container's ID")
			f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
			f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
			f.StringVar(&o.name, "name", "", "the container's `NAME`")
			f.VarP(&o.ports, "publish", "p", "publish a `PORT`: [[HOSTIP:][HOSTPORT]:]PORT[/udp]")
			f.StringArrayVarP(&o.env, "env", "e", nil, "set a `VARIABLE`: NAME=VALUE, or NAME for the value that it has here")
			f.StringArrayVar(&o.envFiles, "env-file", nil, "a `FILE` of such variables, one a line")
			f.StringVarP(&o.workdir, "workdir", "w", "", "the working `DIRECTORY`")
			f.StringVarP(&o.user, "user", "u", "", "the `USER`: name or UID, with :GROUP or :GID")
			f.StringVar(&o.entrypoint, "entrypoint", "", "the `PROGRAM`, instead of the image's entrypoint and command")
			f.StringVarP(&o.hostname, "hostname", "h", "", "the machine's host `NAME` (default the container's ID)")
			f.IntVar(&o.cpus, "cpus", 1, "the machine has `N` CPUs")
			f.VarP(&o.memory, "memory", "m", "the machine's memory, a `SIZE`; the host gives it as it is used")
			f.BoolVar(&o.remove, "rm", false, "remove the container when it ends")
			f.BoolVar(&o.readOnly, "read-only", false, "nothing can be written, but to tmpfs")
			f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "a file system in memory at `PATH`[:OPTIONS]")
			f.StringVar(&o.stopSignal, "stop-signal", "", "the `SIGNAL` that asks it to end (default the image's, or TERM)")
			f.IntVar(&o.stopTimeout, "stop-timeout", defaultStopTimeout, "`SECONDS` that it has to end when asked to")
			f.StringVar(&o.pull, "pull", "missing", "get the image from its registry, `WHEN` it is missing, always or never")
			f.StringVar(&o.kernel, "kernel", "", "the machine's kernel, a `FILE` (default one that was built or fetched for it, or one in /boot)")
			o.entrypointGiven = func() bool { return f.Changed("entrypoint") }
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			return p.runContainer(w.options.(*runOptions), w.operands)
		},
	}
}

func (p *process) runContainer(o *runOptions, operands []string) (int, error) {
	if o.tty && !o.detach && !term.IsTerminal(int(p.stdin.Fd())) {
		return 0, wordMistake{errors.New("run -t: standard input is not a terminal (leave -t out)")}
	}
	images, err := openImages()
	if err != nil {
		return 0, err
	}
	ctx, stop := interruptible()
	defer stop()
	release, err := images.Hold()
	if err != nil {
		return 0, err
	}
	defer release()
	img, err := p.image4run(ctx, images, operands[0], o.pull)
	if err != nil {
		return 0, err
	}
	spec, err := o.spec(operands[0], img, operands[1:])
	if err != nil {
		return 0, err
	}
	if spec.Rootfs, err = images.Rootfs(ctx, img); err != nil {
		return 0, err
	}
	boot, err := openBoot(spec.Kernel) // before there is anything to take back
	if err != nil {
		return 0, err
	}
	defer boot.close()
	containers, err := openContainers()
	if err != nil {
		return 0, err
	}
	c, err := containers.Create(spec, func(dir string) error { return container.PrepareDisk(dir, &spec) })
	if err != nil {
		return 0, err
	}
	release() // the container holds it from now on
	if o.detach {
		if err := p.launch(c); err != nil {
			if o.remove {
				err = errors.Join(err, ignoreMissing(containers.Remove(c)))
			}
			return 0, err
		}
		_, err := fmt.Fprintln(p.stdout, c.Spec.ID)
		return statusOK, err
	}
	stop()
	return p.foreground(c, boot)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// image4run finds the image, here or in its registry.
func (p *process) image4run(ctx context.Context, s *oci.Store, ref, pull string) (*oci.Image, error) {
	for _, prefix := range []string{"oci:", "docker-archive:", "-"} {
		path, ok := strings.CutPrefix(ref, prefix)
		if !ok || prefix == "-" && path != "" {
			continue
		}
		list, err := p.load(ctx, s, cmp.Or(path, "-"))
		if err != nil {
			return nil, err
		}
		if len(list) > 1 {
			return nil, fmt.Errorf("%s holds %d images (vmm load takes them, then run one by its name)", ref, len(list))
		}
		return list[0], nil
	}
	if pull != "always" {
		img, err := s.Get(ref)
		if missing := (*oci.NotFoundError)(nil); err == nil || !errors.As(err, &missing) {
			return img, err
		}
	}
	switch pull {
	case "never":
		return nil, &oci.NotFoundError{Name: ref}
	case "missing", "always":
		return p.pull(ctx, s, ref)
	}
	return nil, wordMistake{fmt.Errorf("--pull %s: not one of missing, always, never", pull)}
}

// spec is the container that the options and the image ask for.
func (o *runOptions) spec(ref string, img *oci.Image, args []string) (container.Spec, error) {
	image := img.Config.Config
	spec := container.Spec{
		Name: o.name, Image: ref, ImageID: img.ID.String(), Dir: cmp.Or(o.workdir, image.WorkingDir), User: cmp.Or(o.user, image.User), Hostname: o.hostname,
		TTY: o.tty, Stdin: o.interactive, CPUs: o.cpus, Memory: uint64(o.memory), ReadOnly: o.readOnly, Ports: o.ports.forwards, AutoRemove: o.remove,
		StopTimeout: time.Duration(o.stopTimeout) * time.Second,
	}
	if o.kernel != "" {
		path, err := filepath.Abs(o.kernel)
		if err != nil {
			return spec, err
		}
		spec.Kernel = path
	}
	if len(ref) > 0 && (ref == "-" || strings.HasPrefix(ref, "oci:") || strings.HasPrefix(ref, "docker-archive:")) {
		spec.Image = img.ID.Hex[:12]
		if len(img.Names) > 0 {
			spec.Image = oci.ShortName(img.Names[0])
		}
	}
	switch {
	case o.entrypointGiven() && o.entrypoint != "":
		spec.Args = append([]string{o.entrypoint}, args...)
	case o.entrypointGiven():
		spec.Args = args
	case len(args) > 0:
		spec.Args = append(slices.Clone(image.Entrypoint), args...)
	default:
		spec.Args = append(slices.Clone(image.Entrypoint), image.Cmd...)
	}
	if len(spec.Args) == 0 {
		return spec, wordMistake{fmt.Errorf("run %s: the image has no command of its own (name one behind it)", ref)}
	}
	var err error
	if spec.Env, err = o.environment(image.Env); err != nil {
		return spec, err
	}
	name := cmp.Or(o.stopSignal, image.StopSignal, "TERM")
	if spec.StopSignal, err = parseSignal(name); err != nil {
		return spec, wordMistake{fmt.Errorf("--stop-signal %w", err)}
	}
	for _, t := range o.tmpfs {
		dir, options, _ := strings.Cut(t, ":")
		if !filepath.IsAbs(dir) {
			return spec, wordMistake{fmt.Errorf("--tmpfs %s: not an absolute path", t)}
		}
		if spec.Tmpfs == nil {
			spec.Tmpfs = map[string]string{}
		}
		spec.Tmpfs[filepath.Clean(dir)] = options
	}
	if o.cpus < 1 || o.cpus > 64 {
		return spec, wordMistake{fmt.Errorf("--cpus %d: not 1 to 64", o.cpus)}
	}
	if o.stopTimeout < 0 {
		return spec, wordMistake{fmt.Errorf("--stop-timeout %d: not a time", o.stopTimeout)}
	}
	return spec, nil
}

// environment is the image's with the user's variables in it. A later one replaces an earlier one of its name.
func (o *runOptions) environment(image []string) ([]string, error) {
	env := slices.Clone(image)
	set := func(v string) error {
		name, value, given := strings.Cut(v, "=")
		if name == "" {
			return wordMistake{fmt.Errorf("variable %q: has no name", v)}
		}
		if !given {
			if value, given = os.LookupEnv(name); !given {
				return nil // as in Docker
			}
		}
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, name+"="+value)
		return nil
	}
	for _, path := range o.envFiles {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, wordMistake{fmt.Errorf("--env-file %s: %w", path, bare(err))}
		}
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimRight(strings.TrimLeft(l, " \t"), "\r\n"); l != "" && l[0] != '#' {
				if err := set(l); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, e := range o.env {
		if err := set(e); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// parseSignal reads a signal's name, with or without SIG, or its number.
func parseSignal(s string) (int, error) {
	name := strings.ToUpper(s)
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	return 0, fmt.Errorf("%s: no such signal", s)
}

// opened is what a container's machine boots, with its files.
type opened struct {
	container.Boot
	files []*bootFile
}

func (o *opened) close() {
	for _, f := range o.files {
		_ = f.Close() // it was only read
	}
}

// openBoot opens the kernel, of that path or the one that is found, and its initial RAM disk.
func openBoot(path string) (_ *opened, err error) {
	cache, err := kernel.CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "initrd")
	lacks := func(k *kernel.Kernel) []string { return initrd.Lacks(dir, k) }
	var k *kernel.Kernel
	if path != "" {
		if k, err = kernel.Open(path); err != nil {
			return nil, wordMistake{fmt.Errorf("--kernel %s: %w", path, bare(err))}
		}
		if l := lacks(k); len(l) > 0 {
			return nil, fmt.Errorf("--kernel %s: lacks %s", path, strings.Join(l, ", "))
		}
	} else if k, err = kernel.Find(lacks); err != nil {
		return nil, fmt.Errorf("%w: vmm kernel fetch gets one, --kernel names one", err)
	}
	ramdisk, err := initrd.Make(dir, k)
	if err != nil {
		return nil, err
	}
	o := &opened{}
	for _, f := range []struct{ flag, path string }{{"kernel", cmp.Or(k.ELF, k.Image)}, {"initrd", ramdisk}} {
		file, err := openBootFile(f.flag, f.path)
		if err != nil {
			o.close()
			return nil, err
		}
		o.files = append(o.files, file)
	}
	o.Kernel, o.Initrd = o.files[0], o.files[1]
	return o, nil
}

// passedOn are the signals that a foreground container gets instead of vmm.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// foreground runs the container here, on the user's terminal.
func (p *process) foreground(c *container.Container, boot *opened) (status int, err error) {
	name := machineName(c.Spec.Name)
	name.apply()
	streams, done, err := p.streams(c.Spec.Stdin, c.Spec.TTY)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done()) }()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	runs := make(chan struct{})
	toGuest := make(chan int, 8)
	streams.Signals = toGuest
	early := 0
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case sig := <-signals:
				n := int(sig.(syscall.Signal))
				select {
				case <-runs:
					select {
					case toGuest <- n:
					default: // it takes none
					}
				default: // there is nobody yet who could take it
					early = n
					stop()
					return
				}
			}
		}
	}()
	status, err = c.Run(ctx, boot.Boot, streams, func() { close(runs) })
	if err != nil && ctx.Err() != nil && early != 0 {
		return 128 + early, nil
	}
	return status, err
}

// streams are this process's own. done restores the terminal.
func (p *process) streams(stdin, tty bool) (s container.Streams, done func() error, err error) {
	s.Stdout, s.Stderr = p.stdout, p.stderr
	if stdin {
		s.Stdin = p.stdin
	}
	if !tty {
		return s, func() error { return nil }, nil
	}
	raw, err := console.MakeRaw(p.stdin)
	if err != nil {
		return s, nil, err
	}
	terminalSize := func() wire.Resize {
		w, err := unix.IoctlGetWinsize(int(p.stdin.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return wire.Resize{}
		}
		return wire.Resize{Rows: w.Row, Columns: w.Col}
	}
	s.Size = terminalSize()
	resizes := make(chan wire.Resize, 1)
	s.Resizes = resizes
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-changed:
				select {
				case resizes <- terminalSize():
				case <-ended:
					return
				}
			}
		}
	}()
	return s, func() error {
		signal.Stop(changed)
		close(ended)
		return raw.Restore()
	}, nil
}

// monitorWord is the hidden command of a background container's process.
const monitorWord = "monitor-container"

// launch starts the container in a process of its own, and returns when its main process runs.
func (p *process) launch(c *container.Container) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", monitorWord, c.Spec.ID)
	cmd.Args[0] = "vmm"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	word, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if string(word) != started {
		_ = cmd.Wait()
		status, message, ok := strings.Cut(string(word), "\n")
		var n int
		if _, err := fmt.Sscanf(status, "%d", &n); !ok || err != nil {
			return errors.New("the container's process ended without a word")
		}
		return &statusError{errors.New(message), n}
	}
	return cmd.Process.Release()
}

const started = "started\n"

// monitor is the command of a container in the background. Its parent reads from descriptor 3 how it went.
func (p *process) monitor(args []string) (int, error) {
	parent := os.NewFile(3, "parent")
	if parent == nil || len(args) != 1 {
		return 0, mistakef("%s: is for vmm itself", monitorWord)
	}
	tell := func(word string) {
		_, _ = parent.WriteString(word) // the parent may be gone
		_ = parent.Close()
	}
	status, err := p.background(args[0], func() { tell(started) })
	if err != nil {
		tell(fmt.Sprintf("%d\n%v", wordStatus(err), err))
	}
	return status, nil
}

func (p *process) background(id string, running func()) (int, error) {
	// The terminal that it was started from may go; what ends it are the words for that, or the host's end.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	containers, err := openContainers()
	if err != nil {
		return 0, err
	}
	c, err := containers.Get(id)
	if err != nil {
		return 0, err
	}
	boot, err := openBoot(c.Spec.Kernel)
	if err != nil {
		return 0, err
	}
	defer boot.close()
	name := machineName(c.Spec.Name)
	name.apply()
	toGuest := make(chan int, 1)
	ended, end := context.WithCancel(context.Background())
	defer end()
	go func() { // a shutting down host ends containers as vmm stop does
		<-ctx.Done()
		toGuest <- c.Spec.StopSignal
		select {
		case <-time.After(c.Spec.StopTimeout):
			end()
		case <-ended.Done():
		}
	}()
	var stdin io.Reader
	if c.Spec.Stdin { // nobody is there to type, and it stays open
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer r.Close()
		defer w.Close()
		stdin = r
	}
	return c.Run(ended, boot.Boot, container.Streams{Stdin: stdin, Signals: toGuest}, running)
}
