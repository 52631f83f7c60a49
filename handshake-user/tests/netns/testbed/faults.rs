//! Faults that the link can inject.

use std::time::Duration;

use super::{
    forge,
    packet::{Packet, Side},
};

pub(crate) enum Verdict {
    Pass,
    Drop,
    /// Delayed by this much more than the link does.
    Delay(Duration),
    /// Dropped, and the sender receives this packet one round trip later, as if from the far end.
    Answer(Vec<u8>),
}

/// Drops the first `count` matching packets of that side.
pub(crate) fn drop_first(
    count: usize,
    from: Side,
    matches: impl Fn(&Packet) -> bool + Send + 'static,
) -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    let mut left = count;
    move |packet| {
        if left > 0 && packet.from == from && matches(packet) {
            left -= 1;
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }
}

/// Drops every matching packet.
pub(crate) fn drop_all(
    matches: impl Fn(&Packet) -> bool + Send + 'static,
) -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    move |packet| if matches(packet) { Verdict::Drop } else { Verdict::Pass }
}

/// Drops everything.
pub(crate) fn blackhole() -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    drop_all(|_| true)
}

/// A router at the far end answers a SYN with ICMP "host unreachable".
pub(crate) fn host_unreachable() -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    |packet| if packet.is_syn() { Verdict::Answer(forge::host_unreachable(packet)) } else { Verdict::Pass }
}

/// The far host is gone: the last router answers what this side sends with ICMP "host unreachable".
pub(crate) fn vanished(from: Side) -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    move |packet| {
        if packet.from == from { Verdict::Answer(forge::host_unreachable(packet)) } else { Verdict::Drop }
    }
}

/// The far end answers matching packets with a RST, as a host does that does not have the connection.
pub(crate) fn reset(
    from: Side,
    matches: impl Fn(&Packet) -> bool + Send + 'static,
) -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    move |packet| {
        if packet.from == from && matches(packet) {
            Verdict::Answer(forge::reset(packet))
        } else {
            Verdict::Pass
        }
    }
}
