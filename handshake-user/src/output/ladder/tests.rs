//! What connections of every kind look like, and that no record is too strange to be drawn.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use handshake_common::{
    CloseStyle, FastOpen, FastOpenReason, FinalAck, Initiator, Library, Outcome, Role, Stage, TimeWaitEnd,
    TlsClass, TlsOutcome, TlsSource, TlsVersion,
};
use proptest::prelude::*;

use super::{MAX_NAME, draw, draw_rest, svg, tls_facts};
use crate::{
    cgroup::Names,
    event::{
        self,
        testing::{RTT_US, closed, opened, us, waited, with_tls},
    },
    event::{
        Certificate, Close, ConnectionEvent, Endpoint, Flight, ListenQueue, Open, Process, Setup, Stall,
        StallCause, Tls, Unseen,
    },
    join::advice,
    output::{table::Table, text::columns},
    untrusted::{Untrusted, is_harmless},
};

fn edited(mut record: ConnectionEvent, edit: impl FnOnce(&mut ConnectionEvent)) -> String {
    edit(&mut record);
    draw(&record)
}

fn open(record: &mut ConnectionEvent) -> &mut Open {
    record.open.as_mut().unwrap()
}

fn tls(record: &mut ConnectionEvent) -> &mut Tls {
    record.tls.as_mut().unwrap()
}

/// Its ClientHello, or plain data, went with the SYN.
fn fast_opened(mut record: ConnectionEvent) -> ConnectionEvent {
    open(&mut record).fast_open = Some(FastOpen::DataAccepted);
    if let Some(tls) = &mut record.tls {
        tls.hello_in_syn = Some(true);
        tls.start = us(0);
    }
    if let Some(setup) = &mut record.setup {
        setup.round_trips = setup.round_trips.map(|many| many - 1);
        setup.duration =
            setup.duration.and_then(|took| took.checked_sub(Duration::from_micros(RTT_US + 100)));
    }
    record
}

#[test]
fn plain_tcp() {
    insta::assert_snapshot!(draw(&closed(Role::Client)));
}

#[test]
fn picture_has_the_rungs_of_the_ladder() {
    let record = with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full);
    insta::assert_snapshot!(svg(&record).replace("><", ">\n<"));
}

#[test]
fn an_opening_that_may_have_been_followed_by_tls() {
    insta::assert_snapshot!(edited(opened(Role::Server), |record| record.process = None));
}

#[test]
fn tls_1_2_full_on_the_client() {
    let record = with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full);
    insta::assert_snapshot!(edited(record, |record| open(record).final_ack = Some(FinalAck::Data)));
}

#[test]
fn tls_1_2_full_on_the_server() {
    insta::assert_snapshot!(draw(&with_tls(Role::Server, TlsVersion::Tls12, TlsClass::Full)));
}

#[test]
fn tls_1_2_resumed() {
    insta::assert_snapshot!(draw(&with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Resumed)));
}

#[test]
fn tls_1_2_false_start() {
    insta::assert_snapshot!(draw(&with_tls(Role::Client, TlsVersion::Tls12, TlsClass::FalseStart)));
}

#[test]
fn tls_1_3_full_on_both_ends() {
    let [client, server] =
        [Role::Client, Role::Server].map(|role| draw(&with_tls(role, TlsVersion::Tls13, TlsClass::Full)));
    insta::assert_snapshot!(format!("{client}\n{server}"));
}

#[test]
fn a_hello_retry_request_on_both_ends() {
    let [client, server] = [Role::Client, Role::Server]
        .map(|role| draw(&with_tls(role, TlsVersion::Tls13, TlsClass::HelloRetry)));
    insta::assert_snapshot!(format!("{client}\n{server}"));
}

#[test]
fn late_fin_and_time_wait() {
    let whole = draw(&waited(Role::Client));
    let rest = draw_rest(&waited(Role::Client));
    let fin = edited(waited(Role::Client), |record| {
        let close = record.close.as_mut().unwrap();
        (close.time_wait, close.time_wait_end, close.grain) = (None, None, us(1_000));
    });
    insta::assert_snapshot!(format!("{whole}\n{rest}\n{fin}"));
}

