//! Which round trips a connection did not need, and the setting that saves each. Pure.
//!
//! The fewest possible are what the protocols allow to ends that have met before: none, with Fast Open (RFC
//! 7413) and early data (RFC 8446 §2.3).

use std::time::Duration;

use handshake_common::{
    CloseStyle, FastOpen, FastOpenReason, Initiator, Library, Outcome, Role, TlsClass, TlsOutcome, TlsVersion,
};

use crate::event::{Close, ConnectionEvent, ListenQueue, Open, StallCause, Tls};

/// One setting, what it would have saved, and what to know about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What to change, and on which end.
    pub setting: Setting,
    /// Round trips before the client may send application data.
    pub round_trips: u8,
    /// Time, from the connection's own round trip; `None` if that is unknown.
    pub time: Option<Duration>,
}

/// Defines the settings: in a few words, and what else to know.
macro_rules! settings {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $detail:literal;)+) => {
        /// What to change. "Here" is the end whose record it is, "there" is the other.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Setting { $($(#[$doc])* $variant),+ }

        impl Setting {
            /// Every setting.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// What to change, in a few words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What else belongs to it, why, and at what price.
            #[must_use]
            pub const fn detail(self) -> &'static str {
                match self { $(Self::$variant => $detail),+ }
            }
        }
    };
}

