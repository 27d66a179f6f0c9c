package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"vmm/cloudinit"
	"vmm/virtio/blk"
)

// seedOptions are the flags that cloud-init in the guest is told of.
type seedOptions struct {
	user     userName
	keys     keyFiles
	hostname machineName
	file     string // -cloud-init
}

// wanted tells whether any of them is given.
func (o *seedOptions) wanted() bool {
	return o.user != "" || o.keys.keys != nil || o.hostname != "" || o.file != ""
}

// guestName is what the guest is to call itself in a machine of that name.
func (o *seedOptions) guestName(machine machineName) string {
	return string(cmp.Or(o.hostname, machine))
}

// open makes the seed's disk. name is the machine's.
func (o *seedOptions) open(name machineName) (*blk.Device, error) {
	c := cloudinit.Config{User: string(o.user), SSHKeys: o.keys.keys, Hostname: o.guestName(name)}
	if o.file != "" {
		var err error
		if c.UserData, err = readUserData(o.file); err != nil {
			return nil, err
		}
		if err := c.Check(); err != nil {
			return nil, mistakef("-cloud-init %s: %w", o.file, err)
		}
	}
	seed, err := c.Seed()
	if err != nil {
		return nil, fmt.Errorf("disk for cloud-init: %w", err)
	}
	return blk.New(blk.Config{Backend: &seedDisk{bytes.NewReader(seed)}, ReadOnly: true, Serial: "cloud-init", Queues: 1})
}

// readUserData reads the file, as far as it may go.
func readUserData(path string) ([]byte, error) {
	f, err := openBootFile("cloud-init", path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, cloudinit.MaxUserData+1))
}

// seedDisk is a disk in memory that is only read.
type seedDisk struct{ *bytes.Reader }

func (*seedDisk) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (*seedDisk) Sync() error                        { return nil }

// userName is the value of -user.
type userName string

// Set reads a name as useradd(8) takes it.
func (u *userName) Set(s string) error {
	valid := s != "" && len(s) <= 32 && s != "root" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == "" && strings.Trim(s[:1], "0123456789-") != ""
	if !valid {
		return errors.New("not a name for a user (use small letters, digits, _ and -; root is one already)")
	}
	*u = userName(s)
	return nil
}

func (u *userName) String() string { return string(*u) }

// Type is the value's name in pflag's terms.
func (u *userName) Type() string { return "name" }

// keyFiles is all values of -ssh-key.
type keyFiles struct {
	paths, keys []string
}

// Set reads a file of public keys.
func (k *keyFiles) Set(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return bare(err)
	}
	keys, err := cloudinit.ParseKeys(text)
	if err != nil {
		return err
	}
	k.paths, k.keys = append(k.paths, path), append(k.keys, keys...)
	return nil
}

func (k *keyFiles) String() string { return strings.Join(k.paths, " ") }

// Type is the value's name in pflag's terms.
func (k *keyFiles) Type() string { return "file" }
