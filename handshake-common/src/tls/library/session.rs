//! One TLS handshake as the calls of its library show it. The kernel side keeps a [`Session`] for each
//! session object whose handshake is under way; at its end the same bytes go out inside a raw
//! [`LibraryHandshake`].
//!
//! A call is entered and left by one thread (or goroutine); between the two, the segments that it sends and
//! receives are seen. Of those follow the socket, the flights, the moment of the ClientHello, and what of the
//! time was computing.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    connection::{Connection, micros_between},
    vocabulary::{Library, Role, TlsClass, TlsOutcome, TlsVersion},
};

/// Yes-or-no facts about a handshake, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct SessionFlags(u32);

bitflags! {
    impl SessionFlags: u32 {
        /// The library's own state was read at the end: the facts below it are as the library has them.
        const STATE_READ = 1;
        /// The session was resumed.
        const RESUMED = 1 << 1;
        /// There was a HelloRetryRequest.
        const HELLO_RETRY = 1 << 2;
        /// There was none, for certain.
        const NO_HELLO_RETRY = 1 << 3;
        /// Early data was offered.
        const EARLY_OFFERED = 1 << 4;
        /// Early data was accepted.
        const EARLY_ACCEPTED = 1 << 5;
        /// It is not known whether early data was offered.
        const EARLY_UNKNOWN = 1 << 6;
        /// The client sent data before the server's Finished.
        const FALSE_START = 1 << 7;
        /// A call slept where nothing could tell for how long: [`Session::compute_ns`] lacks something.
        const COMPUTE_UNKNOWN = 1 << 8;
        /// What the calls sent and received was seen.
        const FLIGHTS_SEEN = 1 << 9;
        /// [`Session::error`] is a reason of the library's own error queue.
        const REASON = 1 << 10;
        /// The negotiated version was read.
        const VERSION_READ = 1 << 11;
        /// The socket closed before the handshake was over.
        const SOCKET_CLOSED = 1 << 12;
        /// A call was left for something else on the same thread: what it sent and received was not seen in
        /// whole.
        const DOUBTED = 1 << 13;
    }
}

/// Bytes of a ChangeCipherSpec record.
const CHANGE_CIPHER_SPEC: u32 = 6;

/// Which way bytes went inside a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// To the peer.
    Sent = 1,
    /// From the peer.
    Received = 2,
}

/// How far a handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Progress {
    /// Under way.
    UnderWay = 0,
    /// Its record is out; the entry stays to know later calls for what they are.
    Over = 1,
}

/// One handshake of one session object. Times are CLOCK_MONOTONIC in nanoseconds; 0 is not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Session {
    /// The first call of the library.
    pub begun_ns: u64,
    /// Client: the ClientHello was handed to TCP. Server: it was received.
    pub hello_ns: u64,
    /// Complete, failed or abandoned.
    pub ended_ns: u64,
    /// The last thing seen inside the call under way; 0 outside of calls.
    pub mark_ns: u64,
    /// Time inside calls since the ClientHello, less what they slept waiting for the peer.
    pub compute_ns: u64,
    /// Address of the session object in its process.
    pub object: u64,
    /// Kernel address of the socket.
    pub sk: u64,
    /// How often the thread under way had gone to sleep by `mark_ns`.
    pub sleeps: u64,
    /// cgroup v2 id of the process.
    pub cgroup: u64,
    /// Name of the process, NUL-padded.
    pub comm: [u8; 16],
    /// ClientHello.random; zeros are unknown.
    pub random: [u8; 32],
    /// Process id (tgid) in the initial pid namespace.
    pub pid: u32,
    /// See [`SessionFlags`].
    pub flags: SessionFlags,
    /// What the library said of a failure: a return value, or with [`SessionFlags::REASON`] a reason code.
    pub error: i32,
    /// How often the library was called.
    pub calls: u32,
    /// Version as on the wire, such as 0x0304.
    pub version: u16,
    /// Cipher suite as on the wire; 0 is unknown.
    pub cipher: u16,
    /// [`Library`] code.
    pub library: u8,
    /// [`Role`] code.
    pub role: u8,
    /// [`TlsOutcome`] code.
    pub outcome: u8,
    /// [`Progress`].
    pub progress: u8,
    /// The last [`Flow`].
    pub last_flow: u8,
    /// How often receiving followed sending: round trips, as long as the end that speaks last is left out.
    pub turns_to_receive: u8,
    /// Always 0.
    pub reserved: [u8; 2],
    /// The thread (its id) that was in the last call; 0 for goroutines.
    pub thread: u32,
}