#[test]
fn ends_of_time_wait() {
    let drawn = TimeWaitEnd::ALL.iter().map(|&end| {
        let mut record = waited(Role::Client);
        let close = record.close.as_mut().unwrap();
        close.time_wait_end = Some(end);
        match end {
            TimeWaitEnd::RanOut => {}
            TimeWaitEnd::Reused => {
                (close.time_wait, close.reused_by, close.grain) = (us(1_500_000), Some("1008".into()), None);
            }
            TimeWaitEnd::Reset | TimeWaitEnd::CutOff => close.time_wait = None,
            TimeWaitEnd::NoFin => {
                (close.time_wait, close.late_fin, close.unseen) = (None, false, Some(Unseen::PeerFin));
                (close.duration, close.app_wait, close.grain) = (None, None, None);
            }
        }
        draw_rest(&record)
    });
    insta::assert_snapshot!(drawn.collect::<String>());
}

#[test]
fn tls_1_3_resumed() {
    insta::assert_snapshot!(draw(&with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Resumed)));
}

#[test]
fn early_data_accepted() {
    insta::assert_snapshot!(draw(&with_tls(Role::Client, TlsVersion::Tls13, TlsClass::EarlyDataAccepted)));
}

#[test]
fn early_data_rejected() {
    insta::assert_snapshot!(draw(&with_tls(Role::Client, TlsVersion::Tls13, TlsClass::EarlyDataRejected)));
}

#[test]
fn fast_open_with_the_hello_in_the_syn_on_both_ends() {
    let [client, server] = [Role::Client, Role::Server]
        .map(|role| draw(&fast_opened(with_tls(role, TlsVersion::Tls13, TlsClass::Full))));
    insta::assert_snapshot!(format!("{client}\n{server}"));
}

#[test]
fn fast_open_with_early_data() {
    let record = fast_opened(with_tls(Role::Client, TlsVersion::Tls13, TlsClass::EarlyDataAccepted));
    insta::assert_snapshot!(draw(&record));
}

#[test]
fn a_hello_too_large_for_the_syn() {
    let mut record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    open(&mut record).fast_open = Some(FastOpen::DataAccepted);
    tls(&mut record).start = us(0);
    tls(&mut record).duration = us(2 * RTT_US + 900);
    tls(&mut record).hello_in_syn = Some(false);
    insta::assert_snapshot!(draw(&record));
}

#[test]
fn fast_open_of_which_it_is_not_known_what_the_syn_took() {
    let record = fast_opened(with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full));
    insta::assert_snapshot!(edited(record, |record| {
        record.setup = None;
        tls(record).hello_in_syn = None;
    }));
}

/// The flights of the packets, in ms.
#[expect(clippy::unnecessary_wraps, reason = "they may be unknown")]
fn flights(of: &[(Role, u64, u64)]) -> Option<Vec<Flight>> {
    let ms = Duration::from_millis;
    Some(of.iter().map(|&(from, first, last)| Flight { from, first: ms(first), last: ms(last) }).collect())
}

/// Times in ms.
fn stall(end: Role, cause: Option<StallCause>, duration: u64, until: u64) -> Stall {
    let ms = Duration::from_millis;
    Stall { end, cause, duration: ms(duration), until: ms(until) }
}

