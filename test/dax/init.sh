#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The first process in the guest, from the initrd: this machine's root, read-only over 9p, under an overlay in memory, and in it a shell
# (guest.sh) that does what the second serial port says. Its address is static: nothing is asked of anyone.
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /lower /upper /root
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do $busybox insmod "/modules/$module"; done </modules/order
$busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /lower
$busybox mount -t tmpfs tmpfs /upper
$busybox mkdir /upper/files /upper/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
for dir in proc sys dev; do $busybox mount --move "/$dir" "/root/$dir"; done
for dir in run mnt; do $busybox mount -t tmpfs tmpfs "/root/$dir"; done
$busybox ip link set lo up
$busybox ip link set eth0 up
$busybox ip addr add 10.0.2.15/24 dev eth0
exec $busybox switch_root /root /bin/bash "$($busybox sed 's/.*guest=\([^ ]*\).*/\1/' /root/proc/cmdline)"
