package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree is a part of the disk that guests and the lab have in common: some hundred files of all sizes.
const tree = "/usr/lib/x86_64-linux-gnu/perl-base"

// TestDisk has guests use disks as people do.
func TestDisk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		series       string
		cpus, queues int
		cache, dir   string
	}{
		{"6.1", 1, 1, "writeback", "/tmp"},
		{"6.12", 4, 4, "none", "/var/tmp"}, // which takes a file system on a disk, not one in memory
	} {
		t.Run(fmt.Sprintf("%s,cpus=%d,cache=%s", c.series, c.cpus, c.cache), func(t *testing.T) {
			h := ownHost(t)
			h.need(t, "e2fsck")
			data, fixed := h.scratch(t, c.dir, "1G"), h.scratch(t, "/tmp", "32M")
			h.output(t, "printf fixed | dd of="+fixed+" conv=notrunc status=none")
			before := h.output(t, "sha256sum "+fixed)
			args := []string{
				"-disk", fmt.Sprintf("%s,serial=DATA-0123456789,queues=%d,cache=%s,discard", data, c.queues, c.cache), "-disk", fixed + ",readonly,serial=FIXED",
			}
			small := h.dir(t)
			h.output(t, "mount -t tmpfs -o size=8M tmpfs "+small+"; yes | dd bs=1M count=4 iflag=fullblock of="+small+
				"/disk status=none; truncate -s 64M "+small+"/disk")
			t.Cleanup(func() { h.cleanUp("umount " + small) })
			args = append(args, "-disk", small+"/disk,discard")
			g := guest{series: c.series, cpus: c.cpus, args: args}.start(t, h)
			t.Run("identity", func(t *testing.T) {
				g.during(t)
				require.Equal(t, "DATA-0123456789\nFIXED\n", g.run("cat /sys/block/vdb/serial; echo; cat /sys/block/vdc/serial; echo"))
				require.Equal(t, "1073741824\n33554432\n", g.run("blockdev --getsize64 /dev/vdb; blockdev --getsize64 /dev/vdc"))
				require.Equal(t, "0\n1\n", g.run("blockdev --getro /dev/vdb; blockdev --getro /dev/vdc"))
				require.Equal(t, strconv.Itoa(c.queues)+"\n", g.run("ls /sys/block/vdb/mq | wc -l"))
				require.Equal(t, "write back\n", g.run("cat /sys/block/vdb/queue/write_cache"))
			})
			t.Run("read-only", func(t *testing.T) {
				g.during(t)
				require.Equal(t, "fixed", g.run("head -c 5 /dev/vdc"))
				output, status := g.try("echo overwritten | dd of=/dev/vdc conv=notrunc,fsync")
				require.NotZero(t, status, output)
			})
			t.Run("verified writes", func(t *testing.T) {
				g.during(t)
				for _, depth := range []int{1, 32} {
					g.run(fio(fmt.Sprintf("--iodepth=%d --numjobs=2 --offset_increment=128m --size=%dm", depth, times(12, 100))))
				}
			})
			t.Run("discard", func(t *testing.T) {
				g.during(t)
				require.Greater(t, h.blocks(t, data), int64(12<<20))
				g.run("blkdiscard /dev/vdb")
				require.Less(t, h.blocks(t, data), int64(1<<20))
				g.run("yes | head -c 8M >/tmp/yes; dd if=/tmp/yes of=/dev/vdb bs=1M oflag=direct status=none")
				require.GreaterOrEqual(t, h.blocks(t, data), int64(8<<20))
				g.run("blkdiscard -z -o 4096 -l 4M /dev/vdb")
				require.Equal(t, "4096 4194304\n", g.run(`yes=$(head -c 4K /dev/vdb | tr -dc y | wc -c)
zeros=$(dd if=/dev/vdb bs=4K skip=1 count=1024 iflag=direct status=none | tr -dc '\0' | wc -c)
echo $((yes * 2)) $zeros`))
			})
			t.Run("file system", func(t *testing.T) {
				g.during(t)
				g.run("mkfs.ext4 -q /dev/vdb; mkdir -p /mnt; mount -o discard /dev/vdb /mnt")
				g.run("cp -a " + tree + " /mnt/tree; sync; echo 3 >/proc/sys/vm/drop_caches; diff -r " + tree + " /mnt/tree")
				g.run("cp /tmp/yes /mnt; sync")
				full := h.blocks(t, data)
				g.run("rm /mnt/yes; sync; fstrim /mnt")
				require.Less(t, h.blocks(t, data), full-(6<<20))
				g.run("umount /mnt; e2fsck -fn /dev/vdb >/dev/null")
			})
			checkLog(t, g)
			t.Run("host out of space", func(t *testing.T) {
				g.during(t)
				output, status := g.try("dd if=/dev/zero of=/dev/vdd bs=1M seek=4 oflag=direct conv=notrunc")
				require.NotZero(t, status)
				require.Contains(t, output, "Input/output error")
				require.Equal(t, "2097152\n", g.run("dd if=/dev/vdd bs=1M count=4 status=none | tr -dc y | wc -c"))
				g.run("blkdiscard /dev/vdd; echo again | dd of=/dev/vdd bs=512 conv=notrunc,sync,fsync status=none")
				require.Equal(t, "again\n", h.output(t, "head -c 6 "+small+"/disk"))
			})
			require.Zero(t, g.end("poweroff"))
			h.output(t, "e2fsck -fn "+data)
			require.Equal(t, before, h.output(t, "sha256sum "+fixed))
			if c.cpus == 1 {
				testDiskAgain(t, h, data)
			}
		})
	}
}

