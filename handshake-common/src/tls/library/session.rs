//! One TLS handshake as seen from the calls of its library. The kernel side keeps a [`Session`] for each
//! session object whose handshake is in progress; at its end the same bytes are sent inside a raw
//! [`LibraryHandshake`].
//!
//! A call is entered and left by one thread (or goroutine); between the two, the segments that it sends and
//! receives are seen. They show the socket, the flights, the time of the ClientHello, and how much of the
//! time was spent computing.

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
        /// The library's own state was read at the end: the facts below are those of the library.
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
        /// A call slept for a time that could not be measured: [`Session::compute_ns`] is incomplete.
        const COMPUTE_UNKNOWN = 1 << 8;
        /// What the calls sent and received was seen.
        const FLIGHTS_SEEN = 1 << 9;
        /// [`Session::error`] is a reason of the library's own error queue.
        const REASON = 1 << 10;
        /// The negotiated version was read.
        const VERSION_READ = 1 << 11;
        /// The socket closed before the handshake was over.
        const SOCKET_CLOSED = 1 << 12;
        /// A call was left for something else on the same thread: not all that it sent and received was seen.
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

/// How far a handshake has progressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Progress {
    /// In progress.
    UnderWay = 0,
    /// Its record has been sent; the entry remains so that later calls are not taken for a new handshake.
    Over = 1,
}

/// What a thread has done so far, in one word: how often it has gone to sleep, in the lower 16 bits, and for
/// how long it has run or waited for a CPU, above them in units of 1024 ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Activity(u64);

impl Activity {
    /// `sleeps` as the kernel counts them (`nvcsw`), `ran_ns` as of the thread's last switch or tick.
    #[inline(always)]
    #[must_use]
    pub const fn new(sleeps: u64, ran_ns: u64) -> Self {
        Self(((ran_ns >> 10) << 16) | (sleeps & 0xffff))
    }

    /// Whether it has gone to sleep since then.
    #[inline(always)]
    #[must_use]
    pub const fn has_slept_since(self, before: Self) -> bool {
        (self.0 ^ before.0) & 0xffff != 0
    }

    /// For how long it has run or waited for a CPU since then, nanoseconds; a tick (1 to 10 ms) off at most.
    #[inline(always)]
    #[must_use]
    pub const fn ran_ns_since(self, before: Self) -> u64 {
        ((self.0 >> 16).wrapping_sub(before.0 >> 16) << 10) & (u64::MAX >> 6)
    }
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
    /// The last event inside the call in progress; 0 outside calls.
    pub mark_ns: u64,
    /// Time inside calls since the ClientHello, less what they slept.
    pub compute_ns: u64,
    /// Address of the session object in its process.
    pub object: u64,
    /// Kernel address of the socket.
    pub sk: u64,
    /// What the calling thread had done by `mark_ns`.
    pub activity: Activity,
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
    /// The failure as the library reported it: a return value, or with [`SessionFlags::REASON`] a reason
    /// code.
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
    /// How often receiving followed sending: the round trips, unless this end sends last.
    pub turns_to_receive: u8,
    /// Always 0.
    pub reserved: [u8; 2],
    /// The thread (its id) that was in the last call; 0 for goroutines.
    pub thread: u32,
    /// The application protocol that was chosen (RFC 7301): so many bytes of `alpn` …
    pub alpn_length: u8,
    /// … 0 if none was, or it is unknown.
    pub alpn: [u8; MAX_ALPN],
}

/// The longest application protocol that is read, bytes. The longest of IANA's registry has 20.
pub const MAX_ALPN: usize = 23;

/// A raw record: a handshake that is over, and the connection that it was made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LibraryHandshake {
    /// With [`crate::Stage::Tls`]. If the socket is not known, `id` is 0 and only the stage is set.
    pub connection: Connection,
    /// What the library's calls showed.
    pub session: Session,
}

/// Size of a raw handshake, bytes.
pub const SIZE: usize = size_of::<LibraryHandshake>();

const _: () = assert!(size_of::<Session>() == 9 * 8 + 16 + 32 + 4 * 4 + 2 * 2 + 12 + 24, "no padding");
const _: () = assert!(SIZE == crate::connection::SIZE + size_of::<Session>(), "no padding in between");

