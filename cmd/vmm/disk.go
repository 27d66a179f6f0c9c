package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"vmm/block"
	"vmm/block/image"
	"vmm/virtio/blk"
)

// disk is a value of -disk.
type disk struct {
	text     string // as it was given
	path     string
	readOnly bool
	serial   string
	id       string
	queues   int
	cache    int // in cacheModes
	discard  bool
	format   string // empty to look
	snapshot bool
}

// cacheModes are the names of block's modes, in the order of their values.
var cacheModes = []string{block.Writeback: "writeback", block.None: "none", block.Unsafe: "unsafe"}

// diskList is all values of -disk.
type diskList []disk

// Set reads one more value.
func (l *diskList) Set(s string) error {
	set, err := parseSettings(s, "readonly", "serial", "id", "queues", "cache", "discard", "format", "snapshot")
	if err != nil {
		return err
	}
	d := disk{text: s, path: set.first, serial: set.values["serial"], id: set.values["id"], queues: 1}
	if d.path == "" {
		return errors.New("needs a path (-disk PATH,readonly)")
	}
	if len(d.serial) > blk.MaxSerial {
		return fmt.Errorf("serial=%s: %d bytes, at most %d", d.serial, len(d.serial), blk.MaxSerial)
	}
	if format, given := set.values["format"]; given {
		if d.format = format; format != image.Raw && format != image.Qcow2 {
			return fmt.Errorf("format=%s: not one of raw, qcow2", format)
		}
	}
	for _, other := range *l {
		if d.id != "" && other.id == d.id {
			return fmt.Errorf("id=%s: another disk has it", d.id)
		}
	}
	err = cmp.Or(
		set.flag("readonly", &d.readOnly),
		set.flag("discard", &d.discard),
		set.flag("snapshot", &d.snapshot),
		set.number("queues", 1, blk.MaxQueues, &d.queues),
		set.choice("cache", cacheModes, &d.cache),
	)
	if err == nil {
		*l = append(*l, d)
	}
	return err
}

func (l *diskList) String() string {
	var texts []string
	for _, d := range *l {
		texts = append(texts, d.text)
	}
	return strings.Join(texts, " ")
}

// Type is the value's name in pflag's terms.
func (l *diskList) Type() string { return "disk" }

// openImage opens the image. The caller closes it.
func (d *disk) openImage() (*image.Image, error) {
	return image.Open(d.path, image.Options{Format: d.format, ReadOnly: d.readOnly, Cache: block.Cache(d.cache), Snapshot: d.snapshot})
}

// open opens the image and makes the device for it. The caller closes the image.
func (d *disk) open() (*blk.Device, *image.Image, error) {
	i, err := d.openImage()
	if err != nil {
		return nil, nil, mistakef("-disk %s: %w", d.path, err)
	}
	serial := d.serial
	if serial == "" && len(d.id) <= blk.MaxSerial {
		serial = d.id
	}
	dev, err := blk.New(blk.Config{Backend: i.Disk, ReadOnly: d.readOnly, Serial: serial, Queues: d.queues, Discard: d.discard})
	if err != nil {
		return nil, nil, errors.Join(mistakef("-disk %s: %w", d.text, err), i.Close())
	}
	return dev, i, nil
}
