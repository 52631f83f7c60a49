//! Real handshakes at both ends: the verdict does not depend on how the streams are cut into packets.

mod handshakes;

use std::{fmt::Write as _, fs};

use handshake_common::Role;
use handshakes::{Packet, bytewise, cut, folder, load, merged, names, watch, with_cuts};
use proptest::prelude::*;

fn verdict_of(packets: &[Packet], local: Role, client: u32, server: u32) -> String {
    watch(packets, local, client, server).map_or_else(|| "nothing".to_owned(), |watched| watched.summary())
}

fn without_times(summary: &str) -> &str {
    summary.split(" ended@").next().unwrap()
}

/// Each line of `verdicts.golden` was checked against what its handshake was made to be; see the README of
/// the corpus.
#[test]
fn verdicts_match_the_golden_file() {
    let mut found = String::new();
    for name in names() {
        for &local in Role::ALL {
            writeln!(found, "{name} {local}: {}", verdict_of(&load(&name), local, 1000, 2000)).unwrap();
        }
    }
    let golden = folder().join("verdicts.golden");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &found).unwrap();
    }
    let expected = fs::read_to_string(golden).unwrap();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn one_byte_per_packet_gives_the_same_verdict() {
    for name in names() {
        let packets = load(&name);
        for &local in Role::ALL {
            let expected = verdict_of(&packets, local, 1, 1);
            let found = verdict_of(&bytewise(&packets), local, 1, 1);
            assert_eq!(found, with_cuts(&expected, &found), "{name} {local}");
        }
    }
}

#[test]
fn merged_packets_give_the_same_verdict() {
    for name in names() {
        let packets = load(&name);
        for &local in Role::ALL {
            let (expected, found) =
                (verdict_of(&packets, local, 1, 1), verdict_of(&merged(&packets), local, 1, 1));
            assert_eq!(without_times(&found), without_times(&expected), "{name} {local}");
        }
    }
}

#[test]
fn duplicated_packets_give_the_same_verdict() {
    for name in names() {
        let packets = load(&name);
        let twice: Vec<Packet> = packets.iter().flat_map(|packet| [packet.clone(), packet.clone()]).collect();
        for &local in Role::ALL {
            assert_eq!(verdict_of(&twice, local, 1, 1), verdict_of(&packets, local, 1, 1), "{name} {local}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_cuts_and_any_sequence_numbers_give_the_same_verdict(
        which in any::<prop::sample::Index>(),
        server in any::<bool>(),
        places in prop::collection::vec(any::<usize>(), 0..12),
        merge in any::<bool>(),
        (client_begin, server_begin) in (any::<u32>(), any::<u32>()),
    ) {
        let name = which.get(&names()).clone();
        let packets = load(&name);
        let local = if server { Role::Server } else { Role::Client };
        let expected = verdict_of(&packets, local, 1, 1);
        let again = if merge { merged(&packets) } else { packets };
        let found = verdict_of(&cut(&again, &places), local, client_begin, server_begin);
        prop_assert_eq!(without_times(&found), with_cuts(without_times(&expected), &found), "{}", name);
    }
}
