//! What the facts of an opening mean. Pure: the kernel side counts by these functions, user space publishes
//! by them.

use super::errno;
use crate::{
    connection::{Connection, ConnectionFlags, micros_between},
    vocabulary::{FastOpen, FastOpenReason, FinalAck, Outcome, Role},
};

/// How the opening ended: `sk_err` at SYN_SENT → CLOSE, 0 being a program that gave up, unless no SYN was
/// made. The errors of ICMP are those of `icmp_err_convert` and `icmpv6_err_convert`.
#[must_use]
#[inline(always)]
pub const fn outcome(connection: &Connection) -> Option<Outcome> {
    if connection.flags.contains(ConnectionFlags::ESTABLISHED) {
        return Some(Outcome::Established);
    }
    if connection.flags.contains(ConnectionFlags::NO_LOCAL_PORT) {
        return Some(Outcome::NoLocalPort);
    }
    if connection.flags.contains(ConnectionFlags::NO_SYN) {
        return None;
    }
    match connection.error {
        0 | errno::ECONNABORTED => Some(Outcome::Aborted),
        errno::ECONNREFUSED => Some(Outcome::Refused),
        errno::ETIMEDOUT => Some(Outcome::TimedOut),
        errno::ECONNRESET | errno::EPIPE => Some(Outcome::Reset),
        errno::EHOSTUNREACH
        | errno::ENETUNREACH
        | errno::EHOSTDOWN
        | errno::ENONET
        | errno::ENOPROTOOPT
        | errno::EACCES => Some(Outcome::Unreachable),
        _ => None,
    }
}

/// Whether the kernel took its sample from the SYN-ACK's own time of sending. Samples from time-stamp echoes
/// (SYN cookies, retransmitted SYN-ACKs) come in whole milliseconds: where nothing tells of cookies, one true
/// sample in a thousand is given up.
#[inline(always)]
const fn is_synack_sample(connection: &Connection) -> bool {
    connection.srtt_us != 0
        && connection.syn_retransmits == 0
        && !connection.flags.contains(ConnectionFlags::ANSWERED_EARLY)
        && (connection.flags.contains(ConnectionFlags::NO_SYN_COOKIE) || cannot_be_an_echo(connection))
}

/// Whether no time-stamp echo can have given the sample.
#[inline(always)]
const fn cannot_be_an_echo(connection: &Connection) -> bool {
    !connection.srtt_us.is_multiple_of(1000)
        && !connection.flags.contains(ConnectionFlags::USEC_TIMESTAMPS)
        && !connection.flags.contains(ConnectionFlags::SYN_COOKIE)
}

/// The round trip in microseconds, from the kernel's sample where that is a round trip.
#[must_use]
#[inline(always)]
pub const fn rtt_us(connection: &Connection) -> Option<u64> {
    if !connection.flags.contains(ConnectionFlags::ESTABLISHED) {
        return None;
    }
    let valid = match connection.role() {
        // The sample of a simultaneous open begins at the SYN-ACK that answers the crossing SYN.
        Some(Role::Client) => {
            connection.srtt_us != 0 && connection.syn_retransmits == 0 && !is_simultaneous(connection)
        }
        Some(Role::Server) => {
            is_synack_sample(connection) && !connection.flags.contains(ConnectionFlags::FINAL_ACK_DATA)
        }
        None => false,
    };
    if valid { Some(connection.srtt_us as u64) } else { None }
}

/// Client: SYN_SENT (or the deferred SYN) → ESTABLISHED or failure. Server: first SYN-ACK → ESTABLISHED;
/// where its time is unknown that is the kernel's sample itself while the SYN-ACK went out once, even where
/// that is no round trip.
#[must_use]
#[inline(always)]
pub const fn duration_us(connection: &Connection) -> Option<u64> {
    if connection.flags.contains(ConnectionFlags::PREEXISTING) {
        return None;
    }
    match connection.role() {
        Some(Role::Client) => micros_between(connection.syn_ns, connection.open_ns),
        Some(Role::Server) if !connection.flags.contains(ConnectionFlags::ESTABLISHED) => None,
        Some(Role::Server) if connection.syn_ns != 0 => micros_between(connection.syn_ns, connection.open_ns),
        Some(Role::Server) if is_synack_sample(connection) => Some(connection.srtt_us as u64),
        _ => None,
    }
}

/// Two ends dialled each other at the same moment (RFC 9293 §3.5). Both are clients.
#[must_use]
pub const fn is_simultaneous(connection: &Connection) -> bool {
    connection.flags.contains(ConnectionFlags::SIMULTANEOUS_OPEN)
}

