//! Checks that must hold for every record, whatever its origin.

use handshake::{
    event::ConnectionEvent,
    output::{ladder, table::Table, text::columns},
    untrusted::json,
};

use crate::assert_harmless;

/// Asserts that the record survives serialization, and that its text contains no terminal controls.
///
/// # Panics
/// If one of them fails.
pub fn check(record: &ConnectionEvent) {
    let json = json(serde_json::to_string(record).expect("a record can be written"));
    assert!(!json.contains('\n'), "a record is one line");
    assert_harmless(&json);
    let read: ConnectionEvent = serde_json::from_str(&json).expect("what is written can be read");
    // JSON has whole microseconds.
    let again = serde_json::to_string(&read).expect("a record can be written");
    assert_eq!(handshake::untrusted::json(again), json, "what is written is what is read");
    for width in [None, Some(80)] {
        let line = Table::new(&[], width, false).line(record);
        assert!(!line.contains('\n'), "a record is one line");
        assert!(width.is_none_or(|width| columns(&line) <= width), "it is wider than the terminal");
        assert_harmless(&line);
    }
    assert_harmless(&ladder::draw(record));
}
