package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// machine is the QEMU process that is L1.
type machine struct {
	cancel  context.CancelFunc
	exited  chan struct{} // closed when the process is gone
	err     error         // of the process; valid after exited
	console tail          // what L1's kernel and QEMU itself have said last
}

// startMachine starts QEMU and returns the host's end of the port that the agent serves.
func startMachine(ctx context.Context, cfg *Config, kernel, initrd string) (*machine, *os.File, error) {
	path, err := exec.LookPath(cfg.QEMU)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the lab needs QEMU: apt-get install --no-install-recommends qemu-system-x86", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for the lab's port: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "port")
	defer theirs.Close()

	const portFD = 3 // the first of ExtraFiles
	commandLine := "console=ttyS0 panic=-1 reboot=t quiet mitigations=off"
	args := []string{
		// Without XSAVE: TCG does not tell KVM of its guest's XSETBV, so that KVM gives the guest back an XCR0 that it did
		// not set, and the guest's XRSTOR fails.
		"-machine", "q35", "-accel", "tcg", "-cpu", "max,-xsave", "-smp", "1",
		"-m", strconv.FormatUint(cfg.Memory>>20, 10) + "M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", portFD), "-device", "virtserialport,chardev=agent,name=agent",
	}
	if cfg.Disk != "" {
		args = append(args, drive("lab", cfg.Disk, "snapshot=on")...)
		commandLine += " lab.disk"
	}
	if cfg.GuestDisk != "" {
		args = append(args, drive("guest", cfg.GuestDisk, "readonly=on")...)
	}
	args = append(args, "-kernel", kernel, "-initrd", initrd, "-append", commandLine)

	ctx, cancel := context.WithCancel(ctx)
	m := &machine{cancel: cancel, exited: make(chan struct{})}
	var console io.Writer = &m.console
	if cfg.Console != nil {
		console = io.MultiWriter(&m.console, cfg.Console)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{theirs}
	// Out of the terminal's process group: an interrupt is for whoever holds the lab, to end it in order. And not to
	// outlive that process, whatever becomes of it.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}

	started := make(chan error, 1)
	go func() {
		// Pdeathsig is the death of the thread that forked: this one has to last as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			m.err = cmd.Wait()
		}
		cancel()
		close(m.exited)
	}()
	if err := <-started; err != nil {
		_ = ours.Close()
		return nil, nil, err
	}
	return m, ours, nil
}

// drive returns the arguments that give L1 a disk with this serial number, by which its init knows it.
func drive(serial, path, how string) []string {
	return []string{
		"-drive", "if=none,format=raw,id=" + serial + "," + how + ",file=" + strings.ReplaceAll(path, ",", ",,"),
		"-device", "virtio-blk-pci,drive=" + serial + ",serial=" + serial,
	}
}

// stop ends the process and waits for that.
func (m *machine) stop() {
	m.cancel()
	<-m.exited
}

// diagnose says why the port has failed with err: by the context's end, or by what L1 or QEMU has said last.
func (m *machine) diagnose(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
		return errors.New("closed")
	}
	if errors.Is(err, io.EOF) { // QEMU has closed the port, and will be gone
		<-m.exited
		err = errors.New("the machine has turned itself off")
	} else {
		m.stop()
	}
	if m.err != nil {
		err = m.err
	}
	if said := strings.TrimSpace(m.console.String()); said != "" {
		return fmt.Errorf("%w; its last words:\n%s", err, said)
	}
	return err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