/// A raw record: a handshake that is over, and the connection that it was made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LibraryHandshake {
    /// With [`crate::Stage::Tls`]. Its `id` is 0 where the socket is not known: then only the stage is set.
    pub connection: Connection,
    /// What the library's calls showed.
    pub session: Session,
}

/// Size of a raw handshake, bytes.
pub const SIZE: usize = size_of::<LibraryHandshake>();

const _: () = assert!(size_of::<Session>() == 9 * 8 + 16 + 32 + 4 * 4 + 2 * 2 + 12, "no padding");
const _: () = assert!(SIZE == crate::connection::SIZE + size_of::<Session>(), "no padding in between");

/// A number for a handshake whose connection is not known, as its records show it.
#[must_use]
pub const fn id(session: &Session) -> u64 {
    let process = (session.pid as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    session.object.rotate_left(16) ^ process ^ session.begun_ns
}

impl Session {
    /// A call of the library begins; `sleeps` is how often its thread has gone to sleep so far.
    #[inline(always)]
    pub fn enter(&mut self, now: u64, sleeps: u64) {
        if self.begun_ns == 0 {
            self.begun_ns = now;
        }
        // The call before was not seen to return, nor what it did since it was seen last.
        if self.mark_ns != 0 {
            self.mark_uncertain();
        }
        self.calls = self.calls.wrapping_add(1);
        self.mark_ns = now;
        self.sleeps = sleeps;
    }

    /// Time inside a call has passed. Whoever slept meanwhile waited for the peer: libraries compute right
    /// after they receive and right before they send, not on the way to sleep.
    #[inline(always)]
    pub fn advance(&mut self, now: u64, sleeps: u64) {
        if self.mark_ns != 0 && sleeps == self.sleeps {
            self.compute_ns = self.compute_ns.wrapping_add(now.wrapping_sub(self.mark_ns));
        }
        self.mark_ns = now;
        self.sleeps = sleeps;
    }

    /// So many bytes went through the socket inside a call.
    #[inline(always)]
    pub fn transferred(&mut self, flow: Flow, bytes: u32, now: u64, sleeps: u64) {
        self.advance(now, sleeps);
        if self.hello_ns == 0 {
            let server = self.role == Role::Server.code();
            // A client whose first call sends nothing has its hello written elsewhere: with early data by
            // OpenSSL, or by the program itself. What it may send from inside later calls is something else.
            let is_hello = match flow {
                Flow::Received => server,
                Flow::Sent => !server && self.calls == 1,
            };
            if !is_hello {
                return;
            }
            if !self.flags.contains(SessionFlags::DOUBTED) {
                self.flags.remove(SessionFlags::COMPUTE_UNKNOWN);
                self.flags.insert(SessionFlags::FLIGHTS_SEEN);
            }
            self.hello_ns = now;
            // What the client computed before its hello, or the server before it had one, is before the
            // beginning; known or not.
            self.compute_ns = 0;
        }
        // A dummy ChangeCipherSpec goes out in the middle of the peer's flight and answers nothing (RFC 8446
        // §D.4).
        if matches!(flow, Flow::Sent) && bytes == CHANGE_CIPHER_SPEC && self.last_flow != 0 {
            return;
        }
        if self.last_flow == Flow::Sent as u8 && flow as u8 == Flow::Received as u8 {
            self.turns_to_receive = self.turns_to_receive.saturating_add(1);
        }
        self.last_flow = flow as u8;
    }

    /// A call returns.
    #[inline(always)]
    pub fn leave(&mut self, now: u64, sleeps: u64) {
        if self.mark_ns != 0 && sleeps != self.sleeps && !self.flags.contains(SessionFlags::FLIGHTS_SEEN) {
            self.flags.insert(SessionFlags::COMPUTE_UNKNOWN);
        }
        self.advance(now, sleeps);
        self.mark_ns = 0;
    }

    /// A call was left for a while, for something else on the same thread: what it computed is not known, nor
    /// all that it sent and received.
    #[inline(always)]
    pub fn mark_uncertain(&mut self) {
        self.flags.remove(SessionFlags::FLIGHTS_SEEN);
        self.flags.insert(SessionFlags::DOUBTED | SessionFlags::COMPUTE_UNKNOWN);
    }

    /// The handshake is over; `now` is 0 where that was not seen.
    #[inline(always)]
    pub fn end(&mut self, outcome: TlsOutcome, now: u64) {
        if now == 0 {
            self.mark_uncertain();
        }
        self.ended_ns = now;
        self.outcome = outcome.code();
        self.progress = Progress::Over as u8;
    }

    /// Whether its record is out.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.progress == Progress::Over as u8
    }
}