/// The number of a handshake whose connection is not known, for the `id` of its record.
#[must_use]
pub const fn id(session: &Session) -> u64 {
    let process = (session.pid as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    session.object.rotate_left(16) ^ process ^ session.begun_ns
}

impl Session {
    /// A call of the library begins.
    #[inline(always)]
    pub fn enter(&mut self, now: u64, activity: Activity) {
        if self.begun_ns == 0 {
            self.begun_ns = now;
        }
        // The return of the previous call was not seen, nor what it did after its last event.
        if self.mark_ns != 0 {
            self.mark_uncertain();
        }
        self.calls = self.calls.wrapping_add(1);
        self.mark_ns = now;
        self.activity = activity;
    }

    /// Time inside a call has passed. If the thread slept meanwhile, it waited for the peer: libraries
    /// compute right after receiving and right before sending, not before going to sleep.
    #[inline(always)]
    pub fn advance(&mut self, now: u64, activity: Activity) {
        if self.mark_ns != 0 && !activity.has_slept_since(self.activity) {
            self.compute_ns = self.compute_ns.wrapping_add(now.wrapping_sub(self.mark_ns));
        }
        self.mark_ns = now;
        self.activity = activity;
    }

    /// The same for what ends with something sent. If the thread slept meanwhile, it was not for the peer but
    /// for a lock, the disk, or in a callback of the program; the rest it computed.
    #[inline(always)]
    fn answer(&mut self, now: u64, activity: Activity) {
        if self.mark_ns != 0 && activity.has_slept_since(self.activity) {
            let (passed, ran) = (now.wrapping_sub(self.mark_ns), activity.ran_ns_since(self.activity));
            self.compute_ns = self.compute_ns.wrapping_add(if ran < passed { ran } else { passed });
        }
        self.advance(now, activity);
    }

    /// Bytes were sent or received inside a call.
    #[inline(always)]
    pub fn transferred(&mut self, flow: Flow, bytes: u32, now: u64, activity: Activity) {
        match flow {
            Flow::Sent => self.answer(now, activity),
            Flow::Received => self.advance(now, activity),
        }
        if self.hello_ns == 0 {
            let server = self.role == Role::Server.code();
            // If a client's first call sends nothing, its hello is sent elsewhere: by OpenSSL with early
            // data, or by the program itself. What later calls send is then not the hello.
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
            // What the client computed before its hello, or the server before it received one, is not part
            // of the handshake, whether it is known or not.
            self.compute_ns = 0;
        }
        // A dummy ChangeCipherSpec is sent in the middle of the peer's flight and is no reply (RFC 8446
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
    pub fn leave(&mut self, now: u64, activity: Activity) {
        if self.mark_ns != 0
            && activity.has_slept_since(self.activity)
            && !self.flags.contains(SessionFlags::FLIGHTS_SEEN)
        {
            self.flags.insert(SessionFlags::COMPUTE_UNKNOWN);
        }
        self.advance(now, activity);
        self.mark_ns = 0;
    }

    /// A call was left for a while for something else on the same thread: its computing time is unknown, and
    /// so is part of what it sent and received.
    #[inline(always)]
    pub fn mark_uncertain(&mut self) {
        self.flags.remove(SessionFlags::FLIGHTS_SEEN);
        self.flags.insert(SessionFlags::DOUBTED | SessionFlags::COMPUTE_UNKNOWN);
    }

    /// The handshake is over; `now` is 0 if its end was not seen.
    #[inline(always)]
    pub fn end(&mut self, outcome: TlsOutcome, now: u64) {
        if now == 0 {
            self.mark_uncertain();
        }
        self.ended_ns = now;
        self.outcome = outcome.code();
        self.progress = Progress::Over as u8;
    }

    /// Whether its record has been sent.
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
/// The predecessor of DTLS 1.0 on the wire.
const DTLS_BAD: u16 = 0x0100;
/// `DTLS_ANY_VERSION` of OpenSSL (openssl/ssl.h), cut to 16 bits: nothing is negotiated yet.
const DTLS_ANY: u16 = 0xffff;

/// Whether it is a version of DTLS, which no TCP connection carries. Versions of DTLS count downwards from
/// 0xfeff.
#[must_use]
pub const fn is_datagram(session: &Session) -> bool {
    session.flags.contains(SessionFlags::VERSION_READ)
        && (session.version >> 8 == 0xfe || matches!(session.version, DTLS_BAD | DTLS_ANY))
}

/// Whether there was a HelloRetryRequest: from the library, or else from the flights. A TLS 1.3 handshake
/// takes one round trip, and another for each HelloRetryRequest.
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
            // For a server, too: its tickets may follow the client's Finished, and sending them is not part
            // of the handshake.
            Some(_) => Some(session.turns_to_receive > 1),
            None => None,
        },
        Some(TlsVersion::Tls13) | None => None,
        Some(_) => Some(false),
    }
}