settings! {
    /// Client: TLS 1.2 or older, full.
    Tls13OnPeer = "TLS 1.3 on the server",
        "and in this client, should it not offer it; without TLS 1.3, session tickets save the same round trip for clients that come back";
    /// Server: TLS 1.2 or older, full.
    Tls13Here = "TLS 1.3 on this server (nginx: ssl_protocols)",
        "and in clients that do not offer it; without TLS 1.3, session tickets save the same round trip for clients that come back";
    /// A HelloRetryRequest.
    KeyShare = "the same first group on both ends (ssl_ecdh_curve, Groups)",
        "the server took none of the key shares in the first ClientHello and asked for another (HelloRetryRequest)";
    /// Full, of any version.
    TicketsAndEarlyData = "session tickets and early data, for idempotent requests",
        "early data can be replayed (RFC 8446 §8, §E.5); in TLS 1.3, tickets alone save the certificates and the computing for them, but no round trip";
    /// TLS 1.3, resumed.
    EarlyData = "early data on the resumed session, for idempotent requests",
        "early data can be replayed (RFC 8446 §8, §E.5)";
    /// TLS 1.2 or older, resumed or with false start.
    Tls13EarlyData = "TLS 1.3 with early data, for idempotent requests",
        "early data can be replayed (RFC 8446 §8, §E.5); TLS 1.3 alone takes as many round trips as this";
    /// Early data rejected.
    EarlyDataAccepted = "a server that takes early data, for idempotent requests",
        "it was offered and rejected (nginx: ssl_early_data; all servers of a name need the same ticket keys); early data can be replayed (RFC 8446 §8, §E.5)";
    /// Client that did not ask for Fast Open.
    FastOpenInClient = "TCP Fast Open: net.ipv4.tcp_fastopen 0x1 here, 0x2 there",
        "with TCP_FASTOPEN_CONNECT in this client and TCP_FASTOPEN on the server's listener; data in the SYN can arrive twice (RFC 7413 §6.1), which a TLS handshake bears";
    /// Client that asked for a cookie.
    FastOpenCookie = "TCP Fast Open, asked for: net.ipv4.tcp_fastopen 0x2 there",
        "with TCP_FASTOPEN on the server's listener; this client asked for a cookie, and if it got one, its next connection saves the round trip";
    /// Client whose data in the SYN was not taken.
    FastOpenOnServer = "a server that takes data in the SYN: net.ipv4.tcp_fastopen 0x2",
        "with TCP_FASTOPEN on its listener, and a queue there that is long enough";
    /// Client whose SYN with data was retransmitted.
    FastOpenPath = "a path that lets SYNs with data pass (TCP Fast Open)",
        "the SYN with data was retransmitted without it: lost, or dropped by something on the way";
    /// Server that took no data in a SYN.
    FastOpenHere = "TCP Fast Open: net.ipv4.tcp_fastopen 0x2 here, 0x1 there",
        "with TCP_FASTOPEN on this listener (nginx: listen … fastopen=N; 0x400 more: on every listener) and TCP_FASTOPEN_CONNECT in the client; data in the SYN can arrive twice (RFC 7413 §6.1), which a TLS handshake bears";
    /// Fast Open carried a part of the ClientHello only.
    HelloInSyn = "a ClientHello that fits into the SYN (smaller key shares)",
        "data in the SYN was taken, but the rest of the ClientHello came a round trip later; post-quantum key shares do not fit";
    /// The client's SYN was retransmitted.
    SynLost = "no loss of the SYN: path, firewall, listen queue",
        "it is sent again after a second at first (RFC 6298 §2.1); the queue: net.core.somaxconn, net.ipv4.tcp_max_syn_backlog on the server";
    /// The client's SYN was retransmitted, and the listener of this host that it came to has dropped packets.
    AcceptQueue = "accept() sooner, or a longer backlog of listen() there",
        "the listening socket is on this host and has dropped packets: its accept queue may have been full, the SYN is then sent again after a second at first (RFC 6298 §2.1); the queue holds the backlog of listen(), at most net.core.somaxconn";
    /// There was no local port.
    LocalPorts = "more local ports, or fewer connections to one address",
        "net.ipv4.ip_local_port_range; connections kept and used again; ports in TIME_WAIT at the end that closes first (net.ipv4.tcp_tw_reuse); or the program has bound a port whose connection to this address still exists";
    /// The server's SYN-ACK was retransmitted.
    SynAckLost = "no loss of the SYN-ACK or its ACK: path, accept queue",
        "it is sent again after a second at first (RFC 6298 §2.1); the queue: the backlog of listen(), net.core.somaxconn";
    /// The ClientHello came long after ESTABLISHED.
    LateHello = "a client that begins as soon as the connection is open",
        "its program did something else between the opening and its ClientHello; with STARTTLS that is the dialogue before it";
    /// The setup took longer than network, computing here and a late ClientHello explain.
    SetupWait = "answers at once, in one piece (TCP_NODELAY, TCP_QUICKACK)",
        "neither the network nor what this end saw explains the time: the peer computed, its program waited, or a segment of the peer was lost";
    /// The ACK of the FIN came late.
    DelayedAck = "a peer that closes at once, or acknowledges so (TCP_QUICKACK)",
        "the ACK of the FIN came as much later than a round trip as delayed ACKs do, 40 ms and more";
    /// TCP here held a part of a flight.
    NagleHere = "TCP_NODELAY in this program, or one write for each flight",
        "Nagle's algorithm holds the second small segment of a flight until the first is acknowledged, a round trip, and more where the other end delays its ACK (40 ms and more; TCP_QUICKACK there would save that part)";
    /// TCP there held a part of a flight.
    NagleThere = "TCP_NODELAY in the peer's program, or one write a flight",
        "its Nagle's algorithm held the second small segment of a flight until this end acknowledged the first, which it delayed (TCP_QUICKACK here would save that part)";
    /// A segment of a flight was retransmitted.
    SegmentLost = "no loss of segments on the path (TLS flights)",
        "a lost segment of a small flight is sent again after 200 ms and a round trip at the soonest";
    /// The library of this end computed.
    LessComputing = "less computing for a handshake here (ECDSA, resumption, CPU)",
        "the library computed all that time, or waited for a CPU: RSA keys, large groups, long chains, a loaded host";
    /// The program of this end waited.
    SlowProgramHere = "a program here that answers at once",
        "what the handshake waited for had arrived, and the program did not call its library: a blocked event loop, a full thread pool, no CPU";
    /// The peer's program closed late.
    SlowClosePeer = "close() in the peer's program as soon as it reads the end",
        "this end had closed and waited";
    /// Our program closed late.
    SlowCloseHere = "close() in this program as soon as it reads the end",
        "the peer had closed and waited";
}

