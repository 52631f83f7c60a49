#!/bin/busybox sh
# The first process of a virtual machine: prepares what the tests need, runs the plan, and switches off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/ LANG=C
/bin/busybox mkdir -p /busybox /proc /sys /dev /tmp /run /var/tmp
/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
for module in /modules/*.ko; do
    insmod "$module" || echo "@@ cannot load $module"
done
ifconfig lo up
# Which kind of preemption there is, for whoever reads the console.
dmesg | grep "Dynamic Preempt"
# The search for libraries begins with its cache.
ldconfig

# run NAME SECONDS COMMAND...: between two marks, ended by force after so many seconds.
run() {
    name=$1 limit=$2
    shift 2
    echo "@@ begin $name"
    timeout -s KILL "$limit" "$@" </dev/null 2>&1
    status=$?
    echo
    echo "@@ end $name $status"
}

. /plan
sync
poweroff -f
