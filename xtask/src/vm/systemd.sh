# What is run under systemd, as root: the package is installed, the service started, broken, stopped and removed.
export PATH=/usr/sbin:/usr/bin LANG=C DEBIAN_FRONTEND=noninteractive

# check NAME COMMAND...: says what it has printed, and whether it succeeded.
check() {
    name=$1
    shift
    if said=$("$@" 2>&1); then echo "@@ ok $name: $(echo $said)"; else echo "@@ failed $name: $(echo $said)"; fi
}
show() { systemctl show --value --property "$1" handshake; }
is() { [ "$(show "$1")" = "$2" ] || { echo "$1 is $(show "$1"), not $2"; systemctl status --lines 20 handshake; return 1; }; echo "$2"; }
pages() { busybox wget -q -O - http://127.0.0.1:9966/metrics | grep '^handshake_probe_attached.* 1$' | wc -l; }
attached() { count=$(pages); echo "$count hooks"; [ "$count" -ge 8 ]; }
status() { grep "^$1:" "/proc/$(show MainPID)/status" | cut -f 2; }
# The mask of the capabilities that the unit names, as the kernel writes it.
capabilities() {
    granted=$(show AmbientCapabilities)
    mask=0
    for capability in $granted; do
        case $capability in
            cap_dac_read_search) bit=2 ;;
            cap_net_admin) bit=12 ;;
            cap_sys_ptrace) bit=19 ;;
            cap_sys_admin) bit=21 ;;
            cap_perfmon) bit=38 ;;
            cap_bpf) bit=39 ;;
            cap_checkpoint_restore) bit=40 ;;
            *) echo "unknown: $capability"; return 1 ;;
        esac
        mask=$((mask | 1 << bit))
    done
    bounding=$((0x$(status CapBnd)))
    effective=$((0x$(status CapEff)))
    echo "named $(printf %x $mask), bounding $(printf %x $bounding), effective after the start $(printf %x $effective)"
    [ $bounding -eq $mask ] && [ $((effective & ~mask)) -eq 0 ] && [ $effective -ne 0 ]
}
user() {
    uid=$(status Uid)
    echo "uid $uid"
    [ "$uid" -ne 0 ]
}
watchdog() {
    old=$(show MainPID)
    kill -STOP "$old"
    for second in $(seq 240); do
        if [ "$(show NRestarts)" = 1 ] && [ "$(show ActiveState)" = active ] && [ "$(show MainPID)" != "$old" ]; then
            echo "restarted after $second s"
            return 0
        fi
        sleep 1
    done
    systemctl status --lines 20 handshake
    return 1
}
reload() {
    [ "$(show CanReload)" = yes ] || { echo "this unit has none"; return 0; }
    old=$(show MainPID)
    systemctl reload handshake && [ "$(show MainPID)" = "$old" ]
}
gone() { ! systemctl cat handshake; }

check install dpkg --install /handshake.deb
check "not started by the installation" is ActiveState inactive
check settings handshake daemon --check-config --config /etc/handshake/handshake.toml
# It returns once the program has notified systemd.
check start systemctl start handshake
check running is SubState running
check type is Type notify
check user user
check capabilities capabilities
check metrics attached
check watchdog watchdog
check "metrics after it" attached
check reload reload
check security sh -c 'systemd-analyze security --no-pager handshake | tail -n 1'
check stop systemctl stop handshake
check "stopped in order" is Result success
check remove dpkg --remove handshake
check purge dpkg --purge handshake
check "unit is gone" gone
echo "@@ end"
systemctl poweroff -ff
