//! The state that the kernel side keeps for one connection. Its bytes are also the record that user space
//! reads.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    tls::library::key::Key,
    vocabulary::{Family, Initiator, ProcessBy, Role, Stage},
};

/// Yes-or-no facts about a connection, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct ConnectionFlags(u32);

bitflags! {
    impl ConnectionFlags: u32 {
        /// The connection existed before the program started: nothing is known of its opening.
        const PREEXISTING = 1;
        /// It reached ESTABLISHED.
        const ESTABLISHED = 1 << 1;
        /// ESTABLISHED was reached, but the moment was not seen (a Fast Open child closed before it).
        const OPEN_UNTIMED = 1 << 2;
        /// `tcp_sock.syn_fastopen`: our SYN carried the Fast Open option.
        const SYN_FASTOPEN = 1 << 3;
        /// `tcp_sock.syn_data`: our SYN carried data.
        const SYN_DATA = 1 << 4;
        /// Client: the SYN-ACK acknowledged more than the SYN. Server: `syn_data_acked`, data came in the
        /// SYN.
        const SYN_DATA_ACKED = 1 << 5;
        /// `tcp_sock.fastopen_connect`: the SYN leaves at the first write, not at `connect()`.
        const DEFERRED_SYN = 1 << 6;
        /// Client: the kernel holds the final ACK back for data. Server: data came with the completing ACK.
        const FINAL_ACK_DATA = 1 << 7;
        /// `tcp_sock.tcp_usec_ts`: time-stamp echoes have microseconds, so they cannot be distinguished
        /// from real samples.
        const USEC_TIMESTAMPS = 1 << 8;
        /// A RST was received.
        const RESET_RECEIVED = 1 << 9;
        /// A RST was sent.
        const RESET_SENT = 1 << 10;
        /// FIN_WAIT1 → CLOSING was seen.
        const CLOSING = 1 << 11;
        /// Data was still unsent when the program closed, so FIN_WAIT1 or LAST_ACK is not "FIN sent".
        const UNSENT_AT_CLOSE = 1 << 12;
        /// At CLOSE_WAIT → LAST_ACK our ACK of the peer's FIN had not gone out yet.
        const ACK_OWED_AT_CLOSE = 1 << 13;
        /// At CLOSE_WAIT → LAST_ACK that ACK had gone out.
        const ACKED_BEFORE_CLOSE = 1 << 14;
        /// One segment acknowledged our FIN and carried the peer's.
        const FIN_WITH_ACK = 1 << 15;
        /// Our FIN was acknowledged by a segment without a FIN.
        const ACK_WITHOUT_FIN = 1 << 16;
        /// A time-wait minisocket took over in FIN_WAIT2: the peer's FIN cannot be seen from the tracepoints.
        const PEER_FIN_UNSEEN = 1 << 17;
        /// The table has been full: what is `PREEXISTING` may have begun while the table had no free entry.
        const MAYBE_UNFOLLOWED = 1 << 18;
        /// SYN_SENT → SYN_RECV: two ends dialled each other at the same moment (RFC 9293 §3.5).
        const SIMULTANEOUS_OPEN = 1 << 19;
        /// Fast Open: the segment that completed the handshake acknowledged data of the server's, so that the
        /// kernel's sample began at that data.
        const ANSWERED_EARLY = 1 << 20;
        /// A timer of the kernel's gave the connection up (`tcp_write_err`).
        const TIMED_OUT = 1 << 21;
        /// The socket was made from a SYN cookie (`tcp_get_cookie_sock`).
        const SYN_COOKIE = 1 << 22;
        /// It surely was not: that function is hooked, and did not make it.
        const NO_SYN_COOKIE = 1 << 23;
        /// A client's opening ended before its SYN was made, and not by its program.
        const NO_SYN = 1 << 26;
        /// That was because no local port could be had: none was free, or the ends are taken.
        const NO_LOCAL_PORT = 1 << 27;
        /// The program that closed has another name than the one that listened; of no meaning on a client.
        const OTHER_PROGRAM = 1 << 28;
        /// The process is the one that ran the TLS handshake. Only user space sets it.
        const OWNER_HANDSHAKES = 1 << 29;
        /// The process is the one that listens, not necessarily the one that serves; once the connection was
        /// accepted ([`Accepted`]), the one that accepted it.
        const OWNER_LISTENS = 1 << 30;
        /// The process is the one that called `connect()`.
        const OWNER_CONNECTS = 1 << 31;
    }
}

