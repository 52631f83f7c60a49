//! What both ends of a scenario are configured to do, whichever programs they are.

use super::certificate::Certificate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Tls12,
    Tls13,
}

impl Version {
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the programs")]
pub(crate) struct Settings {
    pub(crate) version: Version,
    /// The server accepts only P-384, for which no client here sends a key share: a `HelloRetryRequest`.
    pub(crate) retry: bool,
    /// Otherwise sessions are resumed by id (RFC 5246 §7.3).
    pub(crate) tickets: bool,
    pub(crate) early_data: bool,
    pub(crate) fast_open: bool,
    /// The client trusts the server's certificate.
    pub(crate) trusted: bool,
}

impl Settings {
    pub(crate) const TLS12: Self = Self {
        version: Version::Tls12,
        retry: false,
        tickets: true,
        early_data: false,
        fast_open: false,
        trusted: true,
    };
    pub(crate) const TLS13: Self = Self { version: Version::Tls13, ..Self::TLS12 };

    /// As arguments of the tests' own programs.
    pub(crate) fn arguments(self) -> Vec<String> {
        let certificate = Certificate::shared();
        let mut arguments = vec![
            format!("version={}", self.version.number()),
            format!("certificate={}", certificate.chain.display()),
            format!("key={}", certificate.key.display()),
            format!("store={}", certificate.store.display()),
        ];
        if self.trusted {
            arguments.push(format!("trust={}", certificate.chain.display()));
        }
        for (is_set, argument) in [
            (self.retry, "groups=P-384"),
            (!self.tickets, "tickets=no"),
            (self.early_data, "early_data=yes"),
            (self.fast_open, "fast_open=yes"),
        ] {
            if is_set {
                arguments.push(argument.into());
            }
        }
        arguments
    }
}
