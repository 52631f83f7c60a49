//! The path that a handshake took, and the round trips that the protocol prescribes for it (RFC 5246 §7.3,
//! RFC 8446 §2). They are derived from protocol facts, never from times.

use handshake_common::{Role, TlsClass, TlsVersion};

/// What decides the round trips of a completed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakePath {
    version: TlsVersion,
    class: TlsClass,
    hello_retry: bool,
}

impl HandshakePath {
    /// Returns `None` if the version has no such class, or if it is unknown whether there was a
    /// HelloRetryRequest and the class does not imply it.
    #[must_use]
    pub fn new(version: TlsVersion, class: TlsClass, hello_retry: Option<bool>) -> Option<Self> {
        let hello_retry = if version == TlsVersion::Tls13 {
            match class {
                TlsClass::Full | TlsClass::EarlyDataAccepted => false,
                TlsClass::HelloRetry => true,
                TlsClass::Resumed | TlsClass::EarlyDataRejected => hello_retry?,
                TlsClass::FalseStart => return None,
            }
        } else {
            match class {
                TlsClass::Full | TlsClass::Resumed | TlsClass::FalseStart => false,
                TlsClass::HelloRetry | TlsClass::EarlyDataAccepted | TlsClass::EarlyDataRejected => {
                    return None;
                }
            }
        };
        Some(Self { version, class, hello_retry })
    }

    /// Round trips from the ClientHello to the end of the handshake, as this end sees it.
    #[must_use]
    pub const fn round_trips(self, role: Role) -> u8 {
        match (self.version, self.class, role) {
            (TlsVersion::Tls13, ..) => 1 + self.hello_retry as u8,
            (_, TlsClass::Resumed, _) | (_, _, Role::Server) => 1,
            _ => 2,
        }
    }

    /// Round trips from the SYN until the client may send application data, over TCP without Fast Open. With
    /// the whole ClientHello in the SYN (RFC 7413), there is one less.
    #[must_use]
    pub const fn setup_round_trips(self) -> u8 {
        match (self.version, self.class) {
            (TlsVersion::Tls13, TlsClass::EarlyDataAccepted) => 1,
            (TlsVersion::Tls13, _) => 2 + self.hello_retry as u8,
            (_, TlsClass::Resumed | TlsClass::FalseStart) => 2,
            _ => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use TlsClass::{EarlyDataAccepted, EarlyDataRejected, FalseStart, Full, HelloRetry, Resumed};
    use TlsVersion::{Tls12, Tls13};

    use super::*;

    /// The table of docs/metrics.md: TLS on a client, on a server, and the whole setup.
    #[test]
    fn round_trips_by_version_and_class() {
        for (version, class, hello_retry, client, server, setup) in [
            (Tls12, Full, None, 2, 1, 3),
            (Tls12, Resumed, None, 1, 1, 2),
            (Tls12, FalseStart, None, 2, 1, 2),
            (Tls13, Full, None, 1, 1, 2),
            (Tls13, HelloRetry, None, 2, 2, 3),
            (Tls13, Resumed, Some(false), 1, 1, 2),
            (Tls13, Resumed, Some(true), 2, 2, 3),
            (Tls13, EarlyDataAccepted, None, 1, 1, 1),
            (Tls13, EarlyDataRejected, Some(false), 1, 1, 2),
            (Tls13, EarlyDataRejected, Some(true), 2, 2, 3),
        ] {
            let path = HandshakePath::new(version, class, hello_retry).unwrap();
            let found =
                (path.round_trips(Role::Client), path.round_trips(Role::Server), path.setup_round_trips());
            assert_eq!(found, (client, server, setup), "{path:?}");
        }
    }

    #[test]
    fn unknown_retry_or_class_of_another_version_yields_none() {
        for (version, class, hello_retry) in [
            (Tls13, Resumed, None),
            (Tls13, EarlyDataRejected, None),
            (Tls13, FalseStart, Some(false)),
            (Tls12, HelloRetry, Some(true)),
            (Tls12, EarlyDataAccepted, Some(false)),
        ] {
            assert_eq!(HandshakePath::new(version, class, hello_retry), None, "{version:?} {class:?}");
        }
    }
}
