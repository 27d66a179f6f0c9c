package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"vmm/block"
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
}

// cacheModes are the names of block's modes, in the order of their values.
var cacheModes = []string{block.Writeback: "writeback", block.None: "none", block.Unsafe: "unsafe"}

// diskList is all values of -disk.
type diskList []disk

// Set reads one more value.
func (l *diskList) Set(s string) error {
	set, err := parseSettings(s, "readonly", "serial", "id", "queues", "cache", "discard")
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
	for _, other := range *l {
		if d.id != "" && other.id == d.id {
			return fmt.Errorf("id=%s: another disk has it", d.id)
		}
	}
	err = cmp.Or(
		set.flag("readonly", &d.readOnly),
		set.flag("discard", &d.discard),
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

// open opens the image and makes the device for it. The caller closes the image.
func (d *disk) open() (*blk.Device, *block.File, error) {
	f, err := block.Open(d.path, block.Options{ReadOnly: d.readOnly, Cache: block.Cache(d.cache)})
	if err != nil {
		return nil, nil, mistakef("-disk %s: %w", d.path, err)
	}
	serial := d.serial
	if serial == "" && len(d.id) <= blk.MaxSerial {
		serial = d.id
	}
	dev, err := blk.New(blk.Config{Backend: f, ReadOnly: d.readOnly, Serial: serial, Queues: d.queues, Discard: d.discard})
	if err != nil {
		return nil, nil, errors.Join(mistakef("-disk %s: %w", d.text, err), f.Close())
	}
	return dev, f, nil
}