/// What `accept()` tells. Beside [`ConnectionFlags`], because the socket's lock is not held then: a segment
/// may change those at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Accepted(u32);

bitflags! {
    impl Accepted: u32 {
        /// A process took the connection out of the accept queue.
        const BY_A_PROCESS = 1;
        /// Its program has another name than the one that listens.
        const OTHER_PROGRAM = 1 << 1;
    }
}

/// Which of its records a connection has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// SYN sent or received, nothing published yet.
    Opening = 0,
    /// The open record has been sent.
    Open = 1,
    /// The first FIN or RST was seen.
    Closing = 2,
    /// CLOSE was reached; how is certain only after a RST or the end of the socket.
    Ending = 3,
    /// All records have been sent; the entry remains until its socket is destroyed.
    Done = 4,
}

/// How much of a connection's TLS handshake the wire view has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WirePhase {
    /// No ClientHello was seen.
    Idle = 0,
    /// A ClientHello was seen: a record of the wire view will follow.
    Handshaking = 1,
    /// That record has been sent.
    Reported = 2,
    /// What began like a ClientHello could not be followed: whether it was one is not known.
    Unsure = 3,
    /// That record is out, but the server may yet refuse the client's Finished (TLS 1.3).
    Settling = 4,
}

/// One connection. Times are `bpf_ktime_get_ns` (CLOCK_MONOTONIC); 0 means not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Connection {
    /// [`Stage`] code of this record, and as the first byte of every raw record a [`crate::Kind`] code.
    pub stage: u8,
    /// [`Role`] code.
    pub role: u8,
    /// [`Family`] code.
    pub family: u8,
    /// [`Phase`].
    pub phase: u8,
    /// [`Initiator`] code.
    pub initiator: u8,
    /// [`WirePhase`]. A byte of its own: packets change it while the socket's events change the rest.
    pub wire: u8,
    /// How many connections this socket made before (`connect(AF_UNSPEC)` resets a socket).
    pub generation: u16,
    /// The socket's cookie (shown by `ss -e` as `sk:`), or a number of our own if the kernel provides none.
    pub id: u64,
    /// Client: SYN_SENT, or the SYN itself where it is deferred. Server: the first SYN-ACK, known only
    /// where a retransmission of it was seen, or where Fast Open made the socket at the SYN.
    pub syn_ns: u64,
    /// ESTABLISHED, or the failure of the opening.
    pub open_ns: u64,
    /// Our program closed: FIN_WAIT1 or LAST_ACK.
    pub our_close_ns: u64,
    /// Our FIN left the host.
    pub our_fin_ns: u64,
    /// The ACK of our FIN was received.
    pub fin_acked_ns: u64,
    /// The peer's FIN was received.
    pub peer_fin_ns: u64,
    /// The state became CLOSE.
    pub closed_ns: u64,
    /// `tcp_clock_cache` while the ACK of our FIN was handled: shows whether the same segment carried a FIN.
    pub fin_acked_clock_ns: u64,
    /// The session object of the TLS handshake in progress on this socket; [`Key::ENDED`] after it.
    pub tls_session: Key,
    /// cgroup v2 id of the process; 0 = unknown.
    pub cgroup: u64,
    /// Server: ESTABLISHED → `accept()`, microseconds; of meaning where `accepted` says that it was seen, and
    /// [`u32::MAX`] for anything longer than that.
    pub accept_wait_us: u32,
    /// See [`Accepted`].
    pub accepted: Accepted,
    /// Addresses in network order; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// See `local`.
    pub remote: [u8; 16],
    /// Name of the process (its group leader), NUL-padded.
    pub comm: [u8; 16],
    /// Inode of the network namespace.
    pub netns: u32,
    /// Process id (tgid) in the initial pid namespace; 0 = unknown. How it is known: [`Connection::owner`].
    pub pid: u32,
    /// See [`ConnectionFlags`].
    pub flags: ConnectionFlags,
    /// `srtt_us >> 3` at ESTABLISHED, microseconds; 0 = no sample.
    pub srtt_us: u32,
    /// `total_retrans` when our program closed: shows whether the FIN may have been retransmitted.
    pub retrans_at_close: u32,
    /// `data_segs_in` when our program closed: distinguishes a RST from data received after the close.
    pub data_segs_at_close: u32,
    /// Retransmissions of the SYN (client) or SYN-ACK (server).
    pub syn_retransmits: u16,
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
    /// `sk_err` at the failure or at CLOSE.
    pub error: u16,
}

