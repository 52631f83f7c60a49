//! Fuzzes the record layer and the parsers of both hellos and of a certificate with arbitrary bytes as the
//! beginning of a stream.
#![no_main]

use handshake::tls::wire::{Certificate, ClientHello, Piece, ServerHello, message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else { return };
    // Two overlapping pieces, the later one first.
    let middle = usize::from(*cut).min(stream.len());
    let seq = |offset: usize| u32::MAX.wrapping_add(u32::try_from(offset).unwrap());
    let pieces = [
        Piece { seq: seq(middle / 2), bytes: &stream[middle / 2..] },
        Piece { seq: seq(0), bytes: &stream[..middle] },
    ];
    let mut buffer = [0; message::MAX_BYTES];
    let length = message::join(&pieces, seq(0), &mut buffer);
    assert_eq!(buffer[..length], stream[..stream.len().min(message::MAX_BYTES)]);
    for bytes in [message::unwrap(&mut buffer[..length]).unwrap_or_default(), stream] {
        if let Some(hello) = ClientHello::parse(bytes) {
            assert!(hello.shares().count() <= bytes.len() && hello.session_id.len() <= 32);
            let _ = hello.protocols.map(|protocols| protocols.iter().count());
        }
        if let Some(Certificate { not_after, .. }) = Certificate::parse(bytes) {
            // It can be written, and less of it says nothing else.
            assert!(!humantime::format_rfc3339_seconds(not_after).to_string().is_empty());
            let half = Certificate::parse(&bytes[..bytes.len() / 2]);
            assert!(half.is_none_or(|half| half.not_after == not_after));
        }
        let _ = ServerHello::parse(bytes).map(|hello| (hello.is_hello_retry(), hello.tls_version()));
    }
});