/// The shortest time by which an ACK is delayed (`TCP_DELACK_MIN`), less the scatter of what it is found by.
const DELAYED_ACK: Duration = Duration::from_millis(35);
/// The longest (`TCP_DELACK_MAX`), with the same scatter.
const MAX_DELAY: Duration = Duration::from_millis(210);
/// How far times of the two views may be apart that are the same moment.
const SCATTER: Duration = Duration::from_millis(5);
/// Programs that close faster than this need no advice.
const SLOW_CLOSE: Duration = Duration::from_millis(10);
/// Before the first retransmission of a SYN or SYN-ACK (`TCP_TIMEOUT_INIT`); later ones wait as long, or
/// longer.
pub const SYN_TIMER: Duration = Duration::from_secs(1);

/// The round trips of the setup, or of the TCP handshake if no TLS handshake is known. Returns `None` if they
/// are unknown or it failed.
#[must_use]
pub fn taken(record: &ConnectionEvent) -> Option<u8> {
    match (&record.tls, record.setup) {
        (_, Some(setup)) => setup.round_trips,
        (Some(_), None) => None,
        (None, None) => {
            let open = record.open.as_ref().filter(|open| open.outcome == Some(Outcome::Established))?;
            Some(u8::from(open.fast_open? != FastOpen::DataAccepted))
        }
    }
}

/// The fewest round trips that this pair of ends could have taken.
#[must_use]
pub fn possible(record: &ConnectionEvent) -> Option<u8> {
    let saved = advise(record).iter().map(|advice| advice.round_trips).sum();
    taken(record).map(|taken| taken.saturating_sub(saved))
}

/// What would have made this connection faster, in the order of its life.
#[must_use]
pub fn advise(record: &ConnectionEvent) -> Vec<Advice> {
    let open = record.open.as_ref();
    let rtt = open.and_then(|open| open.rtt);
    let mut all = Vec::new();
    let succeeded = record.tls.as_ref().is_none_or(|tls| tls.outcome == Some(TlsOutcome::Completed));
    if succeeded {
        let one = |setting| Advice { setting, round_trips: 1, time: rtt };
        if let Some(tls) = &record.tls {
            all.extend(of_tls(tls.role.or(record.role), tls).into_iter().map(one));
        }
        all.extend(open.and_then(|open| of_fast_open(record, open)).map(one));
    }
    let timed = |setting, time| Advice { setting, round_trips: 0, time };
    let retransmitted = |open: &&Open| open.outcome == Some(Outcome::Established) && open.syn_retransmits > 0;
    if let Some(open) = open.filter(retransmitted) {
        let setting = match record.role {
            Some(Role::Server) => Setting::SynAckLost,
            _ if open.listener.is_some_and(is_short) => Setting::AcceptQueue,
            _ => Setting::SynLost,
        };
        let timers = SYN_TIMER * u32::from(open.syn_retransmits);
        all.push(timed(setting, Some(timers).filter(|&us| open.duration.is_some_and(|took| us <= took))));
    }
    all.extend(open.and_then(of_failure).map(|setting| timed(setting, None)));
    all.extend(of_waits(record).map(|(setting, us)| timed(setting, Some(us))));
    let orderly = |close: &&Close| {
        matches!(
            close.style,
            Some(CloseStyle::FourSegments | CloseStyle::ThreeSegments | CloseStyle::Simultaneous)
        )
    };
    if let Some(close) = record.close.as_ref().filter(orderly) {
        all.extend(of_close(close, rtt).map(|(setting, us)| timed(setting, Some(us))));
    }
    all
}

/// Whether the queue of a listening socket may have been too short.
const fn is_short(queue: ListenQueue) -> bool {
    queue.drops > 0 || queue.accept_queue > queue.accept_queue_limit
}

