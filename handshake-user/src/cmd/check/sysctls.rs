//! The sysctls of this network namespace that govern handshakes, and what each value means. Sources: the
//! kernel's Documentation/networking/ip-sysctl.rst, and the functions named below.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::report::Sysctl;
use crate::bounded;

/// Looks up another sysctl.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<i64>;
/// Explains a value.
type Meaning = fn(i64, Lookup<'_>) -> String;

/// Every sysctl, in the order of a connection's life.
const SETTINGS: &[(&str, Meaning)] = &[
    ("net.ipv4.tcp_fastopen", |value, _| fastopen(value)),
    ("net.ipv4.tcp_fastopen_blackhole_timeout_sec", |value, _| match value {
        0 => "clients never pause Fast Open".to_owned(),
        seconds => format!(
            "after a suspected black hole clients pause Fast Open for {seconds} s, longer each time it recurs"
        ),
    }),
    ("net.ipv4.tcp_syn_retries", |value, lookup| {
        let linear = lookup("net.ipv4.tcp_syn_linear_timeouts").unwrap_or(0);
        format!(
            "a client that gets no answer gives up after about {} s",
            seconds(linear_then_doubled(value, linear, longest(lookup)))
        )
    }),
    ("net.ipv4.tcp_syn_linear_timeouts", |value, _| {
        format!("the first {value} retransmissions of a SYN come 1 s apart, then the interval doubles")
    }),
    ("net.ipv4.tcp_synack_retries", |value, lookup| {
        format!(
            "a server forgets an unanswered SYN-ACK after about {} s",
            seconds(doubled(value, 1.0, longest(lookup)))
        )
    }),
    ("net.ipv4.tcp_syncookies", |value, _| {
        match value {
            0 => "no SYN cookies: SYNs beyond a listener's backlog are dropped",
            1 => "SYN cookies only when a listener's backlog is full; connections made from them have no round trip",
            _ => "SYN cookies always: no server connection has a round trip",
        }
        .to_owned()
    }),
    // tcp_conn_request() checks it only if it would not send a cookie instead.
    ("net.ipv4.tcp_max_syn_backlog", |value, lookup| match lookup("net.ipv4.tcp_syncookies") {
        Some(0) => format!(
            "a listener drops SYNs of unknown peers beyond {} half-open connections",
            value - (value >> 2)
        ),
        _ => "without effect while SYN cookies are on".to_owned(),
    }),
    ("net.core.somaxconn", |value, _| {
        format!(
            "listen() backlogs are limited to {value}: that many half-open connections, and as many that await accept()"
        )
    }),
    ("net.ipv4.tcp_abort_on_overflow", |value, _| {
        match value {
            0 => "a final ACK that finds the accept queue full is ignored: the connection takes longer to open for the server, not for the client",
            _ => "a final ACK that finds the accept queue full is answered with a RST",
        }
        .to_owned()
    }),
    ("net.ipv4.tcp_ecn", |value, _| {
        match value {
            0 => "ECN neither requested nor accepted",
            1 => "ECN requested in SYNs, and accepted",
            2 => "ECN not requested in SYNs, but accepted",
            3 => "Accurate ECN requested in SYNs, and accepted",
            4 => "ECN requested in SYNs, Accurate ECN accepted",
            5 => "ECN not requested in SYNs, Accurate ECN accepted",
            _ => "unknown value",
        }
        .to_owned()
    }),
    ("net.ipv4.tcp_timestamps", |value, _| {
        match value {
            0 => "no timestamps: no reuse of TIME_WAIT, and SYN cookies lose window scaling and SACK",
            1 => "timestamps, with a random offset per connection",
            _ => "timestamps, without an offset",
        }
        .to_owned()
    }),
    ("net.ipv4.tcp_retries2", |value, lookup| {
        let given_up = seconds(doubled(value, RTO_MIN, longest(lookup)));
        format!(
            "a connection is aborted when data or a FIN has been unacknowledged for {given_up} s or longer"
        )
    }),
    // tcp_orphan_retries() reads 0 as 8.
    ("net.ipv4.tcp_orphan_retries", |value, lookup| {
        let retries = if value == 0 { 8 } else { value };
        let given_up = seconds(doubled(retries, RTO_MIN, longest(lookup)));
        format!("the same after the program has closed it: {given_up} s or longer")
    }),
    ("net.ipv4.tcp_fin_timeout", |value, _| {
        let seen = if value > 60 { "; the peer's FIN is seen while the full socket waits" } else { "" };
        format!("after close() the kernel waits {value} s for the peer's FIN{seen}")
    }),
    ("net.ipv4.tcp_tw_reuse", |value, _| {
        match value {
            0 => "a port in TIME_WAIT is not reused before it ends",
            2 => "a client may reuse a port in TIME_WAIT, on loopback only",
            _ => "a client may reuse a port in TIME_WAIT",
        }
        .to_owned()
    }),
];

/// Bits of `tcp_fastopen`.
const FASTOPEN: &[(i64, &str)] = &[
    (0x1, "client"),
    (0x2, "server"),
    (0x4, "client_no_cookie"),
    (0x200, "server_no_cookie"),
    (0x400, "server_all_listeners"),
];

/// `TCP_RTO_MIN` of `include/net/tcp.h`, seconds.
const RTO_MIN: f64 = 0.2;

/// The longest time between two retransmissions, seconds: a sysctl since 6.15, `TCP_RTO_MAX` before.
fn longest(lookup: Lookup<'_>) -> f64 {
    lookup("net.ipv4.tcp_rto_max_ms")
        .and_then(|ms| i32::try_from(ms).ok())
        .map_or(120.0, |ms| f64::from(ms) / 1000.0)
}

/// Inode of the network namespace of this process.
pub(super) fn netns() -> Option<u64> {
    fs::metadata("/proc/self/ns/net").ok().map(|namespace| namespace.ino())
}

/// Reads every sysctl.
pub(super) fn look() -> Vec<Sysctl> {
    describe(&|name| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        bounded::read_to_string(path, bounded::SMALL).ok().map(|value| value.trim().to_owned())
    })
}

