//! Round trips that a handshake takes, counted from what the protocol demands, never from times.

use handshake_common::{Role, TlsClass, TlsVersion};

/// How a handshake went, as far as it decides its round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The version.
    pub version: TlsVersion,
    /// The class.
    pub class: TlsClass,
    /// There was a HelloRetryRequest, whatever the class.
    pub hello_retry: bool,
}

impl Way {
    /// From the ClientHello to the end of the handshake, as this end sees it.
    #[must_use]
    pub const fn round_trips(self, role: Role) -> u8 {
        match (self.version, self.class, role) {
            (TlsVersion::Tls13, ..) => 1 + self.hello_retry as u8,
            (_, TlsClass::Resumed, _) | (_, _, Role::Server) => 1,
            _ => 2,
        }
    }

    /// From the SYN to the moment from which the client may send application data, over plain TCP. With the whole
    /// ClientHello in the SYN (RFC 7413) it is one less.
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
    use super::*;

    /// Every row of the table in MEASUREMENTS §2: TLS on a client, on a server, and the whole setup.
    #[test]
    fn the_table() {
        use TlsClass::{EarlyDataAccepted, EarlyDataRejected, FalseStart, Full, HelloRetry, Resumed};
        use TlsVersion::{Tls12, Tls13};
        for (version, class, hello_retry, client, server, setup) in [
            (Tls12, Full, false, 2, 1, 3),
            (Tls12, Resumed, false, 1, 1, 2),
            (Tls12, FalseStart, false, 2, 1, 2),
            (Tls13, Full, false, 1, 1, 2),
            (Tls13, HelloRetry, true, 2, 2, 3),
            (Tls13, Resumed, false, 1, 1, 2),
            (Tls13, EarlyDataAccepted, false, 1, 1, 1),
            (Tls13, EarlyDataRejected, false, 1, 1, 2),
            (Tls13, EarlyDataRejected, true, 2, 2, 3),
        ] {
            let way = Way { version, class, hello_retry };
            let found =
                (way.round_trips(Role::Client), way.round_trips(Role::Server), way.setup_round_trips());
            assert_eq!(found, (client, server, setup), "{way:?}");
        }
    }
}
