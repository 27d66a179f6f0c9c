package bootdisk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/internal/tooltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// part is a partition under test: a file system, or some bytes.
type part struct {
	kind  string // of mkfs
	label string
	uuid  string
	files map[string]string
	raw   []byte
}

const (
	rootUUID = "11111111-2222-3333-4444-555555555555"
	bootUUID = "66666666-7777-8888-9999-aaaaaaaaaaaa"
)

// build makes the file system in a file of so many MiB.
func (p part) build(t testing.TB, size int) []byte {
	t.Helper()
	if p.raw != nil {
		return append(bytes.Clone(p.raw), make([]byte, size<<20-len(p.raw))...)
	}
	dir := t.TempDir()
	tree, path := filepath.Join(dir, "tree"), filepath.Join(dir, "fs")
	for name, text := range p.files {
		file := filepath.Join(tree, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	if p.kind == "vfat" {
		args := []string{"-C", path, strconv.Itoa(size << 10)}
		if p.label != "" {
			args = append(args, "-n", p.label)
		}
		tooltest.Run(t, "dosfstools", "mkfs.fat", args...)
		top, err := filepath.Glob(tree + "/*")
		require.NoError(t, err)
		tooltest.Run(t, "mtools", "mcopy", append(append([]string{"-s", "-i", path}, top...), "::/")...)
	} else {
		args := []string{"-q", "-t", p.kind, "-d", tree, "-L", p.label}
		if p.uuid != "" {
			args = append(args, "-U", p.uuid)
		}
		tooltest.Run(t, "e2fsprogs", "mke2fs", append(args, path, strconv.Itoa(size)+"M")...)
	}
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

// partSize is in MiB.
const partSize = 8

// disk puts the partitions on a disk, with sfdisk's table of that kind, or none.
func disk(t testing.TB, table string, parts ...part) *bytes.Reader {
	t.Helper()
	if table == "" {
		return bytes.NewReader(parts[0].build(t, partSize))
	}
	path := filepath.Join(t.TempDir(), "disk")
	var script strings.Builder
	fmt.Fprintf(&script, "label: %s\n", table)
	if table == "dos" {
		script.WriteString("label-id: 0x1234abcd\n")
	}
	for i := range parts {
		fmt.Fprintf(&script, "start=%dMiB, size=%dMiB, type=linux\n", 1+i*partSize, partSize)
	}
	data := make([]byte, (2+len(parts)*partSize)<<20)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	require.NoError(t, os.WriteFile(path+".script", []byte(script.String()), 0o600))
	tooltest.Run(t, "bash", "sh", "-c", tooltest.Need(t, "fdisk", "sfdisk")+" -q "+path+" <"+path+".script")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for i, p := range parts {
		copy(data[(1+i*partSize)<<20:], p.build(t, partSize))
	}
	return bytes.NewReader(data)
}

// found is what Find found, with the files' contents.
type found struct{ kernel, initrd, commandLine, title, source string }

func find(t testing.TB, d *bytes.Reader) (f found, err error) {
	t.Helper()
	b, err := Find(d, d.Size())
	if err != nil {
		return f, err
	}
	read := func(i Image) string {
		p, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
		require.NoError(t, err)
		return string(p)
	}
	f = found{kernel: read(b.Kernel), commandLine: b.CommandLine, title: b.Title, source: b.Source}
	if b.Initrd != nil {
		f.initrd = read(b.Initrd)
	}
	return f, nil
}

// debianConfig has the form of what Debian's and Ubuntu's grub-mkconfig write.
const debianConfig = `
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=hidden
    set timeout=0
  fi
fi
set partuuid=
menuentry 'The Distribution' --class gnu-linux --class os $menuentry_id_option 'simple-` + rootUUID + `' {
	recordfail
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	search --no-floppy --fs-uuid --set=root ` + bootUUID + `
	if [ "${initrdfail}" = 1 ]; then
	  echo	'GRUB_FORCE_PARTUUID set, initrdless boot failed. Attempting with initrd.'
	  linux	/vmlinuz-6.1 root=UUID=` + rootUUID + ` ro  console=tty1 "quoted=a b"
	  initrd	/initrd-6.1 /second
	else
	  linux	/vmlinuz-6.1 root=PARTUUID=x ro panic=-1
	fi
}
submenu 'Advanced options' $menuentry_id_option 'advanced' {
	menuentry 'with 6.0' --class os $menuentry_id_option 'advanced-6.0' {
		set root='hd0,gpt2'
		linux (hd0,gpt1)/vmlinuz-6.0 root=/dev/vda2 \
			single
		initrd ($root)/old/initrd
	}
}
`

func grubEnvironment(text string) string {
	return "# GRUB Environment Block\n" + text + strings.Repeat("#", 900)
}

// TestFind boots disks as distributions lay them out.
func TestFind(t *testing.T) {
	twoParts := func(environment string) []part {
		return []part{
			{kind: "ext4", label: "BOOT", uuid: bootUUID, files: map[string]string{
				"grub/grub.cfg": debianConfig, "grub/grubenv": grubEnvironment(environment),
				"vmlinuz-6.1": "kernel 6.1", "initrd-6.1": "initrd", "second": "second", "vmlinuz-6.0": "kernel 6.0",
			}},
			{kind: "ext4", label: "root", uuid: rootUUID, files: map[string]string{"old/initrd": "old initrd", "etc/fstab": ""}},
		}
	}
	entry := func(options string) string {
		return "title Fedora Linux\nversion 6.9\nlinux /vmlinuz-6.9\ninitrd /initrd-6.9\noptions " + options + "\n"
	}
	for _, tt := range []struct {
		name  string
		table string
		parts []part
		want  found
	}{
		{"a separate /boot", "gpt", twoParts(""), found{
			"kernel 6.1", "initrd\x00\x00second", `root=UUID=` + rootUUID + ` ro console=tty1 "quoted=a b"`,
			"The Distribution", `/grub/grub.cfg of partition 1 (ext4 "BOOT")`,
		}},
		{"an entry of a submenu for the next time", "gpt", twoParts("next_entry=advanced>advanced-6.0\n"), found{
			"kernel 6.0", "old initrd", "root=/dev/vda2 single", "with 6.0", `/grub/grub.cfg of partition 1 (ext4 "BOOT")`,
		}},
		{"Fedora: GRUB with entries", "gpt", []part{
			{raw: []byte("BIOS boot")},
			{kind: "vfat", label: "EFI", files: map[string]string{"EFI/fedora/grub.cfg": "configfile $prefix/grub.cfg"}},
			{kind: "ext4", label: "boot", uuid: bootUUID, files: map[string]string{
				"grub2/grub.cfg": "load_env\nset default=\"${saved_entry}\"\nsearch --no-floppy --fs-uuid --set=boot " + bootUUID +
					"\ninsmod blscfg\nblscfg\n",
				"grub2/grubenv":                   grubEnvironment("saved_entry=id-6.9\nkernelopts=root=/dev/vda4 quiet\n"),
				"loader/entries/id-6.9.conf":      entry("$kernelopts rhgb"),
				"loader/entries/id-6.10.conf":     strings.ReplaceAll(entry(""), "6.9", "6.10"),
				"loader/entries/id-0-rescue.conf": strings.ReplaceAll(entry(""), "6.9", "rescue"),
				"vmlinuz-6.9":                     "6.9", "initrd-6.9": "i", "vmlinuz-6.10": "6.10", "initrd-6.10": "i",
			}},
			{raw: append(make([]byte, 0x10040), "_BHRfS_M"...)},
		}, found{"6.9", "i", "root=/dev/vda4 quiet rhgb", "Fedora Linux", `/grub2/grub.cfg of partition 3 (ext4 "boot")`}},
		{"systemd-boot: entries on the EFI system partition", "gpt", []part{
			{kind: "vfat", files: map[string]string{
				"loader/entries/a.conf": entry("root=LABEL=root"), "loader/entries/b-6.10+0-3.conf": strings.ReplaceAll(entry(""), "6.9", "6.10"),
				"vmlinuz-6.9": "6.9", "initrd-6.9": "i", "vmlinuz-6.10": "6.10",
			}},
			{kind: "ext4", files: map[string]string{"x": ""}},
		}, found{"6.9", "i", "root=LABEL=root", "Fedora Linux", "/loader/entries/a.conf of partition 1 (vfat)"}},
		{"Alpine", "dos", []part{{kind: "ext4", label: "alpine", files: map[string]string{
			"boot/extlinux.conf": "DEFAULT menu.c32\nTIMEOUT 10\nLABEL old\n  LINUX vmlinuz-old\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux ^virt\n" +
				"  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=LABEL=alpine modules=ext4\n",
			"boot/vmlinuz-virt": "virt", "boot/initramfs-virt": "i", "boot/vmlinuz-old": "old",
		}}}, found{"virt", "i", "root=LABEL=alpine modules=ext4", "Linux virt", `/boot/extlinux.conf of partition 1 (ext4 "alpine")`}},
		{"no boot loader, no partitions", "", []part{{kind: "ext2", files: map[string]string{
			"boot/vmlinuz-6.9": "9", "boot/vmlinuz-6.10-rc1": "rc", "boot/vmlinuz-6.10": "10", "boot/vmlinuz-0-rescue": "r", "boot/initrd.img-6.10": "i",
		}}}, found{"10", "i", "root=/dev/vda ro", "Linux 6.10", "/boot/vmlinuz-6.10 of whole disk (ext4), without a boot loader's configuration"}},
		{"no boot loader, a partition", "dos", []part{{kind: "ext3", files: map[string]string{"boot/vmlinuz-6.9": "9"}}},
			found{"9", "", "root=PARTUUID=1234abcd-01 ro", "Linux 6.9", "/boot/vmlinuz-6.9 of partition 1 (ext4), without a boot loader's configuration"}},
		{"a broken configuration beside a kernel", "dos", []part{{kind: "ext4", files: map[string]string{
			"boot/grub/grub.cfg": "if true; then", "boot/vmlinuz-6.9": "9",
		}}}, found{"9", "", "root=PARTUUID=1234abcd-01 ro", "Linux 6.9", "/boot/vmlinuz-6.9 of partition 1 (ext4), without a boot loader's configuration"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := find(t, disk(t, tt.table, tt.parts...))
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// TestLogicalPartition has the system on a partition inside of the extended one.
func TestLogicalPartition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, make([]byte, 40<<20), 0o600))
	require.NoError(t, os.WriteFile(path+".script", []byte("label: dos\nlabel-id: 0x1234abcd\nstart=2048,size=2048,type=83\nstart=8192,type=5\nstart=10240,size=2048,type=83\nstart=16384,size=16384,type=83\n"), 0o600))
	tooltest.Run(t, "bash", "sh", "-c", tooltest.Need(t, "fdisk", "sfdisk")+" -q "+path+" <"+path+".script")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	copy(data[16384*512:], part{kind: "ext4", files: map[string]string{"boot/vmlinuz-1": "k"}}.build(t, partSize))
	got, err := find(t, bytes.NewReader(data))
	require.NoError(t, err)
	require.Equal(t, "root=PARTUUID=1234abcd-06 ro", got.commandLine)
}

// TestPartitionNames compares partitions' identifiers with sfdisk's, and reads the second table where the first is lost.
func TestPartitionNames(t *testing.T) {
	d := disk(t, "gpt", part{kind: "ext4", files: map[string]string{"boot/vmlinuz-1": "k"}})
	path := filepath.Join(t.TempDir(), "disk")
	data, err := io.ReadAll(d)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	uuid := strings.ToLower(strings.TrimSpace(tooltest.Run(t, "fdisk", "sfdisk", "--part-uuid", path, "1")))
	for range 2 {
		got, err := find(t, d)
		require.NoError(t, err)
		require.Equal(t, "root=PARTUUID="+uuid+" ro", got.commandLine)
		clear(data[512:1024])
		d = bytes.NewReader(data)
	}
}

func TestNothingToBoot(t *testing.T) {
	for _, tt := range []struct {
		name  string
		table string
		parts []part
		want  string
	}{
		{"nothing", "", []part{{raw: []byte("x")}}, "no kernel found: no partition table, and no file system that is known"},
		{"no kernel", "gpt", []part{{kind: "ext4", label: "data", files: map[string]string{"x": ""}}, {raw: []byte("XFSB")}},
			`no kernel found: partition 2: xfs: can't be read here; partition 1 (ext4 "data"): no grub.cfg, loader/entries, extlinux.conf or vmlinuz-*`},
		{"kernel is gone", "dos", []part{{kind: "ext4", files: map[string]string{"boot/grub/grub.cfg": "menuentry a { linux /boot/k; }"}}},
			"no kernel found: partition 1 (ext4): /boot/grub/grub.cfg of partition 1 (ext4): kernel /boot/k: file does not exist"},
		{"file system is gone", "dos", []part{{kind: "ext4", files: map[string]string{"boot/grub/grub.cfg": "menuentry a { linux (hd0,3)/k; }"}}},
			"no kernel found: partition 1 (ext4): /boot/grub/grub.cfg: /k: no file system that can be read is on (hd0,3)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := find(t, disk(t, tt.table, tt.parts...))
			require.EqualError(t, err, tt.want)
			var none *NotFoundError
			require.ErrorAs(t, err, &none)
		})
	}
}

// TestBrokenDisk has a disk that can't be read, which is not the same as one with nothing on it.
func TestBrokenDisk(t *testing.T) {
	broken := errors.New("input/output error")
	_, err := Find(readerFunc(func([]byte, int64) (int, error) { return 0, broken }), 1<<20)
	require.ErrorIs(t, err, broken)
}

type readerFunc func([]byte, int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestCorruptDisks changes bytes where something is: there must be an end, and no panic.
func TestCorruptDisks(t *testing.T) {
	sound, err := io.ReadAll(disk(t, "gpt",
		part{kind: "vfat", files: map[string]string{"loader/entries/a.conf": "title x\nlinux /k\n", "k": "kernel"}},
		part{kind: "ext4", files: map[string]string{"boot/grub/grub.cfg": debianConfig, "vmlinuz-6.1": "x"}}))
	require.NoError(t, err)
	var used []int // the places of bytes that mean something
	for i, b := range sound {
		if b != 0 {
			used = append(used, i)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := bytes.Clone(sound)
	for range 500 {
		var changed []int
		for range 1 + r.IntN(30) {
			at := used[r.IntN(len(used))]
			changed = append(changed, at)
			p[at] = byte(r.Uint32())
		}
		d := bytes.NewReader(p)
		if b, err := Find(d, d.Size()); err == nil {
			_, _ = io.Copy(io.Discard, io.NewSectionReader(b.Kernel, 0, b.Kernel.Size()))
		}
		for _, at := range changed {
			p[at] = sound[at]
		}
	}
}
