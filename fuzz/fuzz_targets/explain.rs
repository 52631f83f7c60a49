//! Fuzzes `handshake explain` with arbitrary bytes as records.
#![no_main]

use handshake::{event::ConnectionEvent, fuzzing::explain};
use handshake_fuzz::{assert_harmless, record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (drawn, complaints) = explain(data);
    assert_harmless(&drawn);
    let lines = data.split(|byte| *byte == b'\n');
    assert!(complaints.len() <= lines.clone().count());
    for complaint in complaints {
        assert!(!complaint.contains('\n'), "a complaint is one line");
        assert_harmless(&complaint);
    }
    for record in lines.filter_map(|line| serde_json::from_slice::<ConnectionEvent>(line).ok()) {
        record::check(&record);
    }
});
