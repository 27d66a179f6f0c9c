package cloudinit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/tooltest"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEBQb2xhciBiZWFycyBsaWtlIHRvIHNsZWVwIGluIHN1 me@here"

// seedFiles has other people's programs read a seed.
func seedFiles(t *testing.T, c Config) map[string]string {
	t.Helper()
	seed, err := c.Seed()
	require.NoError(t, err)
	dir := t.TempDir()
	path := filepath.Join(dir, "seed.iso")
	require.NoError(t, os.WriteFile(path, seed, 0o600))
	probe := tooltest.Run(t, "util-linux", "blkid", "-p", path)
	require.Contains(t, probe, `LABEL="cidata"`)
	require.Contains(t, probe, `TYPE="iso9660"`)
	files := map[string]string{}
	for _, name := range strings.Fields(tooltest.Run(t, "libarchive-tools", "bsdtar", "-tf", path)) {
		if name != "." {
			files[name] = tooltest.Run(t, "libarchive-tools", "bsdtar", "-xOf", path, name)
		}
	}
	return files
}

func decode(t *testing.T, text string) (v map[string]any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(text, "#cloud-config\n")), &v))
	return v
}

func TestSeed(t *testing.T) {
	files := seedFiles(t, Config{User: "me", SSHKeys: []string{testKey}, Hostname: "box"})
	require.Len(t, files, 2)
	require.True(t, strings.HasPrefix(files["user-data"], "#cloud-config\n"))
	require.Equal(t, map[string]any{"user": map[string]any{"name": "me"}, "ssh_authorized_keys": []any{testKey}}, decode(t, files["user-data"]))
	meta := decode(t, files["meta-data"])
	require.Equal(t, "box", meta["local-hostname"])

	again := seedFiles(t, Config{User: "me", SSHKeys: []string{testKey}, Hostname: "box"})
	require.Equal(t, files, again, "the same machine")
	other := seedFiles(t, Config{User: "me", SSHKeys: []string{testKey}, Hostname: "box2"})
	require.NotEqual(t, meta["instance-id"], decode(t, other["meta-data"])["instance-id"])

	own := "#!/bin/sh\n" + strings.Repeat("echo long\n", 100_000)
	files = seedFiles(t, Config{User: "me", UserData: []byte(own)})
	require.Equal(t, own, files["user-data"])
	require.Equal(t, map[string]any{"user": map[string]any{"name": "me"}}, decode(t, files["vendor-data"]))
	require.NotContains(t, decode(t, files["meta-data"]), "local-hostname")
}

func TestCheck(t *testing.T) {
	for text, ok := range map[string]bool{
		"#cloud-config\n": true, "#!/bin/sh\n": true, "Content-Type: multipart/mixed": true, "\x1f\x8b": true, "users: []": false, "": false, "\n#cloud-config": false,
	} {
		c := Config{UserData: []byte(text)}
		if ok {
			require.NoError(t, c.Check(), text)
			continue
		}
		_, err := c.Seed()
		require.EqualError(t, err, "cloud-init would not know what it is: its first line has to be #cloud-config, #!/bin/sh or the like", text)
	}
	_, err := (&Config{UserData: make([]byte, MaxUserData+1)}).Seed()
	require.EqualError(t, err, "user data of 16777217 bytes: at most 16777216")
}

func TestParseKeys(t *testing.T) {
	keys, err := ParseKeys([]byte("# mine\n\n" + testKey + "\r\nrestrict,command=\"a b\" " + testKey + "\n"))
	require.NoError(t, err)
	require.Equal(t, []string{testKey, `restrict,command="a b" ` + testKey}, keys)
	for text, want := range map[string]string{
		"-----BEGIN OPENSSH PRIVATE KEY-----\n": "is a private key, which must not leave this machine (the public one is in the file with .pub at the end)",
		"":                                      "has no key in it",
		"ssh-rsa AAAA":                          `"ssh-rsa AAAA": not a public key of SSH`,
		"ssh-rsa " + strings.Fields(testKey)[1]: `"ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIEBQb2xh": not a public key of SSH`,
		"AAAAC3NzaC1lZDI1NTE5":                  `"AAAAC3NzaC1lZDI1NTE5": not a public key of SSH`,
	} {
		_, err := ParseKeys([]byte(text))
		require.EqualError(t, err, want)
	}
}