#[test]
fn flights_stand_where_they_were_seen_with_what_held_them_up() {
    use Role::{Client, Server};
    let drawn = |role, class, seen: &[(Role, u64, u64)], stalls: Vec<Stall>| {
        edited(with_tls(role, TlsVersion::Tls13, class), |record| {
            tls(record).flights = flights(seen);
            let last = seen.last().unwrap().2;
            tls(record).duration = us(last * 1000 - 50_300);
            tls(record).stalls = Some(stalls);
        })
    };
    let held = vec![
        stall(Client, Some(StallCause::Nagle), 51, 197),
        stall(Server, Some(StallCause::DelayedAck), 42, 197),
    ];
    let ladders = [
        drawn(
            Client,
            TlsClass::Full,
            &[(Client, 50, 50), (Server, 103, 104), (Client, 104, 197)],
            held.clone(),
        ),
        drawn(Server, TlsClass::Full, &[(Client, 50, 50), (Server, 51, 51), (Client, 104, 197)], held),
        drawn(
            Server,
            TlsClass::Full,
            &[(Client, 50, 50), (Server, 251, 252), (Client, 304, 304)],
            vec![stall(Server, Some(StallCause::Waiting), 201, 251)],
        ),
        drawn(
            Client,
            TlsClass::HelloRetry,
            &[
                (Client, 50, 50),
                (Server, 353, 353),
                (Client, 354, 354),
                (Server, 504, 505),
                (Client, 506, 506),
            ],
            vec![stall(Client, Some(StallCause::Retransmission), 250, 300), stall(Server, None, 100, 504)],
        ),
    ];
    insta::assert_snapshot!(ladders.join("\n"));
}

#[test]
fn flights_of_a_handshake_that_failed() {
    let record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    insta::assert_snapshot!(edited(record, |record| {
        record.setup = None;
        tls(record).outcome = Some(TlsOutcome::Failed);
        (tls(record).alert, tls(record).alert_from) = (Some("unknown_ca".into()), Some(Role::Client));
        tls(record).flights =
            flights(&[(Role::Client, 50, 50), (Role::Server, 103, 104), (Role::Client, 105, 105)]);
    }));
}

#[test]
fn go_has_no_early_data_for_tcp() {
    let record = with_tls(Role::Server, TlsVersion::Tls13, TlsClass::Full);
    insta::assert_snapshot!(edited(record, |record| tls(record).library = Some(Library::Go)));
}

#[test]
fn a_server_that_did_not_see_the_hello_arrive() {
    let record = with_tls(Role::Server, TlsVersion::Tls13, TlsClass::Full);
    insta::assert_snapshot!(edited(record, |record| {
        tls(record).start = None;
        tls(record).includes_hello_wait = true;
    }));
}

#[test]
fn refused() {
    insta::assert_snapshot!(edited(opened(Role::Client), |record| {
        let open = open(record);
        (open.outcome, open.rtt, open.final_ack) = (Some(Outcome::Refused), None, None);
    }));
}

#[test]
fn a_syn_sent_again() {
    insta::assert_snapshot!(edited(opened(Role::Client), |record| {
        let open = open(record);
        (open.syn_retransmits, open.rtt, open.duration) = (1, None, us(1_070_000));
        (open.fast_open, open.fast_open_reason) =
            (Some(FastOpen::DataRejected), Some(FastOpenReason::SynRetransmitted));
        open.final_ack = Some(FinalAck::Data);
    }));
}

#[test]
fn no_answer() {
    insta::assert_snapshot!(edited(opened(Role::Client), |record| {
        let open = open(record);
        (open.outcome, open.syn_retransmits, open.rtt) = (Some(Outcome::TimedOut), 6, None);
        (open.duration, open.final_ack) = (us(131_000_000), None);
    }));
}

#[test]
fn a_handshake_that_an_alert_ended() {
    let mut record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    record.setup = None;
    tls(&mut record).outcome = Some(TlsOutcome::Failed);
    tls(&mut record).alert = Some("unknown_ca".into());
    let seen = draw(&record);
    tls(&mut record).error = Some("alert unknown_ca received".into());
    tls(&mut record).alert_from = Some(Role::Server);
    insta::assert_snapshot!(format!("{seen}\n{}", draw(&record)));
}

#[test]
fn a_reset_that_the_library_noticed_later() {
    let failed = with_tls(Role::Server, TlsVersion::Tls13, TlsClass::Full);
    let mut record = ConnectionEvent { tls: failed.tls, setup: None, ..closed(Role::Server) };
    tls(&mut record).outcome = Some(TlsOutcome::Failed);
    record.lifetime = us(101_200);
    let close = record.close.as_mut().unwrap();
    (close.initiator, close.style) = (Some(Initiator::Remote), Some(CloseStyle::ResetReceived));
    insta::assert_snapshot!(draw(&record));
}