impl LibraryHandshake {
    /// Reads a raw record from the ring buffer. Returns `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

/// The version that was negotiated.
#[must_use]
pub const fn version(session: &Session) -> Option<TlsVersion> {
    if !session.flags.contains(SessionFlags::VERSION_READ) || session.outcome != TlsOutcome::Completed.code()
    {
        return None;
    }
    version_of(session.version)
}

/// The version that a number on the wire stands for.
#[must_use]
pub const fn version_of(number: u16) -> Option<TlsVersion> {
    match number {
        0x0301 => Some(TlsVersion::Tls10),
        0x0302 => Some(TlsVersion::Tls11),
        0x0303 => Some(TlsVersion::Tls12),
        0x0304 => Some(TlsVersion::Tls13),
        _ => None,
    }
}

/// DTLS 1.2 on the wire (RFC 6347 §4.1).
pub const DTLS1_2: u16 = 0xfefd;
/// What came before DTLS 1.0, on the wire.
const DTLS_BAD: u16 = 0x0100;
/// `DTLS_ANY_VERSION` of OpenSSL (openssl/ssl.h), of which 16 bits were taken: nothing is negotiated yet.
const DTLS_ANY: u16 = 0xffff;

/// Whether it is one of DTLS, which no TCP connection carries. Versions of DTLS count downwards from 0xfeff.
#[must_use]
pub const fn is_datagram(session: &Session) -> bool {
    session.flags.contains(SessionFlags::VERSION_READ)
        && (session.version >> 8 == 0xfe || matches!(session.version, DTLS_BAD | DTLS_ANY))
}

/// Whether there was a HelloRetryRequest: what the library says, or else the flights. A TLS 1.3 handshake has
/// one round trip, and another for each HelloRetryRequest.
#[must_use]
pub const fn hello_retry(session: &Session) -> Option<bool> {
    let flags = session.flags;
    if flags.contains(SessionFlags::HELLO_RETRY) {
        return Some(true);
    }
    match version(session) {
        // Only TLS 1.3 has it (RFC 8446 §4.1.4).
        Some(TlsVersion::Tls13) if flags.contains(SessionFlags::NO_HELLO_RETRY) => Some(false),
        Some(TlsVersion::Tls13) if flags.contains(SessionFlags::FLIGHTS_SEEN) => match role(session) {
            // Of a server, too: its tickets may follow the client's Finished, and the turn to sending them is
            // none of the handshake.
            Some(_) => Some(session.turns_to_receive > 1),
            None => None,
        },
        Some(TlsVersion::Tls13) | None => None,
        Some(_) => Some(false),
    }
}

/// Which way the handshake went; unknown where one of the facts that decide it is.
#[must_use]
pub const fn class(session: &Session) -> Option<TlsClass> {
    let flags = session.flags;
    if session.outcome != TlsOutcome::Completed.code() || !flags.contains(SessionFlags::STATE_READ) {
        return None;
    }
    if flags.contains(SessionFlags::EARLY_ACCEPTED) {
        return Some(TlsClass::EarlyDataAccepted);
    }
    if flags.contains(SessionFlags::EARLY_OFFERED) {
        return Some(TlsClass::EarlyDataRejected);
    }
    if flags.contains(SessionFlags::FALSE_START) {
        return Some(TlsClass::FalseStart);
    }
    let early_unknown =
        flags.contains(SessionFlags::EARLY_UNKNOWN) && !matches!(version(session), Some(TlsVersion::Tls12));
    if early_unknown {
        return None;
    }
    match hello_retry(session) {
        Some(true) => Some(TlsClass::HelloRetry),
        _ if flags.contains(SessionFlags::RESUMED) => Some(TlsClass::Resumed),
        Some(false) => Some(TlsClass::Full),
        None => None,
    }
}

/// Which end of the handshake this is.
#[must_use]
pub const fn role(session: &Session) -> Option<Role> {
    Role::from_code(session.role)
}

/// How it ended.
#[must_use]
pub const fn outcome(session: &Session) -> Option<TlsOutcome> {
    TlsOutcome::from_code(session.outcome)
}

/// Whose code made it.
#[must_use]
pub const fn library(session: &Session) -> Option<Library> {
    Library::from_code(session.library)
}

/// When the handshake began, nanoseconds: the ClientHello where it was seen, else the first call.
#[must_use]
pub const fn start_ns(session: &Session) -> u64 {
    if session.hello_ns != 0 { session.hello_ns } else { session.begun_ns }
}

/// Whether a server's wait for the ClientHello is in the duration, because its arrival was not seen.
#[must_use]
pub const fn includes_hello_wait(session: &Session) -> bool {
    session.hello_ns == 0 && session.role == Role::Server.code()
}

/// ClientHello → complete, microseconds.
#[must_use]
pub const fn duration_us(session: &Session) -> Option<u64> {
    micros_between(start_ns(session), session.ended_ns)
}

/// Inside the library's calls, without what they slept, microseconds.
#[must_use]
pub const fn compute_us(session: &Session) -> Option<u64> {
    if session.flags.contains(SessionFlags::COMPUTE_UNKNOWN) { None } else { Some(session.compute_ns / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn completed(role: Role, flags: SessionFlags, version: u16) -> Session {
        let mut session = Session { role: role.code(), version, ..Session::default() };
        session.flags = flags | SessionFlags::STATE_READ | SessionFlags::VERSION_READ;
        session.outcome = TlsOutcome::Completed.code();
        session
    }

    /// A blocking client: everything in one call, which sleeps while the peer answers.
    fn blocking_client(flights: u64) -> Session {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        for flight in 0..flights {
            session.transferred(Flow::Sent, 300, (2 + 52 * flight) * MS, flight);
            // A flight may come in pieces.
            session.transferred(Flow::Received, 500, (52 + 52 * flight) * MS, flight + 1);
            session.transferred(Flow::Received, 500, (52 + 52 * flight) * MS, flight + 1);
        }
        session.transferred(Flow::Sent, 80, (2 + 52 * flights) * MS, flights);
        session.leave((3 + 52 * flights) * MS, flights);
        session.end(TlsOutcome::Completed, (3 + 52 * flights) * MS);
        session
    }

    #[test]
    fn sleeping_is_not_computing() {
        let session = blocking_client(1);
        assert_eq!(duration_us(&session), Some(53_000));
        assert_eq!(compute_us(&session), Some(3_000));
    }

    #[test]
    fn flights_tell_a_hello_retry_request() {
        assert_eq!(class(&blocking_client(1)), Some(TlsClass::Full));
        assert_eq!(class(&blocking_client(2)), Some(TlsClass::HelloRetry));
    }

    #[test]
    fn what_a_client_sends_in_a_later_call_is_no_hello() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        session.leave(2 * MS, 0);
        session.enter(52 * MS, 1);
        session.transferred(Flow::Sent, 100, 53 * MS, 1);
        session.leave(54 * MS, 1);
        session.end(TlsOutcome::Completed, 54 * MS);
        assert_eq!(duration_us(&session), Some(53_000));
        assert_eq!(hello_retry(&session), None);
    }

    #[test]
    fn a_dummy_change_cipher_spec_is_no_flight() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        for (flow, bytes) in
            [(Flow::Sent, 300), (Flow::Received, 127), (Flow::Sent, 6), (Flow::Received, 900)]
        {
            session.transferred(flow, bytes, 2 * MS, 0);
        }
        assert_eq!(hello_retry(&session), Some(false));
    }

    #[test]
    fn a_server_whose_tickets_follow_the_finished_had_one_round_trip() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        for flow in [Flow::Received, Flow::Sent, Flow::Received, Flow::Sent] {
            session.transferred(flow, 500, 2 * MS, 0);
        }
        assert_eq!(hello_retry(&session), Some(false));
        assert_eq!(session.hello_ns, 2 * MS);
        session.transferred(Flow::Received, 80, 3 * MS, 0);
        assert_eq!(hello_retry(&session), Some(true));
    }