/// Size of a raw record, bytes.
pub const SIZE: usize = size_of::<Connection>();

const _: () = assert!(SIZE == 200, "the raw record has no padding and both sides know its size");
const _: () = assert!(core::mem::offset_of!(Connection, error) == SIZE - 2);

impl Connection {
    /// Reads a raw record from the ring buffer. Returns `None` if the length is wrong or the stage is
    /// unknown.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok().filter(|connection| connection.stage().is_some())
    }

    /// Which end this is.
    #[must_use]
    #[inline(always)]
    pub const fn role(&self) -> Option<Role> {
        Role::from_code(self.role)
    }

    /// The address family on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn family(&self) -> Option<Family> {
        Family::from_code(self.family)
    }

    /// Which stage this record ends.
    #[must_use]
    #[inline(always)]
    pub const fn stage(&self) -> Option<Stage> {
        Stage::from_code(self.stage)
    }

    /// Who began the closing.
    #[must_use]
    #[inline(always)]
    pub const fn initiator(&self) -> Option<Initiator> {
        Initiator::from_code(self.initiator)
    }

    /// How its process is known. Returns `None` if it is not.
    #[must_use]
    #[inline(always)]
    pub const fn owner(&self) -> Option<ProcessBy> {
        if self.pid == 0 {
            return None;
        }
        Some(if self.flags.contains(ConnectionFlags::OWNER_CONNECTS) {
            ProcessBy::Connect
        } else if self.flags.contains(ConnectionFlags::OWNER_LISTENS) {
            if self.was_accepted() { ProcessBy::Accept } else { ProcessBy::Listener }
        } else if self.flags.contains(ConnectionFlags::OWNER_HANDSHAKES) {
            ProcessBy::Tls
        } else {
            ProcessBy::Close
        })
    }

    /// Whether it is certain which process has the connection, not only which one listened for it.
    #[must_use]
    #[inline(always)]
    pub const fn has_exact_owner(&self) -> bool {
        self.pid != 0 && (!self.flags.contains(ConnectionFlags::OWNER_LISTENS) || self.was_accepted())
    }

    /// Whether a process was seen to accept it.
    #[must_use]
    #[inline(always)]
    pub const fn was_accepted(&self) -> bool {
        self.accepted.contains(Accepted::BY_A_PROCESS)
    }

    /// Whether the program that serves it has another name than the one that listens.
    #[must_use]
    pub const fn is_of_another_program(&self) -> bool {
        self.flags.contains(ConnectionFlags::OTHER_PROGRAM) || self.accepted.contains(Accepted::OTHER_PROGRAM)
    }

    /// Takes the process of another view of the same connection, unless its own is as certain. One that only
    /// accepted it gives way to another that ran its TLS handshake.
    pub const fn take_owner(&mut self, of: &Self) {
        const HOW: ConnectionFlags = ConnectionFlags::OWNER_CONNECTS
            .union(ConnectionFlags::OWNER_LISTENS)
            .union(ConnectionFlags::OWNER_HANDSHAKES);
        let is_final = self.pid != 0 && !self.flags.contains(ConnectionFlags::OWNER_LISTENS);
        let is_same = self.was_accepted() && (self.pid == of.pid || !of.has_exact_owner());
        if is_final || is_same || of.pid == 0 {
            return;
        }
        if of.was_accepted() {
            (self.accepted, self.accept_wait_us) = (of.accepted, of.accept_wait_us);
        }
        (self.pid, self.comm, self.cgroup) = (of.pid, of.comm, of.cgroup);
        self.flags = self.flags.difference(HOW).union(of.flags.intersection(HOW));
    }

    /// Whether the connection is in this phase.
    #[must_use]
    #[inline(always)]
    pub const fn is(&self, phase: Phase) -> bool {
        self.phase == phase as u8
    }

    /// Whether neither view has seen a TLS handshake on it.
    #[must_use]
    #[inline(always)]
    pub const fn shows_no_tls(&self) -> bool {
        self.tls_session.is_unused() && self.wire_is(WirePhase::Idle)
    }

    /// Whether the wire view is in this phase.
    #[must_use]
    #[inline(always)]
    pub const fn wire_is(&self, watch: WirePhase) -> bool {
        self.wire == watch as u8
    }

    /// Whether the wire view still follows this connection.
    #[must_use]
    #[inline(always)]
    pub const fn wire_is_unsettled(&self) -> bool {
        self.wire_is(WirePhase::Handshaking) || self.wire_is(WirePhase::Settling)
    }
}

