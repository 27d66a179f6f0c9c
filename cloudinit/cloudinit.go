// Package cloudinit makes the disk from which cloud-init in a guest learns who its user is: a NoCloud seed
// (https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html), an ISO 9660 file system with the label
// cidata.
package cloudinit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

// Config is what a guest is to be told.
type Config struct {
	// User is the name of the user, who may become root by sudo; empty for the name that the image has for it.
	User string
	// SSHKeys are public keys that may log in as the user, as lines of an authorized_keys file.
	SSHKeys []string
	// Hostname is the guest's name; empty for the image's.
	Hostname string
	// UserData is a whole cloud-config, script or other user data, which wins over the rest of the Config; nil for none.
	UserData []byte
}

// MaxUserData is the longest user data in bytes.
const MaxUserData = 16 << 20

// label is what cloud-init looks for.
const label = "cidata"

// Check tells what is wrong with the values.
func (c *Config) Check() error {
	if len(c.UserData) > MaxUserData {
		return fmt.Errorf("user data of %d bytes: at most %d", len(c.UserData), MaxUserData)
	}
	if c.UserData == nil {
		return nil
	}
	// How cloud-init tells them apart (reference/user-data).
	for _, start := range []string{
		"#cloud-config", "#cloud-boothook", "#include", "#part-handler", "#upstart-job", "#!", "## template: jinja", "Content-Type:", "MIME-Version:", "From ", "\x1f\x8b",
	} {
		if bytes.HasPrefix(c.UserData, []byte(start)) {
			return nil
		}
	}
	return errors.New("cloud-init would not know what it is: its first line has to be #cloud-config, #!/bin/sh or the like")
}

// files are those of the seed.
func (c *Config) files() map[string][]byte {
	// JSON is YAML, too.
	encode := func(v any) []byte {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			panic(err) // of strings and lists of them only
		}
		return append(b, '\n')
	}
	settings := map[string]any{}
	if c.User != "" {
		settings["user"] = map[string]any{"name": c.User}
	}
	if len(c.SSHKeys) > 0 {
		settings["ssh_authorized_keys"] = c.SSHKeys
	}
	config := append([]byte("#cloud-config\n"), encode(settings)...)
	files := map[string][]byte{"user-data": config}
	if c.UserData != nil {
		files["user-data"], files["vendor-data"] = c.UserData, config
	}
	// Another instance is another machine: cloud-init does all its work again. So it is one as long as the values are the same.
	h := sha256.New()
	for _, name := range []string{"user-data", "vendor-data"} {
		_ = binary.Write(h, binary.LittleEndian, uint64(len(files[name])))
		h.Write(files[name])
	}
	h.Write([]byte(c.Hostname))
	meta := map[string]any{"instance-id": "vmm-" + hex.EncodeToString(h.Sum(nil)[:8])}
	if c.Hostname != "" {
		meta["local-hostname"] = c.Hostname
	}
	files["meta-data"] = encode(meta)
	return files
}

// Seed makes the disk.
func (c *Config) Seed() (_ []byte, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vmm-seed-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, path := filepath.Join(dir, "tree"), filepath.Join(dir, "seed.iso")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return nil, err
	}
	size := int64(1 << 20)
	for name, data := range c.files() {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o600); err != nil {
			return nil, err
		}
		size += int64(len(data))
	}
	disk, err := file.CreateFromPath(path, size)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	fs, err := iso9660.Create(disk, size, 0, 0, tree)
	if err != nil {
		return nil, err
	}
	// The names are longer than plain ISO 9660 has them, and in small letters.
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: label}); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(disk, 0, size))
}

// ParseKeys reads the lines of a file of public keys: those that are none are an error.
func ParseKeys(text []byte) (keys []string, err error) {
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return nil, errors.New("is a private key, which must not leave this machine (the public one is in the file with .pub at the end)")
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if !isKey(line) {
			return nil, fmt.Errorf("%.40q: not a public key of SSH", line)
		}
		keys = append(keys, line)
	}
	if keys == nil {
		return nil, errors.New("has no key in it")
	}
	return keys, nil
}

// isKey tells whether a line of an authorized_keys file has a key: its type, and base64 of data that begins with the type
// again (RFC 4253 §6.6), perhaps behind options.
func isKey(line string) bool {
	words := strings.Fields(line)
	return slices.ContainsFunc(words, func(word string) bool {
		i := slices.Index(words, word)
		data, err := base64.StdEncoding.DecodeString(word)
		if err != nil || i == 0 || len(data) < 4 {
			return false
		}
		n := uint64(binary.BigEndian.Uint32(data))
		return n > 0 && n <= uint64(len(data)-4) && string(data[4:4+n]) == words[i-1]
	})
}