/// What the final ACK carried. Unknown in a simultaneous open, which has none of its own.
#[must_use]
#[inline(always)]
pub const fn final_ack(connection: &Connection) -> Option<FinalAck> {
    let flags = connection.flags;
    if !flags.contains(ConnectionFlags::ESTABLISHED)
        || flags.contains(ConnectionFlags::PREEXISTING)
        || flags.contains(ConnectionFlags::OPEN_UNTIMED)
        || is_simultaneous(connection)
    {
        return None;
    }
    // A rejected SYN payload is sent again at once, and that segment carries the ACK
    // (tcp_rcv_fastopen_synack).
    let resent = matches!(fast_open(connection), Some(FastOpen::DataRejected));
    Some(if flags.contains(ConnectionFlags::FINAL_ACK_DATA) || resent {
        FinalAck::Data
    } else {
        FinalAck::Bare
    })
}

/// What became of Fast Open. A SYN may carry data without a cookie, and then without the option
/// (`net.ipv4.tcp_fastopen` 0x4, `TCP_FASTOPEN_NO_COOKIE`). On a server, `none` says that this side accepted
/// no data in the SYN; what else the client's SYN asked for does not reach the socket.
#[must_use]
#[inline(always)]
pub const fn fast_open(connection: &Connection) -> Option<FastOpen> {
    let flags = connection.flags;
    match connection.role() {
        Some(Role::Client) if !flags.contains(ConnectionFlags::SYN_DATA) => {
            Some(if flags.contains(ConnectionFlags::SYN_FASTOPEN) {
                FastOpen::CookieRequested
            } else {
                FastOpen::None
            })
        }
        Some(Role::Client) if !flags.contains(ConnectionFlags::ESTABLISHED) => None,
        Some(Role::Client | Role::Server) if flags.contains(ConnectionFlags::SYN_DATA_ACKED) => {
            Some(FastOpen::DataAccepted)
        }
        Some(Role::Client) => Some(FastOpen::DataRejected),
        Some(Role::Server) if flags.contains(ConnectionFlags::ESTABLISHED) => Some(FastOpen::None),
        _ => None,
    }
}

/// Why the data in the SYN was rejected: the kernel's own rule in `tcp_rcv_fastopen_synack`.
#[must_use]
pub const fn fast_open_reason(connection: &Connection) -> Option<FastOpenReason> {
    match fast_open(connection) {
        Some(FastOpen::DataRejected) if connection.syn_retransmits > 0 => {
            Some(FastOpenReason::SynRetransmitted)
        }
        Some(FastOpen::DataRejected) => Some(FastOpenReason::DataNotAcked),
        _ => None,
    }
}

/// How long an established connection lay in the accept queue: ESTABLISHED → `accept()`. The program's time,
/// never the network's. Unknown where that was not seen, and where it came before ESTABLISHED (Fast Open).
#[must_use]
#[inline(always)]
pub const fn accept_wait_us(connection: &Connection) -> Option<u64> {
    if connection.was_accepted() && connection.accept_wait_us != u32::MAX {
        Some(connection.accept_wait_us as u64)
    } else {
        None
    }
}

