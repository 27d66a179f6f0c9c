package main

import (
	"errors"
	"io"
	"slices"

	"vmm/virtio"
	"vmm/virtio/rng"
)

// deviceSet is the virtio devices of a machine, in the order of their places on the bus, and what is open behind them.
type deviceSet struct {
	devices []virtio.Device
	behind  []io.Closer
}

// openDevices makes what the flags ask for. The caller closes the set, after the machine.
func (p *process) openDevices(o *bootOptions) (_ *deviceSet, err error) {
	set := &deviceSet{}
	defer func() {
		if err != nil {
			err = errors.Join(err, set.Close())
		}
	}()
	for i := range o.disks {
		dev, image, err := o.disks[i].open()
		if err != nil {
			return nil, err
		}
		set.add(dev, image)
	}
	for i := range o.nics {
		dev, backend, err := o.nics[i].open()
		if err != nil {
			return nil, err
		}
		set.add(dev, backend)
	}
	if o.rng {
		set.add(rng.New(rng.Config{}))
	}
	return set, nil
}

func (s *deviceSet) add(dev virtio.Device, behind ...io.Closer) {
	s.devices = append(s.devices, dev)
	s.behind = append(s.behind, behind...)
}

// Close closes what is behind the devices, the last first.
func (s *deviceSet) Close() error {
	var errs []error
	for _, c := range slices.Backward(s.behind) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
