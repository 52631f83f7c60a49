//! Every event counts once, in one group, for as long as the window says.

use std::collections::BTreeMap;

use handshake_common::{CloseStyle, Role, TlsClass, TlsVersion};
use proptest::prelude::*;

use super::*;
use crate::event::{
    ConnectionId, Process,
    testing::{closed, opened, waited, with_tls},
};

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits { groups: 4, recent: 3, span: Span::of(6 * SECOND), ..Limits::default() }
}

fn aggregate(grouping: Grouping) -> Aggregate {
    Aggregate::new(grouping, limits(), 100 * SECOND)
}

fn at(seconds: u64) -> Duration {
    (100 + u32::try_from(seconds).unwrap()) * SECOND
}

fn named(mut event: ConnectionEvent, id: u64, comm: Option<&str>) -> Arc<ConnectionEvent> {
    event.id = ConnectionId::of_socket(id, 0);
    event.process = comm.map(|comm| Process { comm: Some(comm.into()), ..event.process.unwrap() });
    Arc::new(event)
}

fn shown(aggregate: &Aggregate) -> Vec<(String, u64, u64)> {
    aggregate
        .groups()
        .map(|(group, member)| {
            let activity = &member.activity;
            (group.what.to_string(), activity.window().openings(), activity.total().openings())
        })
        .collect()
}

#[test]
fn connection_is_counted_stage_by_stage() {
    let mut all = aggregate(Grouping::Process);
    let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    let mut end = closed(Role::Client);
    (end.tls, end.setup) = (tls.tls.clone(), tls.setup);
    end.close.as_mut().unwrap().style = Some(CloseStyle::ResetReceived);
    for event in [opened(Role::Client), tls, end, waited(Role::Client)] {
        all.take(&Arc::new(event), at(0));
    }
    assert_eq!(all.groups().count(), 1);
    let total = all.all().activity.total();
    assert_eq!((total.openings(), total.failed(), total.handshakes(), total.closings()), (1, 0, 1, 1));
    assert_eq!((total.class(Some(TlsClass::Full)), total.version(Some(TlsVersion::Tls13))), (1, 1));
    assert_eq!((total.setups(), total.resets()), (1, 1), "the closing does not tell the setup again");
    // TLS 1.3 in full after an ordinary opening: early data and Fast Open would have saved both.
    assert_eq!(total.round_trips(), Some(RoundTrips { setups: 1, taken: 2, possible: 0 }));
    let took = total.setup(0.5).unwrap();
    assert!(took.abs_diff(Duration::from_micros(101_400)) <= Duration::from_micros(1_014), "{took:?}");
}

#[test]
fn unknown_is_neither_success_nor_failure() {
    let mut all = aggregate(Grouping::Process);
    let mut event = opened(Role::Client);
    event.open.as_mut().unwrap().outcome = None;
    all.take(&Arc::new(event.clone()), at(0));
    event.open.as_mut().unwrap().outcome = Some(Outcome::TimedOut);
    event.open.as_mut().unwrap().syn_retransmits = 6;
    all.take(&Arc::new(event), at(0));
    let total = all.all().activity.total();
    assert_eq!((total.openings(), total.failed(), total.opened(None)), (2, 1, 1));
    assert_eq!((total.opened(Some(Outcome::TimedOut)), total.syn_retransmits()), (1, 6));
    assert_eq!((total.setups(), total.round_trips(), total.setup(0.5)), (0, None, None));
    assert_eq!(all.failed().iter().count(), 1);
}

#[test]
fn window_slides_and_total_stays() {
    let mut all = aggregate(Grouping::Process);
    for second in 0..9 {
        all.take(&named(opened(Role::Client), second, Some("curl")), at(second));
    }
    assert_eq!(shown(&all), [("curl".to_owned(), 6, 9)]);
    assert_eq!((all.covered(), all.age()), (5 * SECOND, 8 * SECOND), "the sixth second has just begun");
    all.advance(at(11));
    assert_eq!(shown(&all), [("curl".to_owned(), 3, 9)]);
    all.advance(at(3));
    assert_eq!(all.age(), 11 * SECOND, "time does not go back");
    all.advance(at(1000));
    assert_eq!(shown(&all), [("curl".to_owned(), 0, 9)]);
}

