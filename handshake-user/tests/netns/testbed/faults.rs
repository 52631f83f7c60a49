//! What the link does to packets on purpose.

use std::time::Duration;

use super::{
    forge,
    packet::{Packet, Side},
};

pub(crate) enum Verdict {
    Pass,
    Drop,
    /// Takes that much longer than the link.
    Delay(Duration),
    /// Lost, and the sender gets this packet one round trip later, as if from the far end.
    Answer(Vec<u8>),
}

/// Drops the first `count` packets of that side that match.
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

/// Drops every packet that matches.
pub(crate) fn drop_all(
    matches: impl Fn(&Packet) -> bool + Send + 'static,
) -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    move |packet| if matches(packet) { Verdict::Drop } else { Verdict::Pass }
}

/// Nothing passes from now on.
pub(crate) fn blackhole() -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    drop_all(|_| true)
}

/// A router at the far end says that there is no such host.
pub(crate) fn host_unreachable() -> impl FnMut(&Packet) -> Verdict + Send + 'static {
    |packet| if packet.is_syn() { Verdict::Answer(forge::host_unreachable(packet)) } else { Verdict::Pass }
}

/// The far end answers what matches by a reset, as a host does that has forgotten the connection.
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
