//! What becomes of a connection after its socket: the late FIN, and TIME_WAIT.

use std::{
    io::Write,
    net::Shutdown,
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use crate::{
    case::{Case, ms, pause},
    ends::Expect,
    functions,
    handshakes::{self, Ladder},
    program::machine::tolerance,
    record::Record,
    socket::drain,
    testbed::{
        Family,
        capture::{Capture, Connection},
        faults,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family_and_side!(late_fin);
for_each_family!(
    late_fin_without_time_stamps,
    late_fin_that_is_sent_again,
    late_fin_without_time_stamps_that_is_sent_again,
    ends_taken_by_a_client,
    ends_taken_at_a_server,
);

/// Generates the tests of scenarios that take long: both families at the same time.
macro_rules! for_both_families {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            #[test]
            fn ipv4_and_ipv6() {
                super::at_once(super::$scenario);
            }
        }
    )+};
}

for_both_families!(time_that_runs_out, fin_that_never_comes, reset_in_fin_wait2, more_than_the_kernel_allows,);

/// The scenario with both families: each waits for a minute. A panic stays what it was, and is the only one.
fn at_once(scenario: fn(Family)) {
    thread::scope(|scope| {
        let both = [Family::V4, Family::V6].map(|family| scope.spawn(move || scenario(family)));
        for one in both {
            one.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

/// The relay and the kernel see a packet at different moments.
fn link() -> Duration {
    tolerance(ms(4))
}

/// The grain of a minisocket's own stamp.
const STAMP: Duration = Duration::from_millis(1);

/// One end closes; the program at the other takes a while to do the same.
fn closed_late(case: &Case, family: Family, first: Side, wait: u64) -> (Connection, Capture) {
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    drop(active);
    drain(&passive);
    pause(wait);
    drop(passive);
    (connection, case.flow(connection))
}

/// Whether hooks tell what happens to minisockets, at the moment at which it does.
fn is_hooked() -> bool {
    ["tcp_timewait_state_process", "__inet_twsk_schedule", "inet_twsk_kill"].map(functions::is_hooked)
        == [true; 3]
}

/// How far the times of a record may be off. Without hooks, a look at the minisocket told them.
#[track_caller]
fn grain(record: &Record) -> Duration {
    if is_hooked() {
        record.assert_unknown("close.grain_us");
        return Duration::ZERO;
    }
    record.micros("close.grain_us").expect("a minisocket told it")
}

/// The record tells the truth, to what it says and what the link allows.
#[track_caller]
fn check(record: &Record, flow: &Capture, side: Side) -> Duration {
    let grain = grain(record);
    assert_eq!(record.get("close.late_fin"), Some(&true.into()), "{record}");
    record.assert_unknown("close.unseen");
    record.assert_is("close.style", "four_segments");
    record.assert_within("close.duration_us", truth::active_close(flow, side), grain + link());
    record.assert_within("close.app_wait_us", truth::active_app_wait(flow, side), grain + link());
    grain
}

fn late_fin(family: Family, first: Side) {
    let case = Case::new();
    let (connection, flow) = closed_late(&case, family, first, 123);

    let close = case.ends(connection, Expect::BOTH);
    close.close(first).assert_is("close.unseen", "peer_fin");
    let record = case.time_wait(connection, first, "late_fin");
    assert!(check(&record, &flow, first) <= STAMP, "{record}");
    assert_eq!(record.id(), close.close(first).id());
    // Its ladder shows the grain.
    if first == Side::Client && !is_hooked() {
        handshakes::check(Ladder::LateFin, &case, &close, first);
    }
}

/// Nothing says that the FIN was not sent again, so the grain is coarse; it was not, so the value is fine.
fn late_fin_without_time_stamps(family: Family) {
    let (case, first) = (Case::new(), Side::Client);
    without_time_stamps(&case);
    let (connection, flow) = closed_late(&case, family, first, 406);

    let record = case.time_wait(connection, first, "late_fin");
    check(&record, &flow, first);
    record.assert_within("close.app_wait_us", truth::active_app_wait(&flow, first), ms(10) + link());
}

/// The ACK of the late FIN is lost: the FIN comes twice.
fn sent_again(case: &Case, family: Family, first: Side) -> (Connection, Capture) {
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    drop(active);
    drain(&passive);
    pause(123);
    case.bed.fault(faults::drop_first(1, first, Packet::is_bare_ack));
    drop(passive);
    case.bed.wait_until("the FIN comes again", |link| link.count(first.other(), Packet::is_fin) > 1);
    (connection, case.flow(connection))
}

fn late_fin_that_is_sent_again(family: Family) {
    let (case, first) = (Case::new(), Side::Server);
    let (connection, flow) = sent_again(&case, family, first);

    let record = case.time_wait(connection, first, "late_fin");
    assert!(check(&record, &flow, first) <= STAMP, "{record}");
}

/// The timer tells the second one; that it may not be the first is in the grain.
fn late_fin_without_time_stamps_that_is_sent_again(family: Family) {
    let case = Case::new();
    without_time_stamps(&case);
    let (connection, flow) = sent_again(&case, family, Side::Client);

    let record = case.time_wait(connection, Side::Client, "late_fin");
    assert!(check(&record, &flow, Side::Client) > ms(100) || is_hooked(), "{record}");
}

fn without_time_stamps(case: &Case) {
    for side in [Side::Client, Side::Server] {
        case.bed.sysctl(side, "ipv4/tcp_timestamps", "0");
    }
}

/// Both ends close, the first one with its socket still there for the peer's FIN.
fn half_closed(pair: crate::pair::Pair, first: Side) -> Connection {
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    active.shutdown(Shutdown::Write).unwrap();
    drain(&passive);
    drop(passive);
    drain(&active);
    drop(active);
    connection
}

fn ends_taken_by_a_client(family: Family) {
    ends_taken(family, Side::Client);
}

fn ends_taken_at_a_server(family: Family) {
    ends_taken(family, Side::Server);
}

/// A client connects again from the same port, after the second that `tcp_tw_reuse` asks for.
fn ends_taken(family: Family, first: Side) {
    let case = Case::new();
    case.bed.sysctl(Side::Client, "ipv4/tcp_tw_reuse", "1");
    let (listener, address) = case.bed.listen(family);
    case.bed.sysctl(Side::Client, "ipv4/ip_local_port_range", "50000 50000");
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    let connection = half_closed(crate::pair::Pair::accepted(client, &listener), first);
    pause(1500);
    let again = case.bed.socket(Side::Client, family);
    again.connect(&address.into()).unwrap();
    let pair = crate::pair::Pair::accepted(again, &listener);
    assert_eq!(pair.connection, connection, "the scenario did not happen");
    let flow = case.flow(connection);

    let record = case.time_wait(connection, first, "reused");
    let syn = |packet: &Packet| packet.is_syn();
    let began = match first {
        Side::Client => flow.from(first, syn).last().unwrap().arrived,
        // The first SYN-ACK leaves when the SYN comes.
        Side::Server => flow.from(first, Packet::is_syn_ack).last().unwrap().arrived,
    };
    record.assert_within("close.time_wait_us", began - flow.got(first, Packet::is_fin), link());
    record.assert_unknown("close.grain_us");
    let by = record.text("close.reused_by").unwrap();
    assert_ne!(by, record.id());
    let next = case.open_of(connection, first, by);
    next.assert_is("open.outcome", "established");
    pair.finish();
}

/// The kernel's own list shows when the minisocket is gone.
fn time_that_runs_out(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    // On a connection that has carried no data the kernel delays ACKs by no more than a tick: the ladder
    // would have three segments or four.
    pair.talk();
    let connection = half_closed(pair, Side::Client);
    let flow = case.flow(connection);
    let entered = flow.got(Side::Client, Packet::is_fin);
    let gone = case.bed.namespace(Side::Client).inside(|| gone(connection));

    let record = case.time_wait(connection, Side::Client, "ran_out");
    let grain = grain(&record);
    assert!(grain <= ms(10), "a tick: {record}");
    record.assert_within("close.time_wait_us", gone - entered, grain + ms(30));
    let ends = case.ends(connection, Expect::BOTH);
    if !is_hooked() {
        handshakes::check(Ladder::TimeWait, &case, &ends, Side::Client);
    }
}

/// Waits until no socket has this local port. Returns when.
fn gone(connection: Connection) -> Instant {
    let port = format!(":{:04X} ", connection.client.port());
    let lists = |port: &str| {
        ["tcp", "tcp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap().contains(port)
        })
    };
    assert!(lists(&port), "the scenario did not happen: there is no TIME_WAIT");
    thread::sleep(Duration::from_secs(58));
    let deadline = Instant::now() + Duration::from_secs(20);
    while lists(&port) {
        assert!(Instant::now() < deadline, "TIME_WAIT does not end");
        thread::sleep(ms(5));
    }
    Instant::now()
}

/// The peer's program holds its socket open. 15 s: long enough for a look.
fn fin_that_never_comes(family: Family) {
    let case = Case::new();
    case.bed.sysctl(Side::Client, "ipv4/tcp_fin_timeout", "15");
    let pair = case.establish(family);
    let connection = pair.connection;
    drop(pair.client);
    let record = case.time_wait(connection, Side::Client, "no_fin");
    for path in ["close.duration_us", "close.app_wait_us", "close.time_wait_us", "close.late_fin"] {
        record.assert_unknown(path);
    }
    drop(pair.server);
}

/// The peer still sends data, which the minisocket answers with a RST.
fn reset_in_fin_wait2(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    drop(pair.client);
    let mut server = pair.server;
    drain(&server);
    // Until it has been looked at.
    pause(13_000);
    server.write_all(b"still here").unwrap();
    let record = case.time_wait(connection, Side::Client, "reset");
    for path in ["close.duration_us", "close.app_wait_us", "close.time_wait_us"] {
        record.assert_unknown(path);
    }
}

/// No look can tell whether it was that or a SYN to the listener.
#[test]
fn reset_of_a_server_in_fin_wait2() {
    if !is_hooked() {
        eprintln!("not run: this kernel does not let its functions be hooked");
        return;
    }
    let case = Case::new();
    let pair = case.establish(Family::V4);
    let connection = pair.connection;
    drop(pair.server);
    let mut client = pair.client;
    drain(&client);
    pause(123);
    client.write_all(b"still here").unwrap();
    let record = case.time_wait(connection, Side::Server, "reset");
    record.assert_unknown("close.time_wait_us");
}

/// A `connect()` ends TIME_WAIT, whatever comes of it.
#[test]
fn ends_taken_by_a_client_that_is_refused() {
    let case = Case::new();
    case.bed.sysctl(Side::Client, "ipv4/tcp_tw_reuse", "1");
    case.bed.sysctl(Side::Client, "ipv4/ip_local_port_range", "50000 50000");
    // Its listener is gone afterwards.
    let connection = half_closed(case.establish(Family::V4), Side::Client);
    pause(1500);
    let again = case.bed.socket(Side::Client, Family::V4);
    assert!(again.connect(&connection.server.into()).is_err());
    let flow = case.flow(connection);

    let record = case.time_wait(connection, Side::Client, "reused");
    let began = flow.from(Side::Client, Packet::is_syn).last().unwrap().arrived;
    record.assert_within("close.time_wait_us", began - flow.got(Side::Client, Packet::is_fin), link());
    record.assert_unknown("close.grain_us");
    let next = case.open_of(connection, Side::Client, record.text("close.reused_by").unwrap());
    next.assert_is("open.outcome", "refused");
}

/// The second of two closings finds no room. The first is there so that the namespace has been looked into.
fn more_than_the_kernel_allows(family: Family) {
    let case = Case::new();
    let (connection, _) = closed_late(&case, family, Side::Client, 50);
    case.time_wait(connection, Side::Client, "late_fin");
    if is_hooked() {
        // It was told before the first look, and then the next one is ten seconds later.
        pause(13_000);
    }
    case.bed.sysctl(Side::Client, "ipv4/tcp_max_tw_buckets", "1");
    let connection = half_closed(case.establish(family), Side::Client);
    let record = case.time_wait(connection, Side::Client, "cut_off");
    record.assert_unknown("close.time_wait_us");
    record.assert_near("close.duration_us", truth::active_close(&case.flow(connection), Side::Client));
}