#[test]
fn a_handshake_without_a_connection() {
    insta::assert_snapshot!(edited(with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full), |record| {
        (record.local, record.remote, record.open, record.setup) = (None, None, None, None);
        tls(record).start = None;
    }));
}

/// A closing of another kind.
fn closing(edit: impl FnOnce(&mut Close)) -> String {
    edited(closed(Role::Client), |record| edit(record.close.as_mut().unwrap()))
}

#[test]
fn closings() {
    let by = |initiator, style| {
        closing(|close| {
            (close.initiator, close.style) = (Some(initiator), Some(style));
            match style {
                CloseStyle::ThreeSegments => (close.duration, close.app_wait) = (us(50_300), us(0)),
                CloseStyle::FourSegments => {}
                _ => (close.duration, close.ack_wait, close.app_wait) = (None, None, None),
            }
        })
    };
    let kinds = [
        ("three segments, by us", by(Initiator::Local, CloseStyle::ThreeSegments)),
        (
            "three segments, by the peer",
            closing(|close| {
                (close.initiator, close.style) = (Some(Initiator::Remote), Some(CloseStyle::ThreeSegments));
                (close.duration, close.app_wait) = (us(62_300), us(12_000));
            }),
        ),
        ("four segments, by the peer", by(Initiator::Remote, CloseStyle::FourSegments)),
        (
            "four segments, the last FIN unseen, a delayed ACK",
            closing(|close| {
                (close.duration, close.app_wait, close.unseen) = (None, None, Some(Unseen::PeerFin));
                close.ack_wait = us(91_000);
            }),
        ),
        (
            "simultaneous",
            closing(|close| {
                (close.initiator, close.style) = (Some(Initiator::Both), Some(CloseStyle::Simultaneous));
                (close.duration, close.app_wait) = (us(25_000), None);
            }),
        ),
        ("reset by the peer at once", by(Initiator::Remote, CloseStyle::ResetReceived)),
        ("reset by the peer after our FIN", by(Initiator::Local, CloseStyle::ResetReceived)),
        ("reset by us", by(Initiator::Local, CloseStyle::ResetSent)),
        ("timed out", by(Initiator::Local, CloseStyle::TimedOut)),
        ("unknown", closing(|close| (close.initiator, close.style) = (None, None))),
    ];
    let mut text = String::new();
    for (kind, ladder) in kinds {
        let from_data_on = ladder.find('…').map_or("", |at| &ladder[at..]);
        let closing: Vec<_> = from_data_on.lines().skip(1).collect();
        let _ = writeln!(text, "{kind}:\n{}\n", closing.join("\n"));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn ends_of_ipv6_on_this_very_host() {
    insta::assert_snapshot!(edited(closed(Role::Client), |record| {
        let addr = "2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap();
        record.local = Some(Endpoint { addr: Some(addr), port: 51000 });
        record.remote = Some(Endpoint { addr: Some(addr), port: 8443 });
        let open = open(record);
        (open.duration, open.rtt) = (us(34), us(34));
        record.setup = Some(Setup { round_trips: Some(1), duration: us(34), excess_us: Some(0) });
    }));
}

#[test]
fn a_connection_from_before() {
    insta::assert_snapshot!(edited(closed(Role::Client), |record| {
        (record.role, record.open, record.setup, record.lifetime) = (None, None, None, None);
        record.preexisting = true;
    }));
}

#[test]
fn names_cannot_drive_the_terminal() {
    let ladder = edited(with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full), |record| {
        record.process.as_mut().unwrap().comm = Some("\x1b[31mred".into());
        let tls = tls(record);
        (tls.sni, tls.alpn) = (Some("\u{202e}gro.elpmaxe".repeat(99).into()), Some("\n".into()));
        (tls.outcome, tls.error) = (Some(TlsOutcome::Failed), Some("\r".into()));
    });
    assert!(!ladder.lines().any(|line| line.chars().any(char::is_control)), "{ladder:?}");
    assert!(!ladder.contains('\u{202e}') && ladder.contains("…"), "{ladder}");
}

#[test]
fn every_round_trip_has_its_setting() {
    use TlsClass::{EarlyDataAccepted, EarlyDataRejected, FalseStart, Full, HelloRetry, Resumed};
    use TlsVersion::{Tls12, Tls13};
    for (version, class) in [
        (Tls12, Full),
        (Tls12, Resumed),
        (Tls12, FalseStart),
        (Tls13, Full),
        (Tls13, HelloRetry),
        (Tls13, Resumed),
        (Tls13, EarlyDataAccepted),
        (Tls13, EarlyDataRejected),
    ] {
        for role in [Role::Client, Role::Server] {
            let record = with_tls(role, version, class);
            let settings = advice::advise(&record);
            let saved: u8 = settings.iter().map(|advice| advice.round_trips).sum();
            assert_eq!(advice::taken(&record), Some(saved), "{role} TLS {version} {class}: {settings:?}");
            assert!(settings.iter().all(|advice| advice.time == us(RTT_US)), "{settings:?}");
            let fast = fast_opened(record);
            assert_eq!((advice::possible(&fast), advice::hello_in_syn(&fast)), (Some(0), Some(true)));
        }
    }
    for (fast_open, taken) in [
        (FastOpen::None, 1),
        (FastOpen::CookieRequested, 1),
        (FastOpen::DataRejected, 1),
        (FastOpen::DataAccepted, 0),
    ] {
        let mut record = opened(Role::Client);
        open(&mut record).fast_open = Some(fast_open);
        assert_eq!(
            (advice::taken(&record), advice::possible(&record)),
            (Some(taken), Some(0)),
            "{fast_open}"
        );
    }
}

#[test]
fn advice_keeps_to_its_line() {
    for setting in advice::Setting::ALL {
        assert!(setting.text().chars().count() <= 62, "{setting:?}");
    }
}

#[test]
fn time_that_the_network_does_not_explain_is_somebodys() {
    use advice::Setting::{LateHello, SetupWait};
    // The opening took RTT_US.
    let waits = |excess_us, compute: Option<u64>, hello: Option<u64>| {
        let mut record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        record.setup.as_mut().unwrap().excess_us = Some(excess_us);
        (tls(&mut record).compute, tls(&mut record).start) = (compute.and_then(us), hello.and_then(us));
        let all = advice::advise(&record).into_iter();
        let waits = all.filter(|advice| [LateHello, SetupWait].contains(&advice.setting));
        waits.map(|advice| (advice.setting, event::micros(advice.time.unwrap()))).collect::<Vec<_>>()
    };
    let at_once = Some(RTT_US + 100);
    assert_eq!(waits(41_000, Some(1_000), at_once), [(SetupWait, 40_000)]);
    assert_eq!(waits(41_000, Some(41_000), at_once), []);
    assert_eq!(waits(-41_000, None, at_once), []);
    // The program's own delay before its ClientHello is not the other end's.
    assert_eq!(waits(41_000, Some(1_000), Some(RTT_US + 40_000)), [(LateHello, 40_000)]);
    assert_eq!(waits(91_000, Some(1_000), Some(RTT_US + 40_000)), [(LateHello, 40_000), (SetupWait, 50_000)]);
    assert_eq!(waits(41_000, None, None), [(SetupWait, 41_000)]);
    // In a SYN it is before the end of the opening.
    assert_eq!(waits(41_000, None, Some(0)), [(SetupWait, 41_000)]);
}

/// A word of a closed list, or none.
fn word<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = Option<T>> {
    prop::option::of(prop::sample::select(all)).boxed()
}

fn micros() -> impl Strategy<Value = Option<Duration>> {
    let us = prop_oneof![0..200_000_u64, any::<u64>(), Just(u64::MAX)];
    prop::option::of(us.prop_map(Duration::from_micros)).boxed()
}

prop_compose! {
    fn any_open()(
        outcome in word(Outcome::ALL), duration in micros(), rtt in micros(),
        syn_retransmits in prop_oneof![Just(0), any::<u16>()], final_ack in word(FinalAck::ALL),
        fast_open in word(FastOpen::ALL), fast_open_reason in word(FastOpenReason::ALL), simultaneous: bool,
        syn_cookie: Option<bool>, accept_wait in micros(),
        queue: Option<(u32, u32, u32)>,
    ) -> Open {
        Open {
            outcome, duration, rtt, syn_retransmits, final_ack, fast_open, fast_open_reason, simultaneous, syn_cookie,
            accept_wait,
            listener: queue.map(|(accept_queue, accept_queue_limit, drops)| ListenQueue {
                accept_queue, accept_queue_limit, drops,
            }),
        }
    }
}

fn any_flights() -> impl Strategy<Value = Vec<Flight>> {
    let flight = (prop::sample::select(Role::ALL), 0..300_000_u64, prop_oneof![0..9000_u64, any::<u64>()]);
    let flight = flight.prop_map(|(from, first, took)| Flight {
        from,
        first: Duration::from_micros(first),
        last: Duration::from_micros(first.saturating_add(took)),
    });
    prop::collection::vec(flight, 0..6)
}

fn any_stalls() -> impl Strategy<Value = Vec<Stall>> {
    let stall = (prop::sample::select(Role::ALL), word(StallCause::ALL), any::<u32>(), 0..300_000_u64);
    let stall = stall.prop_map(|(end, cause, took, until)| Stall {
        end,
        cause,
        duration: Duration::from_micros(took.into()),
        until: Duration::from_micros(until),
    });
    prop::collection::vec(stall, 0..4)
}

#[test]
fn certificate_that_ends_soon_says_in_how_many_days() {
    let record = with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full);
    let day = Duration::from_hours(24);
    let certificate = |not_after, key_type: Option<&str>, key_bits, curve: Option<&str>| {
        let mut tls = record.tls.clone().unwrap();
        let (key_type, curve) = (key_type.map(Untrusted::from), curve.map(Untrusted::from));
        let certificate = Certificate { not_after, key_type, key_bits, curve, signature: None };
        (tls.signature, tls.certificate) = (Some("rsa_pkcs1_sha256".into()), Some(Box::new(certificate)));
        let facts = tls_facts(&tls, record.time).join(" · ");
        let at = facts.find("signed with rsa_pkcs1_sha256 · ").unwrap();
        facts[at..].split(" · ").nth(1).unwrap().to_owned()
    };
    let rsa = |not_after| certificate(not_after, Some("rsa"), Some(2048), None);
    assert_eq!(rsa(record.time + 15 * day), "rsa 2048 certificate until 2026-02-15");
    assert_eq!(
        rsa(record.time + 15 * day - Duration::from_secs(1)),
        "rsa 2048 certificate ends in 14 days (2026-02-15)"
    );
    assert_eq!(rsa(record.time + day), "rsa 2048 certificate ends in 1 day (2026-02-01)");
    assert_eq!(rsa(record.time), "rsa 2048 certificate ends in 0 days (2026-01-31)");
    assert_eq!(rsa(record.time - day), "rsa 2048 certificate EXPIRED on 2026-01-30");
    let later = record.time + 100 * day;
    assert_eq!(
        certificate(later, Some("ecdsa"), None, Some("secp256r1")),
        "ecdsa secp256r1 certificate until 2026-05-11"
    );
    assert_eq!(certificate(later, None, None, None), "certificate until 2026-05-11");
}

