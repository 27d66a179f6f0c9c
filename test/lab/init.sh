#!/bin/busybox sh
# L1's first process: makes the system that commands expect, and runs the agent. The machine ends with it.
export PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root USER=root
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
hostname lab
ip link set lo up
for m in /modules/*.ko; do
	insmod "$m" || echo "lab: insmod $m: status $?"
done
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200

# The only port is the first of the first controller: bus 0, or whatever number it got.
port=$(ls -d /dev/vport*p1)

# The disks are known by their serial numbers.
for disk in /sys/block/vd*; do
	[ -e "$disk/serial" ] && ln -s "${disk##*/}" "/dev/$(cat "$disk/serial")"
done

root=
if grep -qw lab.disk /proc/cmdline; then
	mount -t ext4 /dev/lab /disk || poweroff -f
	for d in proc sys dev run tmp; do
		mkdir -p "/disk/$d" && mount --rbind "/$d" "/disk/$d"
	done
	for d in boot lab usr/local/bin; do
		mkdir -p "/disk/$d" && mount --bind "/$d" "/disk/$d"
	done
	cp /sbin/lab-agent /disk/sbin/
	# Over the first root, not only below it: in a mere chroot there are no user namespaces.
	cd /disk && mount --move . /
	root="chroot ."
fi
$root /sbin/lab-agent "$port"
poweroff -f
