//! Fuzzes the record layer and the parsers of both hellos with arbitrary bytes as the beginning of a stream.
#![no_main]

use handshake::tls::wire::{ClientHello, Piece, ServerHello, message};
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
        let _ = ServerHello::parse(bytes).map(|hello| (hello.is_hello_retry(), hello.tls_version()));
    }
});
