//! The ids of traces and spans. They follow from the record, so that a record leads to its trace, the pieces
//! of a trace can be sent at different times, and what is sent twice is recognized.

use sha2::{Digest as _, Sha256};

use crate::event::ConnectionEvent;

/// The spans of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole = 0,
    Open = 1,
    Tls = 2,
    Close = 3,
    TimeWait = 4,
}

/// SHA-256 of `BOOT_ID/ID`, the two as in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids([u8; 32]);

impl Ids {
    pub(super) fn of(event: &ConnectionEvent) -> Self {
        let boot = event.boot_id.as_ref().map_or("", |boot| boot.raw());
        Self(Sha256::digest(format!("{boot}/{}", event.id)).into())
    }

    /// Its first 16 bytes.
    pub(super) fn trace(&self) -> Vec<u8> {
        self.0[..16].to_vec()
    }

    /// The next 8 bytes, the last of which tells the parts apart.
    pub(super) fn span(&self, part: Part) -> Vec<u8> {
        let mut id = self.0[16..24].to_vec();
        id[7] ^= part as u8;
        id
    }

    /// What consistent probability sampling decides by: the last 56 bits of the trace's id.
    pub(super) fn randomness(&self) -> u64 {
        let mut last = [0; 8];
        last[1..].copy_from_slice(&self.0[9..16]);
        u64::from_be_bytes(last)
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::Role;

    use super::*;
    use crate::event::testing::opened;

    /// Of at most 16 bytes.
    fn hexadecimal(bytes: &[u8]) -> String {
        let number = bytes.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
        format!("{number:0width$x}", width = 2 * bytes.len())
    }

    #[test]
    fn ids_are_what_sha256sum_prints() {
        let mut event = opened(Role::Client);
        event.boot_id = Some("0d4c0a4e-54a5-4a0c-8a0e-0f0c9a4d2b11".into());
        let ids = Ids::of(&event);
        // printf %s 0d4c0a4e-54a5-4a0c-8a0e-0f0c9a4d2b11/1007 | sha256sum
        assert_eq!(hexadecimal(&ids.trace()), "b1bbd90983eb17ecfd666b20f7985a67");
        assert_eq!(hexadecimal(&ids.span(Part::Whole)), "5bcc359adc9dcfc3");
        assert_eq!(ids.span(Part::Tls)[7], ids.span(Part::Whole)[7] ^ 2);
        assert_eq!(format!("{:014x}", ids.randomness()), hexadecimal(&ids.trace()[9..]));
    }
}
