//! The flights of a TLS handshake (RFC 8446 §2), by the times at which its packets passed this end.

use handshake_common::{
    Role,
    tls::wire::{Burst, BurstFlags},
};

/// What one end sent until bytes of the other one passed. Times are in ns since the ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) from: Role,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
}

/// The flights in their order. Bytes that had passed before make none.
pub(super) fn flights(bursts: &[Burst]) -> Vec<Flight> {
    let mut flights: Vec<Flight> = Vec::new();
    let mut holes = [false; 2];
    for burst in bursts.iter().filter(|burst| !burst.flags.contains(BurstFlags::BARE)) {
        let from = burst.sender();
        let hole = &mut holes[usize::from(from == Role::Server)];
        *hole |= burst.flags.contains(BurstFlags::AHEAD);
        let fills = *hole && burst.flags.contains(BurstFlags::AGAIN);
        if !fills && !burst.flags.contains(BurstFlags::NEW) {
            continue;
        }
        let (first_ns, last_ns) = (burst.first_ns(), burst.last_ns());
        match flights.last_mut() {
            Some(flight) if flight.from == from => flight.last_ns = last_ns,
            _ => flights.push(Flight { from, first_ns, last_ns }),
        }
    }
    flights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flight_ends_where_the_other_end_begins_and_repeated_bytes_make_none() {
        let burst = |at: u32, flags: BurstFlags| Burst { at, took: 1, flags, size: 1 };
        let server = BurstFlags::FROM_SERVER;
        let new = BurstFlags::NEW;
        let seen = flights(&[
            burst(0, new),
            burst(10, BurstFlags::AGAIN),
            burst(20, new | server),
            burst(30, new | server | BurstFlags::AHEAD),
            burst(40, BurstFlags::BARE | BurstFlags::ACKS_ALL),
            burst(50, BurstFlags::AGAIN | server),
            burst(60, BurstFlags::AGAIN),
            burst(70, new),
            burst(90, new),
        ]);
        let flight =
            |from, first: u64, last: u64| Flight { from, first_ns: first << 10, last_ns: last << 10 };
        assert_eq!(
            seen,
            [flight(Role::Client, 0, 1), flight(Role::Server, 20, 51), flight(Role::Client, 70, 91)]
        );
    }
}
