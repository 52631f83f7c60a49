//! The daemon's histograms, which the kernel side fills, against the records of the same connections and the
//! delay of the link.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::{
    env,
    os::unix::process::CommandExt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    case::{Case, ms, pause},
    ends::{Ends, Expect},
    program::{Daemon, Scrape, command, mount_tracefs},
    socket::drain,
    testbed::{Family, packet::Side},
    tls::{
        programs::{openssl::PEERS, server_address},
        settings::Settings,
    },
};

for_each_family!(connections_are_observed_in_the_buckets_of_their_records);

/// No other test has such delays: what rises in their buckets is this test's.
const RTT: Duration = ms(430);
const SERVER_WAITS: Duration = ms(640);
/// Each delay, and both together, has a bucket around it.
const BUCKETS: &str = "0.1,0.42,0.48,0.63,0.69,0.84,0.95,1.05,1.15,100";
const OF_RTT: [&str; 2] = ["0.42", "0.48"];
const OF_TWO_RTTS: [&str; 2] = ["0.84", "0.95"];
const OF_WAIT: [&str; 2] = ["0.63", "0.69"];
const OF_BOTH: [&str; 2] = ["1.05", "1.15"];

/// Closings are not told apart by their family: the daemon would see those of the other test as well.
static ALONE: Mutex<()> = Mutex::new(());

/// A family of histograms, its label beside the role, where the records have its value, and the bucket that
/// the link's delay puts it in.
type Row = (&'static str, String, &'static str, [&'static str; 2]);

fn rows(family: Family, side: Side) -> [Row; 6] {
    let family = match family {
        Family::V4 => "family=\"ipv4\"",
        Family::V6 => "family=\"ipv6\"",
    };
    let initiator = match side {
        Side::Client => "initiator=\"local\"",
        Side::Server => "initiator=\"remote\"",
    };
    [
        ("handshake_tcp_open_duration_seconds", family.into(), "open.duration_us", OF_RTT),
        ("handshake_tcp_open_rtt_seconds", family.into(), "open.rtt_us", OF_RTT),
        ("handshake_setup_duration_seconds", "version=\"none\"".into(), "setup.duration_us", OF_RTT),
        ("handshake_tcp_close_ack_wait_seconds", initiator.into(), "close.ack_wait_us", OF_RTT),
        ("handshake_tcp_close_app_wait_seconds", initiator.into(), "close.app_wait_us", OF_WAIT),
        ("handshake_tcp_close_duration_seconds", initiator.into(), "close.duration_us", OF_BOTH),
    ]
}

fn connections_are_observed_in_the_buckets_of_their_records(family: Family) {
    const N: u32 = 3;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::over(RTT);
    let daemon = start(&["--tls-libraries", "off"]);
    let before = daemon.scrape();
    let ended: Vec<_> = (0..N).map(|_| converse(&case, family)).collect();

    let after = daemon.scrape();
    for side in [Side::Client, Side::Server] {
        let role = if side == Side::Client { "role=\"client\"" } else { "role=\"server\"" };
        for (name, label, path, bounds) in rows(family, side) {
            let [above, at_most] = bounds.map(|bound| bound.parse::<f64>().unwrap());
            for ends in &ended {
                let value = ends.close(side).micros(path);
                let value =
                    value.unwrap_or_else(|| panic!("{path} of the {side:?} is unknown")).as_secs_f64();
                assert_time!(value > above && value <= at_most, "{path} of the {side:?}: {value} s");
            }
            let rise = rise(name, &[role, &label], bounds, [&before, &after]);
            assert_eq!(rise, f64::from(N), "{name} of the {side:?}, from {above} to {at_most} s");
        }
    }
    assert_eq!(after.sum("handshake_events_total", &["stage=\"open\""]), 0.0, "no records are needed");
}

/// Whichever view sees the handshake: it is a setup with TLS, once, and none without.
#[test]
fn setup_with_tls_is_no_setup_without() {
    const N: u32 = 2;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::over(RTT);
    let views: [&[&str]; 3] = [&[], &["--tls-libraries", "off"], &["--tls-wire", "off"]];
    let daemons = views.map(|views| (views, start(views)));
    let before = daemons.each_ref().map(|(_, daemon)| daemon.scrape());
    let address = server_address(&case.bed);
    let server = (PEERS.server)(&case.bed, address, Settings::TLS13);
    (PEERS.client)(&case.bed, address, Settings::TLS13).connect(N as usize);
    case.bed.wait_until_quiet();
    drop(server);

    let setups = "handshake_setup_duration_seconds";
    for ((views, daemon), before) in daemons.iter().zip(&before) {
        for role in ["role=\"client\"", "role=\"server\""] {
            let rise =
                |after: &Scrape, version, bounds| rise(setups, &[role, version], bounds, [before, after]);
            let tls = |after: &Scrape| rise(after, "version=\"1.3\"", OF_TWO_RTTS);
            // A view may wait for the other.
            let after = daemon.scrape_until(|after| tls(after) >= f64::from(N));
            assert_time!(tls(&after) == f64::from(N), "{role} {views:?}: {} setups with TLS", tls(&after));
            assert_eq!(rise(&after, "version=\"none\"", OF_RTT), 0.0, "{role} {views:?}: setups without TLS");
            let ended = after.sum("handshake_tls_handshakes_total", &[role, "completed", "version=\"1.3\""]);
            assert!(ended >= f64::from(N), "{role} {views:?}: {ended} handshakes");
        }
    }
}

/// How many values came into the bucket between two scrapes.
pub(crate) fn rise(name: &str, labels: &[&str], bounds: [&str; 2], scrapes: [&Scrape; 2]) -> f64 {
    let [before, after] = scrapes.map(|scrape| {
        let [below, within] = bounds.map(|bound| {
            let le = format!("le=\"{bound}\"");
            scrape.sum(&format!("{name}_bucket"), &[labels, &[&*le]].concat())
        });
        within - below
    });
    after - before
}

/// The client closes first, the server some time later.
fn converse(case: &Case, family: Family) -> Ends {
    let pair = case.establish(family);
    let connection = pair.connection;
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    drain(&pair.server);
    pause(SERVER_WAITS.as_millis().try_into().unwrap());
    drop(pair.server);
    drain(&pair.client);
    drop(pair.client);
    case.ends(connection, Expect::BOTH)
}

/// A daemon without labels on demand, attached as the tracer of the other tests is.
pub(crate) fn start(views: &[&str]) -> Daemon {
    let mut command = command(&[&["--listen", "127.0.0.1:0", "--buckets", BUCKETS], views].concat());
    if let Some(attach) = env::var_os("HANDSHAKE_TEST_ATTACH") {
        command.arg("--attach").arg(attach);
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(mount_tracefs) };
    }
    Daemon::spawn(&mut command)
}