prop_compose! {
    fn any_tls()(
        outcome in word(TlsOutcome::ALL), times in (micros(), micros(), micros(), micros()),
        version in word(TlsVersion::ALL), class in word(TlsClass::ALL),
        text in prop::option::of(any::<String>().prop_map(Untrusted::from).boxed()), library in word(Library::ALL),
        round_trips: Option<u8>, hello_retry: bool, includes_hello_wait: bool, hello_in_syn: Option<bool>,
        roles in (word(Role::ALL), word(Role::ALL)), flights in prop::option::of(any_flights().boxed()),
        stalls in prop::option::of(any_stalls().boxed()),
        certificate in (
            prop::option::of((0_u64..=253_402_300_799, any::<Option<u16>>()).boxed()),
            prop::option::of(any::<String>().prop_map(Untrusted::from).boxed()),
        ),
    ) -> Tls {
        Tls {
            outcome, start: times.0, duration: times.1, compute: times.2, held: times.3, version, class,
            cipher: text.clone(), sni: text.clone(), alpn: text.clone(), alert: text.clone(),
            group: text.clone(), alpn_offered: text.clone().map(|name| vec![name]), ech_offered: hello_in_syn, error: text,
            role: roles.0, alert_from: roles.1, hello_in_syn, signature: certificate.1.clone(),
            certificate: certificate.0.map(|(seconds, key_bits)| Box::new(Certificate {
                not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), key_type: certificate.1.clone(),
                key_bits, curve: certificate.1.clone(), signature: certificate.1,
            })),
            library, source: TlsSource::Wire, round_trips, hello_retry, includes_hello_wait, flights, stalls,
        }
    }
}