/// The class of the handshake; unknown if one of the facts that decide it is.
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

/// The application protocol that was chosen.
#[must_use]
pub fn alpn(session: &Session) -> Option<&[u8]> {
    session.alpn.get(..usize::from(session.alpn_length)).filter(|name| !name.is_empty())
}

/// The library whose code performed it.
#[must_use]
pub const fn library(session: &Session) -> Option<Library> {
    Library::from_code(session.library)
}

/// When the handshake began, nanoseconds: the ClientHello if it was seen, otherwise the first call.
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

/// The time inside the library's calls without their sleep, microseconds.
#[must_use]
pub const fn compute_us(session: &Session) -> Option<u64> {
    if session.flags.contains(SessionFlags::COMPUTE_UNKNOWN) { None } else { Some(session.compute_ns / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A thread that has gone to sleep so often.
    fn slept(sleeps: u64) -> Activity {
        Activity::new(sleeps, 0)
    }

    fn completed(role: Role, flags: SessionFlags, version: u16) -> Session {
        let mut session = Session { role: role.code(), version, ..Session::default() };
        session.flags = flags | SessionFlags::STATE_READ | SessionFlags::VERSION_READ;
        session.outcome = TlsOutcome::Completed.code();
        session
    }

    /// A blocking client: everything in one call, which sleeps while the peer answers.
    fn blocking_client(flights: u64) -> Session {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        for flight in 0..flights {
            session.transferred(Flow::Sent, 300, (2 + 52 * flight) * MS, slept(flight));
            // A flight may come in pieces.
            session.transferred(Flow::Received, 500, (52 + 52 * flight) * MS, slept(flight + 1));
            session.transferred(Flow::Received, 500, (52 + 52 * flight) * MS, slept(flight + 1));
        }
        session.transferred(Flow::Sent, 80, (2 + 52 * flights) * MS, slept(flights));
        session.leave((3 + 52 * flights) * MS, slept(flights));
        session.end(TlsOutcome::Completed, (3 + 52 * flights) * MS);
        session
    }

    #[test]
    fn sleeping_is_not_computing() {
        let session = blocking_client(1);
        assert_eq!(duration_us(&session), Some(53_000));
        assert_eq!(compute_us(&session), Some(3_000));
    }

    /// A server that receives a ClientHello, sleeps meanwhile, and answers after 150 ms.
    fn answered(ran_ns: u64) -> Option<u64> {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0304);
        let before = 0xffff_ffff_ffff * 1024;
        session.enter(MS, Activity::new(0xffff, before));
        session.transferred(Flow::Received, 300, 2 * MS, Activity::new(0xffff, before));
        session.transferred(Flow::Sent, 900, 152 * MS, Activity::new(0x1_0000, before + ran_ns));
        session.leave(152 * MS, Activity::new(0x1_0000, before + ran_ns));
        compute_us(&session)
    }

    #[test]
    fn sleep_before_an_answer_is_not_for_the_peer() {
        assert_eq!(answered(148 * MS), Some(147_999), "it computed, and slept for 2 ms");
        assert_eq!(answered(1024), Some(1), "it slept in a callback");
        assert_eq!(answered(200 * MS), Some(150_000), "the kernel had not yet counted what it ran before");
    }

    #[test]
    fn hello_retry_request_is_recognised_by_the_flights() {
        assert_eq!(class(&blocking_client(1)), Some(TlsClass::Full));
        assert_eq!(class(&blocking_client(2)), Some(TlsClass::HelloRetry));
    }

    #[test]
    fn data_sent_in_a_later_call_is_not_the_hello() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        session.leave(2 * MS, slept(0));
        session.enter(52 * MS, slept(1));
        session.transferred(Flow::Sent, 100, 53 * MS, slept(1));
        session.leave(54 * MS, slept(1));
        session.end(TlsOutcome::Completed, 54 * MS);
        assert_eq!(duration_us(&session), Some(53_000));
        assert_eq!(hello_retry(&session), None);
    }

    #[test]
    fn dummy_change_cipher_spec_is_not_a_flight() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        for (flow, bytes) in
            [(Flow::Sent, 300), (Flow::Received, 127), (Flow::Sent, 6), (Flow::Received, 900)]
        {
            session.transferred(flow, bytes, 2 * MS, slept(0));
        }
        assert_eq!(hello_retry(&session), Some(false));
    }

    #[test]
    fn tickets_after_the_finished_are_not_a_round_trip() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        for flow in [Flow::Received, Flow::Sent, Flow::Received, Flow::Sent] {
            session.transferred(flow, 500, 2 * MS, slept(0));
        }
        assert_eq!(hello_retry(&session), Some(false));
        assert_eq!(session.hello_ns, 2 * MS);
        session.transferred(Flow::Received, 80, 3 * MS, slept(0));
        assert_eq!(hello_retry(&session), Some(true));
    }

    #[test]
    fn unmeasured_sleep_makes_the_compute_time_unknown() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        session.leave(60 * MS, slept(3));
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
    fn call_without_a_return_makes_facts_unknown() {
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        session.transferred(Flow::Sent, 300, 2 * MS, slept(0));
        session.enter(50 * MS, slept(4));
        session.transferred(Flow::Received, 500, 52 * MS, slept(4));
        session.leave(53 * MS, slept(4));
        session.end(TlsOutcome::Completed, 53 * MS);
        assert_eq!((class(&session), compute_us(&session)), (None, None));
    }

    #[test]
    fn record_is_read_back_and_malformed_ones_are_refused() {
        let handshake = LibraryHandshake { session: blocking_client(1), ..LibraryHandshake::default() };
        assert_eq!(LibraryHandshake::from_bytes(handshake.as_bytes()), Some(handshake));
        assert_eq!(LibraryHandshake::from_bytes(&handshake.as_bytes()[1..]), None);
    }

    #[test]
    fn sleep_before_the_hello_is_ignored() {
        let mut session = completed(Role::Server, SessionFlags::default(), 0x0303);
        session.enter(MS, slept(0));
        session.leave(3 * MS, slept(1));
        assert_eq!(compute_us(&session), None);
        session.enter(50 * MS, slept(1));
        session.transferred(Flow::Received, 300, 51 * MS, slept(1));
        session.leave(53 * MS, slept(1));
        assert_eq!(compute_us(&session), Some(2000));
    }

    #[test]
    fn partly_seen_call_makes_facts_unknown() {
        let mut session = blocking_client(1);
        assert_eq!(class(&session), Some(TlsClass::Full));
        assert!(compute_us(&session).is_some());
        session.mark_uncertain();
        assert_eq!((class(&session), compute_us(&session)), (None, None));
        session.flags.insert(SessionFlags::RESUMED);
        assert_eq!(class(&session), Some(TlsClass::Resumed), "the library itself tells");

        // Nor is anything later.
        let mut session = completed(Role::Client, SessionFlags::default(), 0x0304);
        session.enter(MS, slept(0));
        session.mark_uncertain();
        session.transferred(Flow::Sent, 300, 2 * MS, slept(0));
        session.transferred(Flow::Received, 500, 52 * MS, slept(1));
        assert_eq!(class(&session), None);

        session.end(TlsOutcome::Completed, 0);
        assert_eq!(duration_us(&session), None, "its end was not seen");
    }
}