/// What an opening failed for want of.
fn of_failure(open: &Open) -> Option<Setting> {
    match open.outcome {
        Some(Outcome::NoLocalPort) => Some(Setting::LocalPorts),
        Some(Outcome::TimedOut) if open.listener.is_some_and(is_short) => Some(Setting::AcceptQueue),
        _ => None,
    }
}

/// Settings of TLS; each saves one round trip.
fn of_tls(role: Option<Role>, tls: &Tls) -> Vec<Setting> {
    let mut settings = Vec::new();
    let (Some(version), Some(class)) = (tls.version, tls.class) else { return settings };
    if was_retried(tls) {
        settings.push(Setting::KeyShare);
    }
    // Go has early data for QUIC only.
    let can_send_early = tls.library != Some(Library::Go);
    let early = match (version, class) {
        (TlsVersion::Tls13, TlsClass::Full | TlsClass::HelloRetry) => Setting::TicketsAndEarlyData,
        (TlsVersion::Tls13, TlsClass::Resumed) => Setting::EarlyData,
        (TlsVersion::Tls13, TlsClass::EarlyDataRejected) => Setting::EarlyDataAccepted,
        (TlsVersion::Tls13, TlsClass::EarlyDataAccepted | TlsClass::FalseStart) => return settings,
        (_, TlsClass::Full) => {
            let server = role == Some(Role::Server);
            settings.push(if server { Setting::Tls13Here } else { Setting::Tls13OnPeer });
            Setting::TicketsAndEarlyData
        }
        (_, TlsClass::Resumed | TlsClass::FalseStart) => Setting::Tls13EarlyData,
        (_, TlsClass::HelloRetry | TlsClass::EarlyDataAccepted | TlsClass::EarlyDataRejected) => {
            return settings;
        }
    };
    if can_send_early {
        settings.push(early);
    }
    settings
}

/// What the setup took beyond its round trips and the computing on this end, and who caused it.
fn of_waits(record: &ConnectionEvent) -> impl Iterator<Item = (Setting, Duration)> {
    let long = |time: &Duration| *time >= DELAYED_ACK;
    let excess = record
        .setup
        .and_then(|setup| setup.excess_us)
        .and_then(|us| u64::try_from(us).ok())
        .map(Duration::from_micros);
    let (tls, open) = (record.tls.as_ref(), record.open.as_ref());
    let opened = open.and_then(|open| open.duration);
    // To a dialler that is the TLS server the ClientHello comes a round trip later.
    let due = opened.and_then(|open| {
        if has_two_roles(record) && record.role == Some(Role::Client) {
            open.checked_add(record.rtt()?)
        } else {
            Some(open)
        }
    });
    let hello = tls.and_then(|tls| tls.start).zip(due).and_then(|(hello, due)| hello.checked_sub(due));
    let late = hello.filter(|_| record.setup.is_some()).filter(long);
    let compute = tls.and_then(|tls| tls.compute).unwrap_or_default();
    let stalls = named_stalls(tls);
    // What computed is in the computing time; what came behind the setup is not in it.
    let setup = record.setup.and_then(|setup| setup.duration);
    let in_setup = stalls.iter().filter(|(setting, _, until)| {
        *setting != Setting::LessComputing && setup.is_some_and(|setup| *until <= setup + SCATTER)
    });
    let named = in_setup.map(|(_, time, _)| *time).sum();
    let rest = excess
        .and_then(|time| time.checked_sub(compute)?.checked_sub(late.unwrap_or_default())?.checked_sub(named))
        .filter(long);
    late.map(|us| (Setting::LateHello, us))
        .into_iter()
        .chain(stalls.into_iter().map(|(setting, time, _)| (setting, time)))
        .chain(rest.map(|us| (Setting::SetupWait, us)))
}

