//! The bytes of hellos, kept until their handshake is over.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use handshake_common::{
    Role,
    tls::wire::{Excerpt, Sighting},
};

use crate::tls::wire::{Buffers, Hellos, Piece, Verdict, message::MOST_BYTES, verdict};

/// What is kept of one handshake: both hellos of both ends, and each of them once more where the network repeated it.
const MOST_OF_ONE: usize = 8 * MOST_BYTES;
/// What is kept of all handshakes; the oldest give way. Most take a kilobyte.
const MOST_OF_ALL: usize = 16 << 20;

/// Bytes by the number of their handshake.
#[derive(Debug, Default)]
pub(super) struct Excerpts {
    handshakes: HashMap<u64, Handshake>,
    /// In the order in which they began; some are over.
    order: VecDeque<u64>,
    /// How many pieces are there with this ClientHello.random.
    randoms: HashMap<[u8; 32], usize>,
    bytes: usize,
    buffers: Box<Buffers>,
}

#[derive(Debug, Default)]
struct Handshake {
    pieces: Vec<(Role, u32, Box<[u8]>)>,
    bytes: usize,
}

impl Excerpts {
    pub(super) fn add(&mut self, excerpt: &Excerpt, bytes: &[u8]) {
        let Some(sender) = excerpt.sender() else { return };
        let handshake = self.handshakes.entry(excerpt.number).or_insert_with(|| {
            self.order.push_back(excerpt.number);
            Handshake::default()
        });
        if handshake.bytes + bytes.len() > MOST_OF_ONE {
            return;
        }
        handshake.bytes += bytes.len();
        self.bytes += bytes.len();
        if let Some(random) = client_random(sender, bytes) {
            *self.randoms.entry(random).or_default() += 1;
        }
        handshake.pieces.push((sender, excerpt.seq, bytes.into()));
        while self.bytes > MOST_OF_ALL {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forget(oldest);
        }
        // Handshakes that are over have left their place in the order.
        if self.order.len() > 64 + 2 * self.handshakes.len() {
            self.order.retain(|number| self.handshakes.contains_key(number));
        }
    }

    /// What the handshake's records and its bytes say; the bytes are not needed any more.
    pub(super) fn settle<T>(&mut self, sighting: &Sighting, say: impl FnOnce(&Verdict<'_>) -> T) -> T {
        let handshake = self.forget(sighting.number).unwrap_or_default();
        let of = |wanted| {
            let pieces = handshake.pieces.iter().filter(move |(sender, ..)| *sender == wanted);
            pieces.map(|(_, seq, bytes)| Piece { seq: *seq, bytes }).collect::<Vec<_>>()
        };
        let (client, server) = (of(Role::Client), of(Role::Server));
        let hellos = Hellos::read(&sighting.wire, &client, &server, &mut self.buffers);
        say(&verdict(&sighting.wire, &hellos))
    }

    /// Whether a handshake goes on whose ClientHello has this random.
    pub(super) fn has_one_with(&self, random: &[u8; 32]) -> bool {
        self.randoms.contains_key(random)
    }

    fn forget(&mut self, number: u64) -> Option<Handshake> {
        let handshake = self.handshakes.remove(&number)?;
        self.bytes -= handshake.bytes;
        for random in handshake.pieces.iter().filter_map(|(sender, _, bytes)| client_random(*sender, bytes)) {
            if let Entry::Occupied(mut count) = self.randoms.entry(random) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        Some(handshake)
    }
}

/// ClientHello.random, if these bytes begin as a ClientHello: behind the headers of the record and of the message, and
/// the legacy version (RFC 8446 §4.1.2).
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
        let mut excerpts = Excerpts::default();
        let bytes = [7; 2048];
        for number in 0..20_000 {
            let excerpt = Excerpt { sender: Role::Client.code(), number, ..Excerpt::default() };
            excerpts.add(&excerpt, &bytes);
        }
        assert!(excerpts.bytes <= MOST_OF_ALL && excerpts.handshakes.len() * bytes.len() == excerpts.bytes);
        assert!(excerpts.handshakes.contains_key(&19_999), "the newest stays");
        for _ in 0..100 {
            let excerpt = Excerpt { sender: Role::Client.code(), number: 19_999, ..Excerpt::default() };
            excerpts.add(&excerpt, &bytes);
        }
        assert_eq!(excerpts.handshakes[&19_999].bytes, MOST_OF_ONE);
        assert!(excerpts.has_one_with(&[7; 32]) && !excerpts.has_one_with(&[0; 32]));
        for number in 0..20_000 {
            excerpts.settle(&Sighting { number, ..Sighting::default() }, |_| ());
        }
        assert_eq!((excerpts.bytes, excerpts.handshakes.len(), excerpts.randoms.len()), (0, 0, 0));
    }
}
