//! Tests of the testbed itself. They do not need the program under test.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use nix::libc;

use super::{
    Family, Testbed,
    faults::{self, Verdict},
    packet::{Packet, Side},
};
use crate::socket::{kernel_rtt, set_tcp_option, tcp_info, timed};

const RTT: Duration = Duration::from_millis(50);

#[track_caller]
fn assert_near(what: &str, actual: Duration, truth: Duration, tolerance: Duration) {
    assert_time!(actual.abs_diff(truth) <= tolerance, "{what}: {actual:?} instead of {truth:?}");
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn connect_takes_one_round_trip() {
    for family in [Family::V4, Family::V6] {
        let bed = Testbed::new(RTT);
        let (listener, address) = bed.listen(family);
        let mut client = bed.socket(Side::Client, family);
        let (taken, result) = timed(|| client.connect(&address.into()));
        result.unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"to and fro").unwrap();
        let mut text = [0; 10];
        server.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"to and fro");

        // A program also waits for a CPU; the relay does not.
        assert_near("connect() by the program's clock", taken, RTT, ms(15));
        assert_near("TCP_INFO of the client", kernel_rtt(&client), RTT, ms(5));
        assert_near("TCP_INFO of the server", kernel_rtt(&server), RTT, ms(5));
        let capture = bed.capture();
        let truth =
            capture.got(Side::Client, Packet::is_syn_ack) - capture.sent(Side::Client, Packet::is_syn);
        assert_near("the capture", truth, RTT, ms(2));
        assert_eq!(capture.connections().len(), 1);
    }
}

#[test]
fn link_delays_packets_by_half_a_round_trip_in_order() {
    let bed = Testbed::new(RTT);
    let (listener, address) = bed.listen(Family::V4);
    let mut client = bed.socket(Side::Client, Family::V4);
    client.connect(&address.into()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.write_all(&vec![0; 100_000]).unwrap();
    drop(client);
    assert_eq!(crate::socket::drain(&server), 100_000);

    let capture = bed.capture();
    let data = capture.from(Side::Client, Packet::has_data);
    assert!(data.len() > 50, "100 kB in {} packets", data.len());
    let mut last = None;
    let mut late = Vec::new();
    for seen in data {
        let super::capture::Fate::Released(at) = seen.fate else { panic!("lost: {:?}", seen.fate) };
        // A busy machine may delay a single packet; the median shows the delay of the link.
        assert_near("time on the link", at - seen.arrived, RTT / 2, ms(10));
        late.push(at - seen.arrived);
        assert!(last < Some(at), "overtaken");
        last = Some(at);
    }
    late.sort();
    assert_near("usual time on the link", late[late.len() / 2], RTT / 2, ms(1));
}

#[test]
fn dropped_syn_is_retransmitted() {
    let bed = Testbed::new(RTT);
    bed.fault(faults::drop_first(1, Side::Client, Packet::is_syn));
    let (_listener, address) = bed.listen(Family::V4);
    let client = bed.socket(Side::Client, Family::V4);
    let (taken, result) = timed(|| client.connect(&address.into()));
    result.unwrap();
    // Kernel timers of this length have a granularity of 32 ms, and more in slow kernels.
    assert_near("one second of the retransmit timer and a round trip", taken, ms(1050), ms(60));
    assert_eq!(tcp_info(&client).tcpi_total_retrans, 1);
    assert_eq!(bed.capture().count(Side::Client, Packet::is_syn), 2);
}

#[test]
fn rule_delays_a_single_packet() {
    let bed = Testbed::new(RTT);
    bed.fault(|packet| if packet.is_syn_ack() { Verdict::Delay(ms(100)) } else { Verdict::Pass });
    let (_listener, address) = bed.listen(Family::V6);
    let client = bed.socket(Side::Client, Family::V6);
    let (taken, result) = timed(|| client.connect(&address.into()));
    result.unwrap();
    assert_near("round trip and delay", taken, ms(150), ms(15));
}

#[test]
fn icmp_and_rst_arrive_one_round_trip_later() {
    for family in [Family::V4, Family::V6] {
        let bed = Testbed::new(RTT);
        let (_listener, address) = bed.listen(family);
        for (rule, error) in [("icmp", libc::EHOSTUNREACH), ("reset", libc::ECONNREFUSED)] {
            bed.mend();
            match rule {
                "icmp" => bed.fault(faults::host_unreachable()),
                _ => bed.fault(faults::reset(Side::Client, Packet::is_syn)),
            }
            let client = bed.socket(Side::Client, family);
            let (taken, result) = timed(|| client.connect(&address.into()));
            assert_eq!(result.unwrap_err().raw_os_error(), Some(error), "{family:?} {rule}");
            assert_near("the answer", taken, RTT, ms(15));
        }
    }
}

#[test]
fn blackhole_drops_everything_until_cleared() {
    let bed = Testbed::new(RTT);
    let (listener, address) = bed.listen(Family::V4);
    let mut client = bed.socket(Side::Client, Family::V4);
    client.connect(&address.into()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(ms(150))).unwrap();

    bed.fault(faults::blackhole());
    client.write_all(b"lost").unwrap();
    let error = server.read(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    bed.mend();
    server.set_read_timeout(Some(ms(2000))).unwrap();
    assert_eq!(server.read(&mut [0; 4]).unwrap(), 4);
}

#[test]
fn sysctl_applies_to_one_side() {
    let bed = Testbed::new(RTT);
    bed.sysctl(Side::Server, "ipv4/tcp_syn_retries", "3");
    let retries = |side| {
        let path = "/proc/sys/net/ipv4/tcp_syn_retries";
        bed.namespace(side).inside(|| std::fs::read_to_string(path).unwrap())
    };
    assert_eq!(retries(Side::Server).trim(), "3");
    assert_ne!(retries(Side::Client).trim(), "3");
}

#[test]
fn command_runs_in_the_namespace_of_its_side() {
    let bed = Testbed::new(RTT);
    let out = bed.command(Side::Client, "readlink").arg("/proc/self/ns/net").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains(&bed.namespace(Side::Client).inode().to_string()), "{text}");
}

#[test]
fn tcp_options_take_effect() {
    let bed = Testbed::new(RTT);
    bed.fault(faults::drop_all(Packet::is_syn));
    let client = bed.socket(Side::Client, Family::V4);
    set_tcp_option(&client, libc::TCP_USER_TIMEOUT, 700);
    set_tcp_option(&client, libc::TCP_SYNCNT, 1);
    let nowhere = (bed.address(Side::Server, Family::V4), 9).into();
    let (taken, result) = timed(|| client.connect(&std::net::SocketAddr::into(nowhere)));
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    assert_time!(taken < ms(2500), "{taken:?} to give up");
}
