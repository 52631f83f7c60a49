//! Keeps the bytes of hellos until their handshake is over.

use std::collections::{HashMap, hash_map::Entry};

use handshake_common::{
    Role,
    tls::wire::{HelloFragment, WireHandshake},
};

use crate::{
    bounded_map::BoundedMap,
    tls::wire::{Buffers, Hellos, Piece, Verdict, message::MAX_BYTES, verdict},
};

/// Bytes kept of one handshake: both hellos of both ends, each twice in case it is retransmitted.
const MAX_BYTES_PER_HANDSHAKE: usize = 8 * MAX_BYTES;
/// Bytes kept of all handshakes; the oldest are evicted. Most take a kilobyte.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// Handshakes in progress; those without a byte are bounded by this alone.
const MAX_HANDSHAKES: usize = 65_536;

/// Fragments by the number of their handshake.
#[derive(Debug)]
pub(super) struct HelloFragments {
    handshakes: BoundedMap<u64, Fragments>,
    /// How many fragments begin with this ClientHello.random.
    randoms: HashMap<[u8; 32], usize>,
    bytes: usize,
    buffers: Box<Buffers>,
}

#[derive(Debug, Default)]
struct Fragments {
    pieces: Vec<(Role, u32, Box<[u8]>)>,
    bytes: usize,
}

impl Default for HelloFragments {
    fn default() -> Self {
        Self {
            handshakes: BoundedMap::new(MAX_HANDSHAKES),
            randoms: HashMap::new(),
            bytes: 0,
            buffers: Box::default(),
        }
    }
}

impl HelloFragments {
    pub(super) fn add(&mut self, fragment: &HelloFragment, bytes: &[u8]) {
        let Some(sender) = fragment.sender() else { return };
        if !self.handshakes.contains(&fragment.number)
            && let Some((_, oldest)) = self.handshakes.insert(fragment.number, Fragments::default())
        {
            self.account_for_removed(&oldest);
        }
        let Some(handshake) = self.handshakes.get_mut(&fragment.number) else { return };
        if handshake.bytes + bytes.len() > MAX_BYTES_PER_HANDSHAKE {
            return;
        }
        handshake.bytes += bytes.len();
        self.bytes += bytes.len();
        if let Some(random) = client_random(sender, bytes) {
            *self.randoms.entry(random).or_default() += 1;
        }
        handshake.pieces.push((sender, fragment.seq, bytes.into()));
        while self.bytes > MAX_TOTAL_BYTES {
            let Some((_, oldest)) = self.handshakes.pop_oldest() else { break };
            self.account_for_removed(&oldest);
        }
    }

    /// Passes on what the handshake's records and bytes mean, and drops the bytes.
    pub(super) fn settle<T>(
        &mut self,
        wire_handshake: &WireHandshake,
        say: impl FnOnce(&Verdict<'_>) -> T,
    ) -> T {
        let handshake = self.handshakes.remove(&wire_handshake.number).unwrap_or_default();
        self.account_for_removed(&handshake);
        let of = |wanted| {
            let pieces = handshake.pieces.iter().filter(move |(sender, ..)| *sender == wanted);
            pieces.map(|(_, seq, bytes)| Piece { seq: *seq, bytes }).collect::<Vec<_>>()
        };
        let (client, server) = (of(Role::Client), of(Role::Server));
        let hellos = Hellos::read(&wire_handshake.wire, &client, &server, &mut self.buffers);
        say(&verdict(&wire_handshake.wire, &hellos))
    }

    /// Whether a handshake with this ClientHello.random is in progress.
    pub(super) fn has_one_with(&self, random: &[u8; 32]) -> bool {
        self.randoms.contains_key(random)
    }

    fn account_for_removed(&mut self, handshake: &Fragments) {
        self.bytes -= handshake.bytes;
        for random in handshake.pieces.iter().filter_map(|(sender, _, bytes)| client_random(*sender, bytes)) {
            if let Entry::Occupied(mut count) = self.randoms.entry(random) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

/// Returns ClientHello.random if these bytes come from a client and are long enough: it follows the record
/// header, the message header and the legacy version (RFC 8446 §4.1.2).
fn client_random(sender: Role, bytes: &[u8]) -> Option<[u8; 32]> {
    const AT: usize = 11;
    let random = bytes.get(AT..)?.first_chunk()?;
    (sender == Role::Client).then_some(*random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded() {
        let mut hello_fragments = HelloFragments::default();
        let bytes = [7; 2048];
        for number in 0..20_000 {
            let fragment = HelloFragment { sender: Role::Client.code(), number, ..HelloFragment::default() };
            hello_fragments.add(&fragment, &bytes);
        }
        assert!(
            hello_fragments.bytes <= MAX_TOTAL_BYTES
                && hello_fragments.handshakes.len() * bytes.len() == hello_fragments.bytes
        );
        assert!(hello_fragments.handshakes.contains(&19_999), "the newest stays");
        for _ in 0..100 {
            let fragment =
                HelloFragment { sender: Role::Client.code(), number: 19_999, ..HelloFragment::default() };
            hello_fragments.add(&fragment, &bytes);
        }
        assert_eq!(hello_fragments.handshakes.get(&19_999).unwrap().bytes, MAX_BYTES_PER_HANDSHAKE);
        assert!(hello_fragments.has_one_with(&[7; 32]) && !hello_fragments.has_one_with(&[0; 32]));
        for number in 0..20_000 {
            hello_fragments.settle(&WireHandshake { number, ..WireHandshake::default() }, |_| ());
        }
        assert_eq!(
            (hello_fragments.bytes, hello_fragments.handshakes.len(), hello_fragments.randoms.len()),
            (0, 0, 0)
        );
    }
}
