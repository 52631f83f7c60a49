//! Sockets older than the tracer, used for several connections, or closed by the death of their process.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
};

use crate::{
    case::{Case, pause},
    closes::{check_active, check_passive},
    ends::Expect,
    record::Record,
    socket::{await_input, disconnect, drain},
    testbed::{
        Family,
        packet::{Packet, Side},
    },
    tracer::Tracer,
};

for_each_family!(
    opened_before_the_tracer,
    socket_reused,
    socket_reused_with_the_same_port,
    closed_by_process_death
);

/// The close is measured as usual; the establishment is unknown.
fn opened_before_the_tracer(family: Family) {
    let mut case = Case::new();
    let pair = case.establish(family);
    let tracer = Tracer::start(&[]).unwrap_or_else(|reason| panic!("{reason}"));
    let connection = pair.connection;
    let (client, server) = (pair.client, pair.server);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    drain(&server);
    pause(200);
    drop(server);
    drain(&client);
    drop(client);
    let flow = case.flow(connection);

    case.listen_to(tracer.log());
    let ends = case.ends(connection, Expect { client: (0, 1), server: (0, 1) });
    for side in [Side::Client, Side::Server] {
        let close = ends.close(side);
        for path in [
            "open.outcome",
            "open.duration_us",
            "open.rtt_us",
            "open.syn_retransmits",
            "open.final_ack",
            "open.fast_open",
            "setup",
            "lifetime_us",
        ] {
            close.assert_unknown(path);
        }
    }
    check_active(&ends, &flow, Side::Client, "four_segments");
    check_passive(&ends, &flow, Side::Server, "four_segments");
    tracer.stop();
}

/// One socket makes two connections, one after the other.
fn socket_reused(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    let mut ids = Vec::new();
    for last in [false, true] {
        client.connect(&address.into()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let connection = *case.bed.capture().connections().last().unwrap();
        if last {
            client.shutdown(std::net::Shutdown::Write).unwrap();
            drain(&server);
        } else {
            disconnect(&client);
            await_input(&server);
        }
        drop(server);
        if last {
            drain(&client);
        }
        let ends = case.ends(connection, Expect::BOTH);
        let style = ends.close(Side::Client).text("close.style").unwrap().to_owned();
        assert_eq!(style == "reset_sent", !last, "{style}");
        ids.extend([Side::Client, Side::Server].map(|side| ends.open(side).id().to_owned()));
        let open = ends.open(Side::Client);
        open.assert_near("open.duration_us", crate::truth::client_open(&case.flow(connection)));
    }
    assert_distinct(ids);
}

/// The same, with the same addresses and ports both times.
fn socket_reused_with_the_same_port(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.bind(&SocketAddr::new(case.bed.address(Side::Client, family), 40_321).into()).unwrap();
    for _ in 0..2 {
        client.connect(&address.into()).unwrap();
        let (server, _) = listener.accept().unwrap();
        disconnect(&client);
        await_input(&server);
        drop(server);
        case.bed.wait_until_quiet();
    }
    let connection = case.connection();
    let flow = case.flow(connection);
    assert_eq!(flow.count(Side::Client, Packet::is_syn), 2);

    let ends = case.ends(connection, Expect { client: (2, 2), server: (2, 2) });
    let mut ids = Vec::new();
    for side in [Side::Client, Side::Server] {
        let opens = ends.all(side).iter().filter(|record| record.is_event("open"));
        ids.extend(opens.map(|record| record.id().to_owned()));
        for id in &ids {
            let of_one = |record: &&Record| record.id() == id && record.is_event("close");
            assert!(ends.all(side).iter().filter(of_one).count() <= 1, "{id} has two close records");
        }
    }
    assert_eq!(ids.len(), 4);
    assert_distinct(ids);
}

#[track_caller]
fn assert_distinct(mut ids: Vec<String>) {
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "connections that share an id: {ids:?}");
}

/// The kernel closes the sockets of a dying process in the context of that process.
fn closed_by_process_death(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut command = case.bed.command(Side::Client, "curl");
    command.args(["--silent", "--max-time", "10", &format!("http://{address}/")]);
    let mut curl: Child = command.stdout(Stdio::null()).spawn().expect("curl, which this test needs");
    await_input(&listener);
    let (server, _) = listener.accept().unwrap();
    await_input(&server);
    case.bed.wait_until_quiet();
    curl.kill().unwrap();
    curl.wait().unwrap();
    drain(&server);
    pause(100);
    drop(server);
    let connection = case.connection();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    let open = ends.open(Side::Client);
    open.assert_process(curl.id());
    open.assert_is("process.comm", "curl");
    let close = ends.close(Side::Client);
    close.assert_process(curl.id());
    close.assert_is("close.initiator", "local");
    close.assert_near("close.ack_wait_us", crate::truth::ack_wait(&flow, Side::Client));
    check_passive(&ends, &flow, Side::Server, "four_segments");
}