// testDiskAgain gives the disk that has the tree to another guest, larger than before, and kills that one's monitor.
func testDiskAgain(t *testing.T, h *host, data string) {
	t.Helper()
	h.output(t, "truncate -s 1500M "+data)
	g := guest{args: []string{"-disk", data}}.start(t, h)
	t.Run("grown", func(t *testing.T) {
		g.during(t)
		require.Equal(t, strconv.Itoa(1500<<20)+"\n", g.run("blockdev --getsize64 /dev/vdb"))
		g.run("e2fsck -fp /dev/vdb >/dev/null; resize2fs /dev/vdb 2>/dev/null >&2; mkdir -p /mnt; mount /dev/vdb /mnt; diff -r " + tree + " /mnt/tree")
	})
	t.Run("killed", func(t *testing.T) {
		g.during(t)
		// Each number is printed when its file, and the folder with its name, are on the disk.
		g.send("for i in $(seq 100000); do seq $i $((i+1000)) >/mnt/$i; sync /mnt/$i /mnt; echo synced-$i; done\n")
		synced := times(20, 500)
		g.expect(fmt.Sprintf("synced-%d\r\n", synced))
		g.kill()
		synced += strings.Count(g.out.from(g.read), "\r\n")
		mount := h.dir(t)
		h.output(t, fmt.Sprintf(`set -e
e2fsck -fp %[1]s || [ $? = 1 ]
mount -o loop %[1]s %[2]s
trap 'umount %[2]s' EXIT
for i in $(seq %[3]d); do seq $i $((i+1000)) | cmp - %[2]s/$i; done
diff -r %[4]s %[2]s/tree`, data, mount, synced, tree))
	})
}

// fio returns the command that writes to vdb in all sizes, and reads what it has written. Arguments are added to it.
func fio(args string) string {
	return "fio --name=verify --filename=/dev/vdb --direct=1 --ioengine=libaio --rw=randwrite --bsrange=4k-1m --bs_unaligned=0 " +
		"--verify=crc32c --verify_fatal=1 --group_reporting --minimal " + args + " >/tmp/fio 2>&1 || { tail -n 5 /tmp/fio; false; }"
}
