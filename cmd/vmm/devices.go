package main

import (
	"errors"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"vmm/block/image"
	"vmm/virtio"
	"vmm/virtio/balloon"
	virtioconsole "vmm/virtio/console"
	"vmm/virtio/rng"
	"vmm/virtio/vsock"
)

// deviceSet is the virtio devices of a machine, in the order of their places on the bus, and what is open behind them.
type deviceSet struct {
	devices   []virtio.Device
	behind    []io.Closer
	notices   []string // what the user must know to use them
	firstDisk image.Disk
	terminal  bool // one of them is on the user's terminal
	counts    []deviceCounts
}

// deviceCounts is what a device can tell of its work.
type deviceCounts struct {
	name  string
	count func() any // a struct of numbers
}

// openDevices makes what the flags ask for. The caller closes the set, after the machine.
func (p *process) openDevices(o *bootOptions, s *session) (_ *deviceSet, err error) {
	set := &deviceSet{}
	defer func() {
		if err != nil {
			err = errors.Join(err, set.Close())
		}
	}()
	for i := range o.disks {
		dev, disk, err := o.disks[i].open()
		if err != nil {
			return nil, err
		}
		set.add(dev, disk)
		if i == 0 {
			set.firstDisk = disk.Disk
		}
		for _, note := range disk.Notes {
			set.notices = append(set.notices, "-disk "+o.disks[i].path+": "+note)
		}
		set.count("disk "+o.disks[i].path, func() any { return dev.Stats() })
	}
	if o.seed.wanted() { // behind the user's disks, whose names it leaves
		dev, err := o.seed.open(o.name)
		if err != nil {
			return nil, err
		}
		set.add(dev)
	}
	for i := range o.nics {
		if o.nics[i].kind == nicNone {
			continue
		}
		dev, backend, err := o.nics[i].open(o, set)
		if err != nil {
			return nil, err
		}
		set.add(dev, backend)
		set.count("net "+o.nics[i].text, func() any { return dev.Stats() })
	}
	if o.rng {
		dev := rng.New(rng.Config{})
		set.add(dev)
		set.count("rng", func() any { return dev.Stats() })
	}
	if o.console.kind != serialNone {
		if err := p.openConsole(o, s, set); err != nil {
			return nil, err
		}
	}
	if o.balloon.on {
		dev, err := balloon.New(balloon.Config{Target: uint64(o.balloon.target)})
		if err != nil {
			return nil, mistakef("-balloon=%s: %w", &o.balloon, err)
		}
		set.add(dev)
		set.count("balloon, in pages", func() any { return dev.Pages() })
	}
	if o.vsock.path != "" {
		if err := o.vsock.open(set); err != nil {
			return nil, mistakef("-vsock %s: %w", &o.vsock, err)
		}
	}
	return set, nil
}

func (s *deviceSet) add(dev virtio.Device, behind ...io.Closer) {
	s.devices = append(s.devices, dev)
	s.behind = append(s.behind, behind...)
}

func (s *deviceSet) count(name string, count func() any) {
	s.counts = append(s.counts, deviceCounts{name, count})
}

// Close closes what is behind the devices, the last first.
func (s *deviceSet) Close() error {
	var errs []error
	for _, c := range slices.Backward(s.behind) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// openConsole makes the virtio console. Where it is on the terminal, it has the terminal's size.
func (p *process) openConsole(o *bootOptions, s *session, set *deviceSet) error {
	port, err := p.openLine("console", o.console, s)
	if err != nil {
		return err
	}
	dev, err := virtioconsole.New(virtioconsole.Config{Line: port.line})
	if err != nil {
		return errors.Join(err, port.abandon())
	}
	set.add(dev, dev)
	set.notices = append(set.notices, port.notice)
	if set.terminal = port.terminal; port.terminal {
		s.resize = func() {
			if size, err := unix.IoctlGetWinsize(int(p.stdin.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
				dev.Resize(size.Col, size.Row)
			}
		}
		s.resize()
	}
	return nil
}

// balloonSize is the value of -balloon.
type balloonSize struct {
	on     bool
	target memorySize
}

// balloonOn is -balloon without a value.
const balloonOn = "on"

// Set reads a size, or "on".
func (b *balloonSize) Set(s string) error {
	b.on = true
	if s == balloonOn {
		return nil
	}
	return b.target.Set(s)
}

func (b *balloonSize) String() string { return b.target.String() }

// Type is the value's name in pflag's terms.
func (b *balloonSize) Type() string { return "size" }

// vsockTarget is the value of -vsock.
type vsockTarget struct {
	text string // as it was given
	path string
	cid  int
}

// Set reads path=PATH,cid=N.
func (t *vsockTarget) Set(s string) error {
	set, err := parseSettings(","+s, "path", "cid")
	if err != nil {
		return err
	}
	*t = vsockTarget{text: s, path: set.values["path"], cid: vsock.MinCID}
	if t.path == "" {
		return errors.New("needs a path (-vsock path=PATH)")
	}
	return set.number("cid", vsock.MinCID, 1<<32-2, &t.cid)
}

func (t *vsockTarget) String() string { return t.text }

// Type is the value's name in pflag's terms.
func (t *vsockTarget) Type() string { return "sockets" }

// open listens on the path and makes the device.
func (t *vsockTarget) open(set *deviceSet) error {
	host, err := vsock.ListenUnix(t.path)
	if err != nil {
		return err
	}
	dev, err := vsock.New(vsock.Config{CID: uint64(t.cid), Dial: host.Dial})
	if err != nil {
		return errors.Join(err, host.Close())
	}
	host.Serve(dev)
	set.add(dev, host)
	return nil
}
