//! Fuzzes `handshake explain` with arbitrary bytes as records, compressed or not.
#![no_main]

use handshake::{event::ConnectionEvent, fuzzing::explain};
use handshake_fuzz::{assert_harmless, record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (drawn, complaints) = explain(data);
    assert_harmless(&drawn);
    let lines = data.split(|byte| *byte == b'\n');
    if !is_compressed(data) {
        assert!(complaints.len() <= lines.clone().count());
    }
    for complaint in complaints {
        assert!(!complaint.contains('\n'), "a complaint is one line");
        assert_harmless(&complaint);
    }
    for record in lines.filter_map(|line| serde_json::from_slice::<ConnectionEvent>(line).ok()) {
        record::check(&record);
    }
});

fn is_compressed(data: &[u8]) -> bool {
    matches!(data, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}
