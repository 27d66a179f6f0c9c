#!/bin/busybox sh
# The first process of a test guest (L2): loads the modules, and gives a shell on the console. With test.root=vda on the
# kernel's command line the shell is in the file system of that disk, which is only read: what is written stays in memory.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root TERM=dumb
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
hostname guest
ip link set lo up
for m in /modules/*.ko; do
	insmod "$m" || echo "guest: insmod $m: status $?"
done

# fail ends the guest: the test that waits for its shell learns of it at once, and why.
fail() {
	echo "guest: $*"
	poweroff -f
}

root=/
disk=$(sed -n 's/.*\btest\.root=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$disk" ]; then
	tries=0
	until [ -b "/dev/$disk" ]; do
		tries=$((tries + 1))
		[ $tries -le 50 ] || fail "no disk $disk, but: $(ls /sys/block)"
		sleep 0.1
	done
	root=/root/merged
	mkdir -p /root/disk /root/memory $root
	mount -t ext4 -o ro "/dev/$disk" /root/disk || fail "mount $disk"
	mount -t tmpfs tmpfs /root/memory
	mkdir /root/memory/upper /root/memory/work
	mount -t overlay -o lowerdir=/root/disk,upperdir=/root/memory/upper,workdir=/root/memory/work overlay $root ||
		fail "mount the overlay"
	for d in proc sys dev run tmp; do
		mkdir -p "$root/$d" && mount --rbind "/$d" "$root/$d"
	done
	for d in modules usr/local/bin usr/local/sbin; do
		mkdir -p "$root/$d" && mount --bind "/$d" "$root/$d"
	done
	echo guest >$root/etc/hostname
	# Over the first root, not only below it: in a mere chroot there are no user namespaces.
	cd $root && mount --move . /
	root=.
fi
# The last of the consoles is the one that /dev/console stands for, which can't be a controlling terminal.
tty=$(sed 's/.* //' /sys/class/tty/console/active)
# Without an echo, which would be half of all that goes over a slow line, the shell edits no lines either.
stty -F "/dev/$tty" -echo
export PS1='/ # ' PS2=
setsid -c chroot $root /bin/sh -i <"/dev/$tty" >"/dev/$tty" 2>&1
poweroff -f
