# What is run under systemd, as root: the package is installed, the service started, reloaded, broken, upgraded, stopped
# and removed.
export PATH=/usr/sbin:/usr/bin LANG=C DEBIAN_FRONTEND=noninteractive
configuration=/etc/handshake/handshake.toml

# check NAME COMMAND...: says what it has printed, and whether it succeeded.
check() {
    name=$1
    shift
    if said=$("$@" 2>&1); then echo "@@ ok $name: $(echo "$said" | tr -s '[:space:]' ' ')"; else echo "@@ failed $name: $(echo "$said" | tr -s '[:space:]' ' ')"; fi
}
show() { systemctl show --value --property "$1" handshake; }
is() { [ "$(show "$1")" = "$2" ] || { echo "$1 is $(show "$1"), not $2"; systemctl status --lines 20 handshake; return 1; }; echo "$2"; }
page() { busybox wget -q -O - "http://127.0.0.1:9966$1"; }
# The sum of the series that begin so.
sum() { page /metrics | busybox awk -v of="$1" 'index($0, of) == 1 { sum += $NF } END { printf "%d\n", sum }'; }
attached() { count=$(page /metrics | grep -c '^handshake_probe_attached.* 1$'); echo "$count hooks"; [ "$count" -ge 8 ]; }
status() { grep "^$1:" "/proc/$(show MainPID)/status" | cut -f 2; }
# The mask of capabilities, as the kernel writes it.
mask() {
    mask=0
    for capability; do
        case $capability in
            cap_dac_read_search) bit=2 ;;
            cap_net_admin) bit=12 ;;
            cap_sys_ptrace) bit=19 ;;
            cap_sys_admin) bit=21 ;;
            cap_perfmon) bit=38 ;;
            cap_bpf) bit=39 ;;
            cap_checkpoint_restore) bit=40 ;;
            *) echo "unknown: $capability" >&2; return 1 ;;
        esac
        mask=$((mask | 1 << bit))
    done
    printf '%016x\n' $mask
}
# bounded: the bounding set is exactly what the unit names.
bounded() {
    named=$(mask $(show AmbientCapabilities)) || return 1
    echo "named $named, bounding $(status CapBnd)"
    [ "$(status CapBnd)" = "$named" ]
}
# keeps CAPABILITY...: what all threads together still have after the start is exactly this, and can become no more.
keeps() {
    named=$(mask "$@") || return 1
    for set in CapEff CapPrm CapInh CapAmb; do
        union=0
        for thread in $(cat "/proc/$(show MainPID)"/task/*/status | grep "^$set:" | cut -f 2); do union=$((union | 0x$thread)); done
        has=$(printf %016x $union)
        echo "$set $has"
        case $set in
            CapEff | CapPrm) [ "$has" = "$named" ] || return 1 ;;
            *) [ "$has" = 0000000000000000 ] || return 1 ;;
        esac
    done
}
user() {
    uid=$(status Uid)
    echo "uid $uid"
    [ "$uid" -ne 0 ]
}
restarted() { [ "$(show NRestarts)" = 1 ] && [ "$(show ActiveState)" = active ] && [ "$(show MainPID)" != "$old" ]; }
watchdog() {
    old=$(show MainPID)
    kill -STOP "$old"
    for second in $(seq 240); do
        if restarted; then echo "restarted after $second s"; return 0; fi
        sleep 1
    done
    systemctl status --lines 20 handshake
    return 1
}
# put 'KEY = VALUE': in the configuration, in the place of what that key has.
put() {
    key=${1%% *}
    if grep -q "^$key = " $configuration; then sed -i "s/^$key = .*/$1/" $configuration; else echo "$1" >>$configuration; fi
}
# reload 'KEY = VALUE' RESULT IN_FORCE: with this line in the configuration it has this result, that setting is in force
# then, and no count is lost.
reload() {
    cp $configuration /before.toml
    put "$1"
    old=$(show MainPID)
    opens=$(sum handshake_tcp_opens_total)
    count=$(sum "handshake_config_reloads_total{result=\"$2\"}")
    systemctl reload handshake || { cp /before.toml $configuration; systemctl status --lines 20 handshake; return 1; }
    for second in $(seq 10); do
        count_then=$(sum "handshake_config_reloads_total{result=\"$2\"}")
        [ "$count_then" -le "$count" ] || break
        sleep 1
    done
    opens_then=$(sum handshake_tcp_opens_total)
    cp /before.toml $configuration
    echo "$2 $count, then $count_then; openings $opens, then $opens_then; $(page /config | grep "^$3\$")"
    # The requests for these numbers are openings themselves, of both ends.
    [ "$(show MainPID)" = "$old" ] && [ "$count_then" -eq $((count + 1)) ] && [ "$opens" -gt 0 ] &&
        [ "$opens_then" -ge $((opens + 4)) ] && page /config | grep -q "^$3\$"
}
# systemd holds the port: a request starts the service, and one during a restart waits for its answer.
socket() {
    systemctl stop handshake && systemctl start handshake.socket || return 1
    [ "$(show ActiveState)" = inactive ] || { echo "the socket has started the service"; return 1; }
    page /healthz || return 1
    # It answers before all is attached.
    for second in $(seq 240); do [ "$(show ActiveState)" = activating ] && sleep 1 || break; done
    [ "$(show ActiveState)" = active ] || return 1
    systemctl restart handshake &
    restart=$!
    answered=0
    for request in $(seq 20); do page /healthz >/dev/null && answered=$((answered + 1)); done
    wait $restart
    echo "$answered of 20 requests answered during a restart"
    [ "$answered" -eq 20 ]
}
# A newer version is installed while it runs: it runs then, and an edited configuration stays.
upgrade() {
    put 'max_series = 123'
    old=$(show MainPID)
    dpkg --force-confold --install /newer.deb || return 1
    echo "process $old, then $(show MainPID), $(show ActiveState); $(page /config | grep ^max_series)"
    [ "$(show MainPID)" != "$old" ] && [ "$(show ActiveState)" = active ] &&
        page /config | grep -q '^max_series = 123$' && [ "$(readlink "/proc/$(show MainPID)/exe")" = /usr/bin/handshake ]
}
purge() {
    dpkg --purge handshake || return 1
    systemctl daemon-reload
    left=$(find / -xdev -name '*handshake*'; find /run /var/lib /sys/fs/bpf -name '*handshake*' 2>/dev/null)
    [ -z "$left" ] || { echo "left: $left"; return 1; }
    ! systemctl cat handshake && ! systemctl --all list-units --plain --no-legend 'handshake*' | grep .
}

check install dpkg --install /first.deb
check "not started by the installation" is ActiveState inactive
check settings handshake daemon --check-config --config $configuration
# It returns once the program has notified systemd.
check start systemctl start handshake
check running is SubState running
check type is Type notify
check user user
check "capabilities as the unit names them" bounded
check "capabilities after the start" keeps cap_bpf cap_perfmon cap_dac_read_search cap_sys_ptrace cap_checkpoint_restore cap_sys_admin
check metrics attached
check "reload takes a setting" reload 'max_series = 77' success 'max_series = 77'
check "reload takes it back" reload 'max_series = 200' success 'max_series = 200'
check "reload refuses an error" reload 'no_such_key = 1' failure 'max_series = 200'
check "reload leaves what needs a restart" reload 'ring_kib = 1024' success 'ring_kib = 8192'
check watchdog watchdog
check "metrics after it" attached
check socket socket
check "metrics by the socket" attached
systemctl stop handshake.socket handshake
put 'tls_libraries = "off"'
check "start without libraries" systemctl start handshake
check "capabilities without libraries" keeps cap_bpf cap_sys_ptrace cap_sys_admin
check "metrics without libraries" attached
check upgrade upgrade
check security sh -c 'systemd-analyze security --no-pager handshake | tail -n 1'
check stop systemctl stop handshake
check "stopped in order" is Result success
check enable systemctl enable handshake.service handshake.socket
check remove dpkg --remove handshake
check purge purge
echo "@@ end"
systemctl poweroff -ff