/// Whether the server's socket was made from a SYN cookie. Only `false` can be certain without a hook on
/// `tcp_get_cookie_sock`: a cookie keeps neither the SYN-ACK's time nor its retransmissions.
#[must_use]
pub const fn syn_cookie(connection: &Connection) -> Option<bool> {
    match connection.role() {
        Some(Role::Server) if connection.flags.contains(ConnectionFlags::SYN_COOKIE) => Some(true),
        Some(Role::Server) if connection.flags.contains(ConnectionFlags::NO_SYN_COOKIE) => Some(false),
        Some(Role::Server)
            if connection.flags.contains(ConnectionFlags::ESTABLISHED)
                && (connection.syn_ns != 0
                    || connection.syn_retransmits > 0
                    || is_synack_sample(connection)) =>
        {
            Some(false)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(srtt_us: u32) -> Connection {
        Connection {
            role: Role::Server.code(),
            open_ns: 1_000_000_000,
            srtt_us,
            flags: ConnectionFlags::ESTABLISHED,
            ..Connection::default()
        }
    }

    #[test]
    fn a_server_takes_the_kernels_sample_not_the_tracepoint_difference() {
        let connection = server(51_265);
        assert_eq!(duration_us(&connection), Some(51_265));
        assert_eq!(rtt_us(&connection), Some(51_265));
        assert_eq!(final_ack(&connection), Some(FinalAck::Bare));
        assert_eq!(syn_cookie(&connection), Some(false));
    }

    #[test]
    fn a_lost_final_ack_is_a_duration_but_no_round_trip() {
        let mut connection = server(340_617);
        connection.flags.insert(ConnectionFlags::FINAL_ACK_DATA);
        assert_eq!(duration_us(&connection), Some(340_617));
        assert_eq!(rtt_us(&connection), None);
        assert_eq!(final_ack(&connection), Some(FinalAck::Data));
    }

    #[test]
    fn a_time_stamp_echo_is_no_sample() {
        let connection = server(81_000);
        assert_eq!(rtt_us(&connection), None);
        assert_eq!(duration_us(&connection), None);
        assert_eq!(syn_cookie(&connection), None, "may be a cookie, may be chance");
        let told = |flag| {
            let mut connection = connection;
            connection.flags.insert(flag);
            (syn_cookie(&connection), rtt_us(&connection))
        };
        assert_eq!(told(ConnectionFlags::SYN_COOKIE), (Some(true), None));
        assert_eq!(told(ConnectionFlags::NO_SYN_COOKIE), (Some(false), Some(connection.srtt_us.into())));
        let mut precise = server(81_001);
        precise.flags.insert(ConnectionFlags::USEC_TIMESTAMPS);
        assert_eq!(rtt_us(&precise), None);
    }

    #[test]
    fn a_retransmitted_synack_counts_from_the_first() {
        let mut connection = server(40_000);
        connection.syn_retransmits = 1;
        assert_eq!(duration_us(&connection), None, "the first SYN-ACK was not seen");
        connection.syn_ns = 1;
        assert_eq!(duration_us(&connection), Some(999_999));
        assert_eq!(rtt_us(&connection), None);
    }

    #[test]
    fn the_sample_of_an_early_answer_is_neither_duration_nor_round_trip() {
        let mut connection = server(50_124);
        connection.flags.insert(ConnectionFlags::SYN_DATA_ACKED | ConnectionFlags::ANSWERED_EARLY);
        assert_eq!((duration_us(&connection), rtt_us(&connection)), (None, None));
        connection.syn_ns = connection.open_ns - 55_200_000;
        assert_eq!((duration_us(&connection), rtt_us(&connection)), (Some(55_200), None));
    }

    #[test]
    fn fast_open_on_a_client() {
        let client = |flags: ConnectionFlags| Connection {
            role: Role::Client.code(),
            flags: flags | ConnectionFlags::ESTABLISHED,
            ..Connection::default()
        };
        let (option, data, acked) =
            (ConnectionFlags::SYN_FASTOPEN, ConnectionFlags::SYN_DATA, ConnectionFlags::SYN_DATA_ACKED);
        assert_eq!(fast_open(&client(ConnectionFlags::empty())), Some(FastOpen::None));
        assert_eq!(fast_open(&client(option)), Some(FastOpen::CookieRequested));
        assert_eq!(fast_open(&client(option | data | acked)), Some(FastOpen::DataAccepted));
        assert_eq!(fast_open(&client(data | acked)), Some(FastOpen::DataAccepted), "without a cookie");
        assert_eq!(fast_open(&client(data)), Some(FastOpen::DataRejected), "without a cookie");
        let rejected = client(option | data);
        assert_eq!(fast_open(&rejected), Some(FastOpen::DataRejected));
        assert_eq!(fast_open_reason(&rejected), Some(FastOpenReason::DataNotAcked));
        assert_eq!(final_ack(&rejected), Some(FinalAck::Data));
    }

    #[test]
    fn failures_by_errno() {
        let failed =
            |error| outcome(&Connection { role: Role::Client.code(), error, ..Connection::default() });
        assert_eq!(failed(0), Some(Outcome::Aborted));
        assert_eq!(failed(111), Some(Outcome::Refused));
        assert_eq!(failed(110), Some(Outcome::TimedOut));
        assert_eq!(failed(113), Some(Outcome::Unreachable));
        assert_eq!(failed(104), Some(Outcome::Reset));
        assert_eq!(failed(5), None);
    }

    #[test]
    fn opening_without_a_syn_was_not_given_up_by_its_program() {
        let ended =
            |flags| outcome(&Connection { role: Role::Client.code(), flags, ..Connection::default() });
        assert_eq!(ended(ConnectionFlags::NO_LOCAL_PORT), Some(Outcome::NoLocalPort));
        assert_eq!(ended(ConnectionFlags::NO_SYN), None);
    }
}
