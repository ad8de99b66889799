#!/bin/sh
# The first process of the appliance's virtual machine. It ends when its channel does.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /var/lib /var/log /etc /srv/boot
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
export PATH=/bin HOME=/root
while read -r module; do insmod "/modules/$module" || echo "init: $module was refused"; done </modules/order
ip link set lo up
hostname appliance
# A shell for people: the second serial port.
(while :; do setsid sh -c 'exec </dev/ttyS1 >/dev/ttyS1 2>&1; stty -echo; exec sh -i'; done) &
exec sh /agent.sh