prop_compose! {
    fn any_close()(
        initiator in word(Initiator::ALL), style in word(CloseStyle::ALL), times in (micros(), micros(), micros()),
        waits in (micros(), micros()), time_wait_end in word(TimeWaitEnd::ALL), unseen: bool, late_fin: bool,
    ) -> Close {
        let (duration, ack_wait, app_wait) = times;
        let unseen = unseen.then_some(Unseen::PeerFin);
        Close {
            initiator,
            style,
            duration,
            ack_wait,
            app_wait,
            time_wait: waits.0,
            time_wait_end,
            reused_by: Some("7".into()),
            grain: waits.1,
            late_fin,
            unseen,
        }
    }
}

prop_compose! {
    fn any_record()(
        stage in prop::sample::select(Stage::ALL), role in word(Role::ALL), comm in any::<String>().prop_map(Untrusted::from).boxed(),
        joined: bool, preexisting: bool, open in prop::option::of(any_open().boxed()), tls in prop::option::of(any_tls().boxed()),
        setup in prop::option::of((any::<Option<u8>>(), micros(), any::<Option<i64>>())),
        close in prop::option::of(any_close().boxed()), lifetime in micros(),
    ) -> ConnectionEvent {
        let template = opened(Role::Client);
        ConnectionEvent {
            stage, role, preexisting, open, tls, close, lifetime,
            local: template.local.filter(|_| joined),
            remote: template.remote.filter(|_| joined),
            process: Some(Process { by: None, pid: 1, comm: Some(comm), cgroup: None, names: Names::default() }),
            setup: setup.map(|(round_trips, duration, excess_us)| Setup { round_trips, duration, excess_us }),
            ..template
        }
    }
}

