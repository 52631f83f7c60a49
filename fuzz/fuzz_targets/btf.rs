//! Fuzzes the reading of BTF with arbitrary bytes.
#![no_main]

use handshake::kernel::btf::{Btf, audit, has_tracepoint, layout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::from_bytes(bytes) else { return };
    let audit = audit(&btf);
    assert!(audit.missing.len() <= audit.members);
    assert_eq!(layout(&btf).is_ok(), audit.missing.is_empty(), "both look for the same members");
    let _ = has_tracepoint(&btf, "tcp_destroy_sock");
});
