//! The true durations, by the times on the link. Where packets were lost and retransmitted, they run from the
//! first one sent and to the first one received.

use std::time::Duration;

use crate::testbed::{
    capture::Capture,
    packet::{Packet, Side},
};

/// Connection establishment of the client: its first SYN to the SYN-ACK.
#[track_caller]
pub(crate) fn client_open(flow: &Capture) -> Duration {
    flow.got(Side::Client, Packet::is_syn_ack) - flow.sent(Side::Client, Packet::is_syn)
}

/// Connection establishment of the server: its first SYN-ACK to the segment that completes the handshake.
#[track_caller]
pub(crate) fn server_open(flow: &Capture) -> Duration {
    server_open_by(flow, |_| true)
}

/// The same where the server ignores segments that do not match.
#[track_caller]
pub(crate) fn server_open_by(flow: &Capture, completes: impl Fn(&Packet) -> bool) -> Duration {
    let answer = flow.from(Side::Server, Packet::is_syn_ack);
    let Some(answer) = answer.first() else { panic!("the server never answered") };
    let end = answer.packet.end();
    let is_last = |packet: &Packet| !packet.is_syn() && packet.acknowledges(end) && completes(packet);
    flow.got(Side::Server, is_last) - answer.arrived
}

/// The FIN of that side to its ACK.
#[track_caller]
pub(crate) fn ack_wait(flow: &Capture, side: Side) -> Duration {
    let (sent, acknowledged) = flow.fin_acknowledged(side);
    acknowledged - sent
}

/// For the end that closes first: its FIN to the peer's.
#[track_caller]
pub(crate) fn active_close(flow: &Capture, side: Side) -> Duration {
    flow.got(side, Packet::is_fin) - flow.sent(side, Packet::is_fin)
}

/// For the end that closes first: the ACK of its FIN to the peer's FIN.
#[track_caller]
pub(crate) fn active_app_wait(flow: &Capture, side: Side) -> Duration {
    flow.got(side, Packet::is_fin).saturating_duration_since(flow.fin_acknowledged(side).1)
}

/// For the end that closes second: the peer's FIN to the ACK of its own.
#[track_caller]
pub(crate) fn passive_close(flow: &Capture, side: Side) -> Duration {
    flow.fin_acknowledged(side).1 - flow.got(side, Packet::is_fin)
}

/// For the end that closes second: the peer's FIN to its own.
#[track_caller]
pub(crate) fn passive_app_wait(flow: &Capture, side: Side) -> Duration {
    flow.sent(side, Packet::is_fin) - flow.got(side, Packet::is_fin)
}
