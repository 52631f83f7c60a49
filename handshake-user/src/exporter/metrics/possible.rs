//! Which classes can occur, so that they are there with zeros from the start and nothing else is. One that
//! occurs all the same is made when it does.

use handshake_common::{CloseStyle, FastOpen, Initiator, Outcome, Role};

use super::class::Codes;

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