/// What the values mean in combination; `read` reads one.
fn describe(read: &dyn Fn(&str) -> Option<String>) -> Vec<Sysctl> {
    let lookup = |name: &str| read(name)?.parse().ok();
    SETTINGS
        .iter()
        .map(|&(name, meaning)| {
            let number = lookup(name);
            Sysctl {
                name,
                value: read(name),
                flags: number.filter(|_| name == "net.ipv4.tcp_fastopen").map(flags),
                means: number.map(|number| meaning(number, &lookup)),
            }
        })
        .collect()
}

fn flags(value: i64) -> Vec<&'static str> {
    FASTOPEN.iter().filter(|(bit, _)| value & bit != 0).map(|&(_, word)| word).collect()
}

/// The other bits have an effect only with the basic ones, 0x1 and 0x2.
fn fastopen(value: i64) -> String {
    let client = match (value & 0x1 != 0, value & 0x4 != 0) {
        (false, _) => "clients send no data in the SYN",
        (true, false) => "clients that enable it send data in the SYN once they have a cookie",
        (true, true) => "clients that enable it send data in every SYN, without a cookie",
    };
    let server = match (value & 0x2 != 0, value & 0x400 != 0, value & 0x200 != 0) {
        (false, ..) => "servers accept none",
        (true, false, false) => "listeners that enable it accept it with a cookie",
        (true, false, true) => "listeners that enable it accept it without a cookie",
        (true, true, false) => "all listeners accept it with a cookie",
        (true, true, true) => "all listeners accept it without a cookie",
    };
    format!("{client}; {server}")
}

/// Seconds until the kernel gives up: `retries` timeouts and the last wait, the first of `first` seconds,
/// each twice the one before up to `longest`.
fn doubled(retries: i64, first: f64, longest: f64) -> f64 {
    let retries = i32::try_from(retries.clamp(0, 255)).unwrap_or(0);
    (0..=retries).map(|n| (first * f64::from(n).exp2()).min(longest)).sum()
}

/// The same for SYNs: `tcp_write_timeout` adds the linear timeouts of a second each.
fn linear_then_doubled(retries: i64, linear: i64, longest: f64) -> f64 {
    let linear = i32::try_from(linear.clamp(0, 255)).unwrap_or(0);
    f64::from(linear) + doubled(retries, 1.0, longest)
}

fn seconds(value: f64) -> String {
    if value.fract() < 0.05 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(values: &[(&str, &str)]) -> Vec<Sysctl> {
        describe(&|name| {
            values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn means(values: &[(&str, &str)]) -> String {
        let name = values[0].0;
        host(values).into_iter().find(|sysctl| sysctl.name == name).unwrap().means.unwrap()
    }

    #[test]
    fn fast_open_bits_are_explained() {
        assert!(flags(0).is_empty());
        assert_eq!(flags(0x1), ["client"]);
        assert_eq!(flags(0x603), ["client", "server", "server_no_cookie", "server_all_listeners"]);
        assert_eq!(fastopen(0), "clients send no data in the SYN; servers accept none");
        assert_eq!(fastopen(0x4), fastopen(0), "extra bits without the basic ones have no effect");
        assert_eq!(fastopen(0x600), fastopen(0));
        assert_eq!(
            fastopen(0x407),
            "clients that enable it send data in every SYN, without a cookie; all listeners accept it with a cookie"
        );
    }

    #[test]
    fn times_match_the_kernel_documentation() {
        assert_eq!(seconds(linear_then_doubled(6, 0, 120.0)), "127");
        assert_eq!(seconds(linear_then_doubled(6, 4, 120.0)), "131");
        assert_eq!(seconds(doubled(5, 1.0, 120.0)), "63");
        assert_eq!(seconds(doubled(15, RTO_MIN, 120.0)), "924.6");
        assert_eq!(seconds(doubled(8, RTO_MIN, 120.0)), "102.2");
        assert_eq!(seconds(doubled(-1, 1.0, 120.0)), "1");
        assert_eq!(
            seconds(doubled(i64::MAX, 1.0, 120.0)),
            "30007",
            "the interval stops doubling at two minutes"
        );
    }

    #[test]
    fn meaning_depends_on_other_sysctls() {
        let backlog = |cookies| {
            means(&[("net.ipv4.tcp_max_syn_backlog", "2048"), ("net.ipv4.tcp_syncookies", cookies)])
        };
        assert!(backlog("0").contains("1536"));
        assert!(backlog("1").contains("without effect"));
        assert!(means(&[("net.ipv4.tcp_syn_retries", "6")]).contains("127 s"));
        assert!(
            means(&[("net.ipv4.tcp_syn_retries", "6"), ("net.ipv4.tcp_syn_linear_timeouts", "4")])
                .contains("131 s")
        );
    }

    #[test]
    fn absent_or_non_numeric_value_has_no_meaning() {
        let report = host(&[("net.ipv4.tcp_ecn", "what")]);
        assert_eq!(report.len(), SETTINGS.len());
        assert!(report.iter().all(|sysctl| sysctl.means.is_none() && sysctl.flags.is_none()));
        let values: Vec<_> = report.iter().filter_map(|sysctl| sysctl.value.as_deref()).collect();
        assert_eq!(values, ["what"]);
    }
}
