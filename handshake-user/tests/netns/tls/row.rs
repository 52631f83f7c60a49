//! The rows of the table of TLS handshakes: the kinds of handshake, and the round trips that each takes.

/// One kind of handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Tls12Full,
    Tls12Resumed,
    Tls12FalseStart,
    Tls13Full,
    Tls13Retry,
    Tls13Resumed,
    EarlyDataAccepted,
    EarlyDataRejected,
    EarlyDataRejectedByRetry,
}

impl Row {
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Tls12Full | Self::Tls12Resumed | Self::Tls12FalseStart => "1.2",
            _ => "1.3",
        }
    }

    /// The published value of `tls.class`.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Tls12Full | Self::Tls13Full => "full",
            Self::Tls12Resumed | Self::Tls13Resumed => "resumed",
            Self::Tls12FalseStart => "false_start",
            Self::Tls13Retry => "hello_retry",
            Self::EarlyDataAccepted => "early_data_accepted",
            Self::EarlyDataRejected | Self::EarlyDataRejectedByRetry => "early_data_rejected",
        }
    }

    pub(crate) fn offers_early_data(self) -> bool {
        matches!(self, Self::EarlyDataAccepted | Self::EarlyDataRejected | Self::EarlyDataRejectedByRetry)
    }

    /// From the `ClientHello` to the end of the handshake on the client.
    pub(crate) fn client_round_trips(self) -> u32 {
        match self {
            Self::Tls12Full | Self::Tls12FalseStart | Self::Tls13Retry | Self::EarlyDataRejectedByRetry => 2,
            _ => 1,
        }
    }

    /// The same on the server.
    pub(crate) fn server_round_trips(self) -> u32 {
        match self {
            Self::Tls13Retry | Self::EarlyDataRejectedByRetry => 2,
            _ => 1,
        }
    }

    /// From the SYN until the client may send application data; one less where the `ClientHello` is in the
    /// SYN.
    pub(crate) fn setup_round_trips(self, hello_in_syn: bool) -> u32 {
        let plain = match self {
            Self::Tls12Full | Self::Tls13Retry | Self::EarlyDataRejectedByRetry => 3,
            Self::EarlyDataAccepted => 1,
            _ => 2,
        };
        plain - u32::from(hello_in_syn)
    }
}