/// Whole microseconds from `start` to `end` (nanoseconds); unknown if either was not seen or they are out of
/// order.
#[must_use]
#[inline(always)]
pub(crate) const fn micros_between(start_ns: u64, end_ns: u64) -> Option<u64> {
    if start_ns == 0 || end_ns < start_ns { None } else { Some((end_ns - start_ns) / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_back_and_malformed_ones_are_refused() {
        let connection =
            Connection { id: 7, stage: Stage::Close.code(), local: [1; 16], ..Connection::default() };
        assert_eq!(Connection::from_bytes(connection.as_bytes()), Some(connection));
        assert_eq!(Connection::from_bytes(&connection.as_bytes()[1..]), None);
        assert_eq!(Connection::from_bytes(Connection::default().as_bytes()), None, "no stage");
    }

    fn served(pid: u32, how: ConnectionFlags, accepted: Accepted) -> Connection {
        Connection { pid, flags: how, accepted, ..Connection::default() }
    }

    #[test]
    fn process_that_accepts_replaces_the_listener_and_gives_way_to_the_one_that_serves() {
        let none = ConnectionFlags::empty();
        let listens = served(1, ConnectionFlags::OWNER_LISTENS, Accepted::empty());
        let accepts = served(2, ConnectionFlags::OWNER_LISTENS, Accepted::BY_A_PROCESS);
        let handshakes = served(3, ConnectionFlags::OWNER_HANDSHAKES, Accepted::empty());
        let closes = served(4, none, Accepted::BY_A_PROCESS);
        let taken = |mut from: Connection, of: &Connection| {
            from.take_owner(of);
            (from.pid, from.owner())
        };
        assert_eq!(taken(listens, &accepts), (2, Some(ProcessBy::Accept)));
        assert_eq!(taken(accepts, &listens), (2, Some(ProcessBy::Accept)));
        assert_eq!(taken(accepts, &handshakes), (3, Some(ProcessBy::Tls)));
        let same = Connection { pid: 2, ..handshakes };
        assert_eq!(taken(accepts, &same), (2, Some(ProcessBy::Accept)));
        assert_eq!(taken(closes, &handshakes), (4, Some(ProcessBy::Close)));
        assert!(accepts.has_exact_owner() && !listens.has_exact_owner());
    }

    #[test]
    fn unseen_time_gives_no_duration() {
        assert_eq!(micros_between(0, 5000), None);
        assert_eq!(micros_between(5000, 0), None);
        assert_eq!(micros_between(5000, 4000), None);
        assert_eq!(micros_between(5000, 7999), Some(2));
    }
}