    #[test]
    fn a_call_that_slept_unseen_has_no_compute_time() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        session.leave(60 * MS, 3);
        assert_eq!(compute_us(&session), None);
        assert_eq!(class(&session), None, "there may have been a HelloRetryRequest");
        assert!(includes_hello_wait(&session));
    }

    #[test]
    fn early_data_and_resumption() {
        let class = |flags| class(&completed(Role::Client, flags, 0x0304));
        assert_eq!(class(SessionFlags::RESUMED), Some(TlsClass::Resumed));
        assert_eq!(
            class(SessionFlags::EARLY_OFFERED | SessionFlags::EARLY_ACCEPTED | SessionFlags::RESUMED),
            Some(TlsClass::EarlyDataAccepted)
        );
        assert_eq!(
            class(SessionFlags::EARLY_OFFERED | SessionFlags::RESUMED),
            Some(TlsClass::EarlyDataRejected)
        );
        assert_eq!(class(SessionFlags::EARLY_UNKNOWN | SessionFlags::RESUMED), None);
    }

    #[test]
    fn a_call_that_was_not_seen_to_return_leaves_doubt() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        session.transferred(Flow::Sent, 300, 2 * MS, 0);
        session.enter(50 * MS, 4);
        session.transferred(Flow::Received, 500, 52 * MS, 4);
        session.leave(53 * MS, 4);
        session.end(TlsOutcome::Completed, 53 * MS);
        assert_eq!((class(&session), compute_us(&session)), (None, None));
    }

    #[test]
    fn bytes_survive_and_wrong_ones_are_refused() {
        let handshake = LibraryHandshake { session: blocking_client(1), ..LibraryHandshake::default() };
        assert_eq!(LibraryHandshake::from_bytes(handshake.as_bytes()), Some(handshake));
        assert_eq!(LibraryHandshake::from_bytes(&handshake.as_bytes()[1..]), None);
    }

    #[test]
    fn a_call_that_slept_before_the_hello_does_not_count() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0303);
        session.enter(MS, 0);
        session.leave(3 * MS, 1);
        assert_eq!(compute_us(&session), None);
        session.enter(50 * MS, 1);
        session.transferred(Flow::Received, 300, 51 * MS, 1);
        session.leave(53 * MS, 1);
        assert_eq!(compute_us(&session), Some(2000));
    }

    #[test]
    fn what_was_not_seen_in_whole_is_unknown() {
        let mut session = blocking_client(1);
        assert_eq!(class(&session), Some(TlsClass::Full));
        assert!(compute_us(&session).is_some());
        session.mark_uncertain();
        assert_eq!((class(&session), compute_us(&session)), (None, None));
        session.flags.insert(SessionFlags::RESUMED);
        assert_eq!(class(&session), Some(TlsClass::Resumed), "the library itself tells");

        // Nor is what comes later.
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, 0);
        session.mark_uncertain();
        session.transferred(Flow::Sent, 300, 2 * MS, 0);
        session.transferred(Flow::Received, 500, 52 * MS, 1);
        assert_eq!(class(&session), None);

        session.end(TlsOutcome::Completed, 0);
        assert_eq!(duration_us(&session), None, "its end was not seen");
    }
}
