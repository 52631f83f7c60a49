//! Which classes can occur, so that they are there with zeros from the start and nothing else is. One that
//! occurs all the same is made when it does.

use handshake_common::{CloseStyle, Family, FastOpen, FinalAck, Initiator, Outcome, Role};

use super::class::Codes;

/// Only sockets of the two families are followed; `unknown` is kept for counters alone.
fn family(code: u8) -> bool {
    Family::from_code(code).is_some()
}

/// Openings that were established, with a duration.
pub(super) fn open_duration([role, ip, fast_open, final_ack]: Codes<4>) -> bool {
    use FastOpen::{CookieRequested, DataAccepted, DataRejected, None as NoFastOpen};
    let classes = match (Role::from_code(role), FastOpen::from_code(fast_open)) {
        (Some(Role::Client), Some(NoFastOpen | CookieRequested | DataAccepted))
        | (Some(Role::Server), Some(NoFastOpen | DataAccepted)) => FinalAck::from_code(final_ack).is_some(),
        // Rejected data is retransmitted with the final ACK.
        (Some(Role::Client), Some(DataRejected)) => final_ack == FinalAck::Data.code(),
        _ => false,
    };
    classes && family(ip)
}

/// Openings with a round trip.
pub(super) fn open_rtt([role, ip]: Codes<2>) -> bool {
    role != 0 && family(ip)
}

/// Opens: those from before the start are not seen, so the role is known.
pub(super) fn opens([role, _family, outcome]: Codes<3>) -> bool {
    match Role::from_code(role) {
        Some(Role::Client) => true,
        Some(Role::Server) => outcome != Outcome::NoLocalPort.code(),
        None => false,
    }
}

/// Fast Open on connections that used it. A server sees only the data that it accepted.
pub(super) fn fast_open([role, result]: Codes<2>) -> bool {
    match (Role::from_code(role), FastOpen::from_code(result)) {
        (None, _) | (_, Some(FastOpen::None)) => false,
        (Some(Role::Client), _) => true,
        (Some(Role::Server), result) => matches!(result, None | Some(FastOpen::DataAccepted)),
    }
}

/// Closings by who began them and how they went.
pub(super) fn closes([_role, initiator, style]: Codes<3>) -> bool {
    let style = CloseStyle::from_code(style);
    match Initiator::from_code(initiator) {
        Some(Initiator::Local | Initiator::Remote) => style != Some(CloseStyle::Simultaneous),
        Some(Initiator::Both) => {
            !matches!(style, None | Some(CloseStyle::FourSegments | CloseStyle::ThreeSegments))
        }
        None => style.is_none(),
    }
}

/// Closings in which both FINs were seen: no reset and no time-out among them.
pub(super) fn close_duration([role, initiator, style]: Codes<3>) -> bool {
    let orderly = matches!(
        CloseStyle::from_code(style),
        None | Some(CloseStyle::FourSegments | CloseStyle::ThreeSegments | CloseStyle::Simultaneous)
    );
    // With data between the peer's FIN and ours, the passive side does not know the style.
    let untold = style == 0 && initiator != Initiator::Remote.code();
    orderly && !untold && closes([role, initiator, style])
}

/// Whoever closes has a FIN to be acknowledged.
pub(super) fn close_ack_wait([_role, initiator]: Codes<2>) -> bool {
    initiator != 0
}

/// In a simultaneous close neither end waits for a program.
pub(super) fn close_app_wait([_role, initiator]: Codes<2>) -> bool {
    matches!(Initiator::from_code(initiator), Some(Initiator::Local | Initiator::Remote))
}