proptest! {
    #[test]
    fn no_record_is_too_strange_to_be_drawn(record in any_record()) {
        let ladder = draw(&record);
        prop_assert!(ladder.ends_with('\n') && ladder.chars().all(|c| c == '\n' || is_harmless(c)));
        let picture = svg(&record);
        let tags = picture.matches('<').count();
        prop_assert_eq!(tags, picture.matches('>').count(), "{}", picture);
        // Only our own elements, and quotes only around our own attributes.
        let own = ["<svg ", "</svg>", "<g ", "</g>", "<text ", "</text>", "<path ", "<circle "];
        prop_assert_eq!(own.iter().map(|tag| picture.matches(tag).count()).sum::<usize>(), tags, "{}", picture);
        prop_assert_eq!(picture.matches('"').count(), 2 * picture.matches("=\"").count(), "{}", picture);
        prop_assert!(picture.chars().all(|c| c == '\u{fffd}' || is_harmless(c)), "{}", picture);
        let line = Table::new(&[], Some(100), false).line(&record);
        prop_assert!(columns(&line) <= 100, "{}", line);
        prop_assert!(line.chars().all(is_harmless), "{}", line);
        prop_assert!(ladder.lines().all(|line| line.chars().count() < 160 + MAX_NAME), "{}", ladder);
        let saved: u16 = advice::advise(&record).iter().map(|advice| u16::from(advice.round_trips)).sum();
        prop_assert!(saved <= 3, "no setup takes more than three round trips");
    }
}
