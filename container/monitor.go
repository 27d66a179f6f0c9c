package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/block/image"
	"vmm/block/qcow2"
	"vmm/container/wire"
	"vmm/internal/unixsocket"
	"vmm/machine"
	"vmm/network/user"
	"vmm/virtio"
	"vmm/virtio/blk"
	virtionet "vmm/virtio/net"
	"vmm/virtio/rng"
	"vmm/virtio/vsock"
)

// Boot is what a container's machine starts with.
type Boot struct {
	Kernel, Initrd machine.Image
}

const (
	// cmdline has the kernel say only what goes wrong, where vmm keeps it, and makes a panic the machine's end. The guest's
	// devices are all found through PCI, and its clock is the host's: what else a PC has is not waited for.
	cmdline = "console=ttyS0 quiet panic=-1 reboot=k tsc=reliable no_timer_check i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on"

	// bootTimeout is how long the guest's init may take to say that it is ready.
	bootTimeout = 5 * time.Minute
	// endTimeout is how long the guest may take to power off when its main process has ended.
	endTimeout = 10 * time.Second
	// threads of a container's machine besides its vCPUs: two of the card, three of the disk and the socket, and a few more.
	threads = 9
)

// mac is each container's card's: each has a network of its own.
var mac = net.HardwareAddr{0x52, 0x54, 0, 'v', 'm', 1}

// PrepareDisk makes the disk that the container writes to: over its image's root file system.
func PrepareDisk(dir string, spec *Spec) (err error) {
	st, err := os.Stat(spec.Rootfs)
	if err != nil {
		return err
	}
	f, err := block.Create(filepath.Join(dir, "disk.qcow2"))
	if err != nil {
		return err
	}
	return errors.Join(qcow2.Create(f, qcow2.CreateOptions{Size: st.Size(), BackingFile: spec.Rootfs, BackingFormat: image.Raw}), f.Close())
}

// Run runs the container's machine in this process, from its start to its end, and returns the status of its main process.
// started, unless it is nil, is called when that runs. With a context that ends, the machine is stopped as by a power failure.
func (c *Container) Run(ctx context.Context, boot Boot, streams Streams, started func()) (status int, err error) {
	begin := time.Now()
	release, err := c.take()
	if err != nil {
		return 0, err
	}
	defer release()
	c.State = State{Started: time.Now(), Monitor: os.Getpid()}
	if err := write(c.path("state.json"), c.State); err != nil {
		return 0, err
	}
	defer func() {
		c.State.Finished, c.State.Status = time.Now(), status
		if err != nil {
			c.State.Error = err.Error()
		}
		err = errors.Join(err, write(c.path("state.json"), c.State))
		if c.Spec.AutoRemove {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), c.Spec.CPUs+threads))
	m := &monitor{c: c, begin: begin, ready: make(chan error, 1)}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.open(boot); err != nil {
		return 0, err
	}
	return m.run(ctx, streams, started)
}

// monitor is a container's machine and what is behind its devices.
type monitor struct {
	c       *Container
	begin   time.Time
	up      time.Duration // set before ready has a value
	machine *machine.Machine
	vsock   *vsock.Device
	behind  []io.Closer
	ready   chan error // the guest's word
	hello   sync.Once
	greeted sync.WaitGroup
	console *tail
	log     *logWriter
}

func (m *monitor) close() error {
	var errs []error
	if m.machine != nil {
		errs = append(errs, m.machine.Close())
	}
	for i := len(m.behind) - 1; i >= 0; i-- {
		errs = append(errs, m.behind[i].Close())
	}
	m.greeted.Wait()
	if m.log != nil {
		errs = append(errs, m.log.close())
	}
	return errors.Join(errs...)
}

// open makes the machine.
func (m *monitor) open(boot Boot) (err error) {
	spec := &m.c.Spec
	if m.log, err = openLog(m.c.path("log")); err != nil {
		return err
	}
	disk, err := image.Open(m.c.path("disk.qcow2"), image.Options{Format: image.Qcow2, Cache: block.Writeback})
	if err != nil {
		return err
	}
	m.behind = append(m.behind, disk)
	blkDev, err := blk.New(blk.Config{Backend: disk.Disk, Discard: true})
	if err != nil {
		return err
	}
	network, err := user.Open(user.Config{Forwards: spec.Ports, Hostname: spec.Hostname, IPv6: user.HostHasIPv6()})
	if err != nil {
		if taken := (*user.PortError)(nil); errors.As(err, &taken) {
			return fmt.Errorf("-p %s: %w", taken.Forward, taken.Err)
		}
		return err
	}
	m.behind = append(m.behind, network)
	card, err := virtionet.New(virtionet.Config{MAC: mac, MTU: user.MTU, Backend: network, Ports: []virtionet.Port{network}, Vhost: virtionet.VhostOff})
	if err != nil {
		return err
	}
	if m.vsock, err = vsock.New(vsock.Config{CID: vsock.MinCID, Dial: m.dialled}); err != nil {
		return err
	}
	if err := m.listen(); err != nil {
		return err
	}
	m.console = &tail{path: m.c.path("console")}
	m.machine, err = machine.New(machine.Config{
		Kernel: boot.Kernel, Initrd: boot.Initrd, Cmdline: cmdline, Memory: spec.Memory, CPUs: spec.CPUs, Serial: m.console,
		Virtio: []virtio.Device{blkDev, card, m.vsock, rng.New(rng.Config{})},
	})
	return err
}