#[test]
fn groups_are_by_process_service_and_network_and_by_role() {
    let of = |grouping| {
        let mut all = aggregate(grouping);
        for role in [Role::Client, Role::Server] {
            let mut event = with_tls(role, TlsVersion::Tls13, TlsClass::Full);
            event.tls.as_mut().unwrap().sni = Some("Example.ORG".into());
            all.take(&Arc::new(event), at(0));
        }
        let mut nameless = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        (nameless.process, nameless.local, nameless.remote, nameless.family) = (None, None, None, None);
        all.take(&Arc::new(nameless), at(0));
        all.groups().map(|(group, _)| format!("{} {}", group.what, group.role.unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(of(Grouping::Process), ["? client", "curl client", "nginx server"]);
    assert_eq!(of(Grouping::Service), [":443 server", "example.org:? client", "example.org:443 client"]);
    assert_eq!(of(Grouping::Network), ["? client", "10.0.0.0/24 client", "10.0.0.0/24 server"]);
}

#[test]
fn opening_moves_to_the_name_that_the_handshake_tells() {
    let mut all = aggregate(Grouping::Service);
    all.take(&named(opened(Role::Client), 1, Some("curl")), at(0));
    all.take(&named(opened(Role::Client), 2, Some("curl")), at(1));
    let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    all.take(&named(tls.clone(), 1, Some("curl")), at(2));
    assert_eq!(shown(&all), [(":443".to_owned(), 1, 1), ("example.org:443".to_owned(), 1, 1)]);
    let latest: Vec<usize> = all.groups().map(|(_, member)| member.latest.iter().count()).collect();
    assert_eq!(latest, [1, 1]);
    // What was named stays there, even if the closing does not know.
    all.take(&named(closed(Role::Client), 1, Some("curl")), at(3));
    let named_group = all.groups().nth(1).unwrap().1;
    assert_eq!(named_group.activity.total().closings(), 1);
    let whole = named_group.latest.iter().next().unwrap();
    assert_eq!((whole.stage, &whole.tls), (Stage::Close, &tls.tls), "what the closing lacks is filled in");
    // After the window, only the total moves.
    all.take(&named(tls, 2, Some("curl")), at(100));
    assert_eq!(shown(&all), [("example.org:443".to_owned(), 0, 2)], "nothing is left of the other");
}

#[test]
fn process_known_later_takes_the_opening_along() {
    let mut all = aggregate(Grouping::Process);
    all.take(&named(opened(Role::Server), 1, None), at(0));
    assert_eq!(shown(&all), [("?".to_owned(), 1, 1)]);
    all.take(&named(closed(Role::Server), 1, Some("nginx")), at(1));
    assert_eq!(shown(&all), [("nginx".to_owned(), 1, 1)]);
}

#[test]
fn groups_beyond_the_limit_are_the_rest() {
    let mut all = aggregate(Grouping::Process);
    for (id, comm) in ["a", "b", "c", "d", "e", "f", "a"].into_iter().enumerate() {
        all.take(&named(opened(Role::Client), id as u64, Some(comm)), at(0));
    }
    let rest = all.rest().unwrap();
    assert_eq!((all.groups().count(), rest.activity.total().openings()), (4, 2));
    assert_eq!(rest.latest.iter().count(), 2);
    // Those that are idle for a window make room, the one that is so for longest first; their totals stay.
    all.take(&named(opened(Role::Client), 10, Some("a")), at(5));
    all.take(&named(opened(Role::Client), 11, Some("e")), at(6));
    let names: Vec<_> = all.groups().map(|(group, _)| group.what.to_string()).collect();
    assert_eq!(names, ["a", "c", "d", "e"]);
    assert_eq!(all.rest().unwrap().activity.total().openings(), 3);
    // A connection that was counted under the name that is gone closes.
    all.take(&named(closed(Role::Client), 1, None), at(7));
    assert_eq!(all.all().activity.total().openings(), 9);
    assert_eq!(aggregate(Grouping::Process).rest().map(|rest| rest.number), None);
}

#[test]
fn latest_connections_are_bounded_and_whole() {
    let mut all = aggregate(Grouping::Process);
    for id in 0..5 {
        all.take(&named(opened(Role::Client), id, Some("curl")), at(0));
    }
    let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::HelloRetry);
    all.take(&named(tls.clone(), 2, Some("curl")), at(1));
    // It is not known of this one any more that it was opened; its record says so itself.
    all.take(&named(tls, 0, Some("curl")), at(1));
    let ids = |recent: &Recent| recent.iter().map(|event| event.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&all.groups().next().unwrap().1.latest), ["0", "2", "4"]);
    assert_eq!(ids(&all.all().latest), ["0", "2", "4"]);
    // A late end is learnt by those that are still there, and makes nothing new.
    all.take(&named(waited(Role::Client), 4, Some("curl")), at(2));
    all.take(&named(waited(Role::Client), 3, Some("curl")), at(2));
    let latest = &all.groups().next().unwrap().1.latest;
    assert_eq!(ids(latest), ["0", "2", "4"]);
    assert!(latest.iter().nth(2).unwrap().close.is_some());
    let mut large = opened(Role::Client);
    large.process.as_mut().unwrap().comm = Some("x".repeat(1 << 20).as_str().into());
    all.take(&Arc::new(large), at(2));
    assert_eq!(ids(&all.all().latest), ["0", "2", "4"], "counted, but not kept");
    assert_eq!(all.groups().last().unwrap().0.what.to_string().len(), 255, "a name is cut");
}

#[test]
fn slow_and_failed_connections_are_kept_apart() {
    let mut all = aggregate(Grouping::Process);
    let ids = |recent: &Recent| recent.iter().map(|event| event.id.to_string()).collect::<Vec<_>>();
    let mut lost = opened(Role::Client);
    (lost.open.as_mut().unwrap().syn_retransmits, lost.open.as_mut().unwrap().duration) =
        (1, Some(Duration::from_millis(1_050)));
    all.take(&named(lost, 1, Some("curl")), at(0));
    let mut refused = opened(Role::Client);
    refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
    all.take(&named(refused, 2, Some("curl")), at(0));
    let mut failed = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    (failed.tls.as_mut().unwrap().outcome, failed.setup) = (Some(TlsOutcome::Failed), None);
    all.take(&named(failed, 3, Some("curl")), at(0));
    let mut waited = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    waited.setup.as_mut().unwrap().excess_us = Some(90_000);
    all.take(&named(waited, 4, Some("curl")), at(0));
    let mut slow_to_close = closed(Role::Client);
    slow_to_close.close.as_mut().unwrap().app_wait = Some(Duration::from_secs(9));
    all.take(&named(slow_to_close, 5, Some("curl")), at(0));
    assert_eq!(ids(all.failed()), ["3", "2"]);
    assert_eq!(ids(all.slow()), ["4", "1"]);
}

/// One event of a random life, with what a correct count of it is.
#[derive(Clone, Debug)]
struct Step {
    id: u64,
    comm: Option<u8>,
    stage: u8,
    after: u64,
}

fn step() -> impl Strategy<Value = Step> {
    (0_u64..12, prop::option::weighted(0.8, 0_u8..8), 0_u8..4, 0_u64..3_000)
        .prop_map(|(id, comm, stage, after)| Step { id, comm, stage, after })
}

fn numbers(tally: &Tally) -> [u64; 5] {
    [tally.openings(), tally.failed(), tally.handshakes(), tally.closings(), tally.setups()]
}

fn sum(tallies: impl Iterator<Item = [u64; 5]>) -> [u64; 5] {
    tallies.fold([0; 5], |sum, tally| std::array::from_fn(|at| sum[at] + tally[at]))
}

proptest! {
    #[test]
    fn groups_and_rest_are_all(steps in prop::collection::vec(step(), 0..120)) {
        let mut all = aggregate(Grouping::Process);
        // When each opening was counted, against a window that is looked at event by event.
        let mut openings: BTreeMap<u64, u64> = BTreeMap::new();
        let mut millis = 0;
        for Step { id, comm, stage, after } in steps {
            millis += after;
            let comm = comm.map(|comm| comm.to_string());
            let event = match stage {
                0 => opened(Role::Client),
                1 => {
                    let mut event = opened(Role::Client);
                    event.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
                    event
                }
                2 => with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Resumed),
                _ => closed(Role::Client),
            };
            if stage < 2 {
                *openings.entry(millis / 1000).or_default() += 1;
            }
            all.take(&named(event, id, comm.as_deref()), 100 * SECOND + Duration::from_millis(millis));
            let members = || all.groups().map(|(_, member)| member).chain(all.rest());
            prop_assert!(all.groups().count() <= 4);
            prop_assert_eq!(
                sum(members().map(|member| numbers(member.activity.total()))),
                numbers(all.all().activity.total())
            );
            prop_assert_eq!(
                sum(members().map(|member| numbers(&member.activity.window()))),
                numbers(&all.all().activity.window())
            );
            let recent = openings.range((millis / 1000).saturating_sub(5)..).map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(all.all().activity.window().openings(), recent);
            prop_assert!(all.covered() <= 6 * SECOND && all.covered() <= all.age());
            for member in members().chain([all.all()]) {
                prop_assert!(member.latest.iter().count() <= 3);
            }
        }
    }

    #[test]
    fn quantiles_are_right_to_one_percent(micros in prop::collection::vec(1_u64..10_000_000, 1..200), at in 0.01_f64..1.0) {
        let mut tally = Tally::default();
        for &us in &micros {
            let mut event = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
            event.setup.as_mut().unwrap().duration = Some(Duration::from_micros(us));
            tally.add(&Tally::of(&event));
        }
        let mut sorted = micros;
        sorted.sort_unstable();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
        let rank = ((at * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
        let exact = sorted[rank - 1];
        let told = u64::try_from(tally.setup(at).unwrap().as_micros()).unwrap();
        prop_assert!(told >= exact && told - exact <= exact / 100, "{told} for {exact}");
    }
}
