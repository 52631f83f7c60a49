//! The closed lists of words that records and metrics use. A value that cannot be known is `None`.

/// A word that is in none of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl core::fmt::Display for Unknown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("not one of the known words")
    }
}

impl core::error::Error for Unknown {}

/// Defines an enum whose codes start at 1, so that 0 is "unknown" in raw records and in array indices.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* #[doc = concat!("`", $word, "`")] $variant),+ }

        impl $name {
            /// Every value, in the order of its codes.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// How many array slots the codes need, with slot 0 for unknown.
            pub const SLOTS: usize = Self::ALL.len() + 1;

            /// The word that records and metric labels carry.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The raw code: 1 and up.
            #[must_use]
            #[inline(always)]
            pub const fn code(self) -> u8 {
                self as u8 + 1
            }

            /// The raw code of a value that may be unknown (0).
            #[must_use]
            #[inline(always)]
            pub const fn code_of(value: Option<Self>) -> u8 {
                match value { Some(value) => value.code(), None => 0 }
            }

            /// Reads a raw code; anything that is no code is unknown.
            #[must_use]
            #[inline(always)]
            pub const fn from_code(code: u8) -> Option<Self> {
                $(if code == Self::$variant.code() { return Some(Self::$variant); })+
                None
            }
        }

        impl core::str::FromStr for $name {
            type Err = Unknown;

            fn from_str(word: &str) -> Result<Self, Unknown> {
                $(if word == $word { return Ok(Self::$variant); })+
                Err(Unknown)
            }
        }

        #[cfg(feature = "user")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        #[cfg(feature = "user")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Word;
                impl serde::de::Visitor<'_> for Word {
                    type Value = $name;

                    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                        f.write_str(concat!("one of", $(" ", $word),+))
                    }

                    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<$name, E> {
                        word.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(word), &self))
                    }
                }
                deserializer.deserialize_str(Word)
            }
        }

        #[cfg(feature = "user")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "enum": [$($word),+] })
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(
    /// Which end of the connection this host (or this socket of it) is.
    Role { Client = "client", Server = "server" }
);

impl Role {
    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

words!(
    /// The address family on the wire: a v4-mapped IPv6 socket speaks IPv4.
    Family { Ipv4 = "ipv4", Ipv6 = "ipv6" }
);

words!(
    /// How the process of a connection is known: by what it did.
    ProcessBy {
        /// It called `connect()`.
        Connect = "connect",
        /// It listens on the socket that the connection came to.
        Listener = "listener",
        /// It called `accept()`.
        Accept = "accept",
        /// It ran the TLS handshake.
        Tls = "tls",
        /// It called `close()` or `shutdown()`.
        Close = "close",
    }
);

words!(
    /// What just ended.
    Stage { Open = "open", Close = "close", Tls = "tls", TimeWait = "time_wait" }
);

words!(
    /// What a raw record is: its first byte.
    Kind {
        /// A [`crate::Connection`].
        Open = "open",
        /// A [`crate::Connection`].
        Close = "close",
        /// A [`crate::tls::library::session::LibraryHandshake`].
        Library = "library",
        /// A [`crate::tls::wire::WireHandshake`].
        Wire = "wire",
        /// A [`crate::tls::wire::HelloFragment`].
        Hello = "hello",
        /// A [`crate::tcp::minisocket::MinisocketNews`].
        Minisocket = "minisocket",
    }
);

const _: () = assert!(
    Kind::Open.code() == Stage::Open.code()
        && Kind::Close.code() == Stage::Close.code()
        && Kind::Library.code() == Stage::Tls.code()
);

words!(
    /// How an opening ended.
    Outcome {
        Established = "established",
        Refused = "refused",
        TimedOut = "timed_out",
        Unreachable = "unreachable",
        Reset = "reset",
        Aborted = "aborted",
        NoLocalPort = "no_local_port",
    }
);

words!(
    /// What the segment that completed the three-way handshake carried.
    FinalAck { Bare = "bare", Data = "data" }
);

words!(
    /// What became of TCP Fast Open (RFC 7413) on this connection, seen from this end.
    FastOpen {
        None = "none",
        CookieRequested = "cookie_requested",
        DataAccepted = "data_accepted",
        DataRejected = "data_rejected",
    }
);

words!(
    /// Why data in the SYN was rejected: the kernel's `fastopen_client_fail`.
    FastOpenReason { DataNotAcked = "data_not_acked", SynRetransmitted = "syn_retransmitted" }
);

words!(
    /// Who began the closing: the end whose FIN or RST came first.
    Initiator { Local = "local", Remote = "remote", Both = "both" }
);

words!(
    /// How a connection closed (RFC 9293 §3.6, and the ways around it).
    CloseStyle {
        FourSegments = "four_segments",
        ThreeSegments = "three_segments",
        Simultaneous = "simultaneous",
        ResetSent = "reset_sent",
        ResetReceived = "reset_received",
        TimedOut = "timed_out",
    }
);

words!(
    /// What a hook sees happen to a time-wait minisocket.
    MinisocketStep {
        /// The peer's FIN came: FIN_WAIT2 → TIME_WAIT.
        Fin = "fin",
        /// It ends.
        End = "end",
    }
);

words!(
    /// How TIME_WAIT ended, or the wait for the peer's FIN before it.
    TimeWaitEnd {
        /// Its time was over (twice the maximum segment lifetime; Linux: 60 s).
        RanOut = "ran_out",
        /// A new connection took its ends.
        Reused = "reused",
        /// A RST came, or somebody destroyed it (`ss -K`).
        Reset = "reset",
        /// There was none: `tcp_max_tw_buckets` was reached.
        CutOff = "cut_off",
        /// The peer's FIN never came (`tcp_fin_timeout`).
        NoFin = "no_fin",
    }
);

words!(
    /// The version that was negotiated (RFC 8446 §4.2.1).
    TlsVersion { Tls10 = "1.0", Tls11 = "1.1", Tls12 = "1.2", Tls13 = "1.3" }
);

words!(
    /// Which way a TLS handshake went; decides its round trips.
    TlsClass {
        Full = "full",
        Resumed = "resumed",
        HelloRetry = "hello_retry",
        EarlyDataAccepted = "early_data_accepted",
        EarlyDataRejected = "early_data_rejected",
        FalseStart = "false_start",
    }
);

words!(
    /// How a TLS handshake ended. Abandoned: the session or its socket went away without an error.
    TlsOutcome { Completed = "completed", Failed = "failed", Abandoned = "abandoned" }
);

words!(
    /// Whose code makes the handshake.
    Library {
        OpenSsl = "openssl",
        BoringSsl = "boringssl",
        GnuTls = "gnutls",
        Go = "go",
        Nss = "nss",
        WolfSsl = "wolfssl",
        MbedTls = "mbedtls",
        S2n = "s2n",
    }
);

words!(
    /// Who saw the handshake.
    TlsSource { Library = "library", Wire = "wire", Both = "both" }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_round_trip_and_strangers_are_unknown() {
        for &style in CloseStyle::ALL {
            assert_eq!(CloseStyle::from_code(style.code()), Some(style));
        }
        assert_eq!(CloseStyle::from_code(0), None);
        assert_eq!(CloseStyle::from_code(u8::MAX), None);
        assert_eq!(Role::code_of(None), 0);
    }
}