// listen makes the socket for other processes' connections to the guest.
func (m *monitor) listen() error {
	_ = os.Remove(m.c.path("vsock")) // of a monitor that is no more: we have its lock
	path, release, err := shortPath(m.c.path("vsock"))
	if err != nil {
		return err
	}
	defer release()
	host, err := vsock.ListenUnix(path)
	if err != nil {
		return err
	}
	host.Serve(m.vsock)
	m.behind = append(m.behind, host)
	return nil
}

// shortPath is a way to the path that is short enough for a socket.
func shortPath(path string) (short string, release func(), err error) {
	if len(path)+len("_4294967295") <= unixsocket.MaxPath {
		return path, func() {}, nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// dialled takes the guest's connection: its init has come up.
func (m *monitor) dialled(_ context.Context, port uint32) (vsock.Conn, error) {
	if port != wire.Port {
		return nil, errors.ErrUnsupported
	}
	theirs, ours, err := vsock.Pair()
	if err != nil {
		return nil, err
	}
	first := false
	m.hello.Do(func() { first = true })
	if !first {
		return nil, errors.Join(errors.ErrUnsupported, theirs.Close(), ours.Close())
	}
	m.behind = append(m.behind, ours)
	m.greeted.Go(func() { m.ready <- m.greet(ours) })
	return theirs, nil
}

// greet tells the guest's init what to do, and waits until it has done so.
func (m *monitor) greet(conn io.ReadWriter) error {
	c := wire.NewConn(conn)
	var hello wire.Hello
	if err := c.Expect(wire.TypeHello, &hello); err != nil {
		return err
	}
	if hello.Version != wire.Version {
		return fmt.Errorf("the guest speaks version %d, this vmm %d", hello.Version, wire.Version)
	}
	m.up = time.Since(m.begin)
	router, dns, guest := user.Layout(user.DefaultSubnet)
	setup := wire.Setup{
		Hostname: m.c.Spec.Hostname, ReadOnly: m.c.Spec.ReadOnly, Tmpfs: m.c.Spec.Tmpfs,
		Address: netip.PrefixFrom(guest, user.DefaultSubnet.Bits()).String(), Gateway: router.String(), DNS: []string{dns.String()},
	}
	if err := c.Send(wire.TypeSetup, setup); err != nil {
		return err
	}
	return c.Expect(wire.TypeReady, nil)
}

// run runs the machine and its main process.
func (m *monitor) run(ctx context.Context, streams Streams, started func()) (status int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	line := &m.c.State.Timeline
	line.Built = time.Since(m.begin)
	defer func() { line.Ended = time.Since(m.begin) }()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		exit, err := m.machine.Run(running)
		if err == nil && exit.Reason != machine.PowerOff && exit.Reason != machine.Stopped {
			err = fmt.Errorf("the machine ended by %v", exit)
		}
		ended <- err
		cancel() // of what waits for the guest
	}()
	finish := func(patience time.Duration) error {
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			stop()
			return <-ended
		}
	}
	defer stop()
	select {
	case err = <-m.ready:
	case err := <-ended:
		return 0, m.explain("the guest did not come up", err)
	case <-time.After(bootTimeout):
		err = fmt.Errorf("not within %v", bootTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return 0, m.explain("the guest did not come up", errors.Join(err, finish(0)))
	}
	line.Up, line.Ready = m.up, time.Since(m.begin)
	spec := &m.c.Spec
	streams.Stdout, streams.Stderr = m.logged("stdout", streams.Stdout), m.logged("stderr", streams.Stderr)
	dial := func(ctx context.Context) (vsock.Conn, error) { return m.vsock.Dial(ctx, wire.Port) }
	streams.Started = func() {
		line.Running = time.Since(m.begin)
		if started != nil {
			started()
		}
	}
	status, err = runProcess(ctx, dial, wire.Process{Main: true, Args: spec.Args, Env: spec.Env, Dir: spec.Dir, User: spec.User, TTY: spec.TTY}, streams)
	line.Exited = time.Since(m.begin)
	patience := endTimeout
	if err != nil {
		patience = 0
	}
	if failed := (*wire.Failed)(nil); errors.As(err, &failed) {
		return failed.Status, errors.Join(err, finish(0))
	}
	if end := finish(patience); err != nil || end != nil {
		return status, m.explain("the machine ended early", errors.Join(err, end))
	}
	return status, nil
}

// explain adds what the guest's kernel has said last.
func (m *monitor) explain(what string, err error) error {
	if last := m.console.last(); last != "" {
		return fmt.Errorf("%s: %w; its console's last words: %s", what, err, last)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// logged is a stream that goes to the log, and to w if there is one.
func (m *monitor) logged(stream string, w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		m.log.write(stream, p)
		if w != nil {
			_, _ = w.Write(p) // whoever read it may be gone: the container goes on
		}
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// tail is the guest's console: a file of what comes first, and the last words in memory.
type tail struct {
	path string

	mu   sync.Mutex // guards what follows
	file *os.File
	size int
	end  []byte
}

// maxConsole bounds what is kept of a console, in bytes.
const maxConsole = 1 << 20

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil && t.size == 0 {
		t.file, _ = os.OpenFile(t.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // else it is only remembered
	}
	if t.file != nil && t.size+len(p) <= maxConsole {
		_, _ = t.file.Write(p)
	}
	t.size += len(p)
	t.end = append(t.end, p...)
	if n := len(t.end) - 2048; n > 0 {
		t.end = t.end[n:]
	}
	return len(p), nil
}

// Read has nothing: nobody types.
func (t *tail) Read([]byte) (int, error) { return 0, io.EOF }

func (t *tail) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// last returns the last lines, as one.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.FieldsFunc(string(t.end), func(r rune) bool { return r == '\n' || r == '\r' })
	if n := len(lines) - 5; n > 0 {
		lines = lines[n:]
	}
	return strings.Join(lines, " | ")
}