/// What held up flights of the handshake and can be mended, for how long, and until when.
fn named_stalls(tls: Option<&Tls>) -> Vec<(Setting, Duration, Duration)> {
    let stalls = tls.and_then(|tls| tls.stalls.as_deref()).unwrap_or_default();
    let local = tls.and_then(|tls| tls.role);
    let mut named: Vec<(Setting, Duration, Duration)> = Vec::new();
    for stall in stalls {
        let here = local == Some(stall.end);
        let setting = match stall.cause {
            Some(StallCause::Nagle) if here => Setting::NagleHere,
            Some(StallCause::Nagle) => Setting::NagleThere,
            // Without Nagle's algorithm nobody would have waited for that ACK.
            Some(StallCause::DelayedAck) => {
                if let Some((_, time, _)) = named.last_mut().filter(|(_, _, until)| *until == stall.until) {
                    *time = time.saturating_add(stall.duration);
                }
                continue;
            }
            Some(StallCause::Retransmission) => Setting::SegmentLost,
            Some(StallCause::Computing) if here => Setting::LessComputing,
            Some(StallCause::Waiting) if here => Setting::SlowProgramHere,
            _ => continue,
        };
        match named.iter_mut().find(|(other, ..)| *other == setting) {
            Some((_, time, until)) => {
                *time = time.saturating_add(stall.duration);
                *until = stall.until;
            }
            None => named.push((setting, stall.duration, stall.until)),
        }
    }
    named
}

/// Whether this end has one role in TCP and the other one in TLS.
#[must_use]
pub fn has_two_roles(record: &ConnectionEvent) -> bool {
    let tls = record.tls.as_ref().and_then(|tls| tls.role);
    record.role.zip(tls).is_some_and(|(tcp, tls)| tcp != tls)
}

/// Whether a HelloRetryRequest cost a round trip.
#[must_use]
pub fn was_retried(tls: &Tls) -> bool {
    tls.version == Some(TlsVersion::Tls13) && (tls.hello_retry || tls.class == Some(TlsClass::HelloRetry))
}

/// The Fast Open setting that would save the round trip of the TCP handshake.
fn of_fast_open(record: &ConnectionEvent, open: &Open) -> Option<Setting> {
    // A simultaneous open has no listener to take data.
    if open.outcome != Some(Outcome::Established) || open.simultaneous {
        return None;
    }
    match (open.fast_open?, record.role?) {
        (FastOpen::DataAccepted, _) => {
            (hello_in_syn(record) == Some(false) && record.tls.is_some()).then_some(Setting::HelloInSyn)
        }
        (FastOpen::None, Role::Client) => Some(Setting::FastOpenInClient),
        (_, Role::Server) => Some(Setting::FastOpenHere),
        (FastOpen::CookieRequested, Role::Client) => Some(Setting::FastOpenCookie),
        (FastOpen::DataRejected, Role::Client) => Some(match open.fast_open_reason {
            Some(FastOpenReason::SynRetransmitted) => Setting::FastOpenPath,
            Some(FastOpenReason::DataNotAcked) | None => Setting::FastOpenOnServer,
        }),
    }
}

/// Whether the whole ClientHello was in a SYN whose data was accepted: then the setup took a round trip less.
#[must_use]
pub fn hello_in_syn(record: &ConnectionEvent) -> Option<bool> {
    let open = record.open.as_ref()?;
    if open.fast_open? != FastOpen::DataAccepted {
        return Some(false);
    }
    record.tls.as_ref()?.hello_in_syn
}

/// Who kept whom waiting, and for how long.
fn of_close(close: &Close, rtt: Option<Duration>) -> impl Iterator<Item = (Setting, Duration)> {
    let passive = close.initiator == Some(Initiator::Remote);
    let late = close.ack_wait.zip(rtt).and_then(|(wait, rtt)| wait.checked_sub(rtt));
    // A peer that closed first answers our FIN at once.
    let delayed = late.filter(|us| !passive && (DELAYED_ACK..=MAX_DELAY).contains(us));
    let slow = close.app_wait.filter(|&us| us >= SLOW_CLOSE);
    let whose = if passive { Setting::SlowCloseHere } else { Setting::SlowClosePeer };
    let delayed = delayed.map(|us| (Setting::DelayedAck, us));
    delayed.into_iter().chain(slow.filter(|_| close.initiator.is_some()).map(|us| (whose, us)))
}
