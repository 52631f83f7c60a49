//! Files that may hold a TLS library and are not probed, by reason.

use crate::tls::{library::inspect::InspectError, reader::ReadError};

/// Why a file was not looked into, or not probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It, or what its tables say of it, is beyond the limits of an inspection.
    TooLarge,
    /// It was written to while it was read.
    Changed,
    /// Reading it took too long, or never came to an end.
    Timeout,
    /// The system refused to read it.
    Unreadable,
    /// Its probes would take the descriptors that serving needs.
    Descriptors,
    /// Its owner's files, or those of all users but root, have as many probes as they may.
    ProbeLimit,
    /// There are too many files of TLS libraries.
    TableFull,
    /// Its owner has too many files waiting.
    QueueFull,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TooLarge,
        Self::Changed,
        Self::Timeout,
        Self::Unreadable,
        Self::Descriptors,
        Self::ProbeLimit,
        Self::TableFull,
        Self::QueueFull,
    ];

    /// As the metric names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Changed => "changed",
            Self::Timeout => "timeout",
            Self::Unreadable => "unreadable",
            Self::Descriptors => "descriptors",
            Self::ProbeLimit => "probe_limit",
            Self::TableFull => "table_full",
            Self::QueueFull => "queue_full",
        }
    }

    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::TooLarge => "the file, or what its tables say of it, is too large",
            Self::Changed => "it changes while it is read",
            Self::Timeout => "reading it takes too long; does its file system answer?",
            Self::Unreadable => "it cannot be read",
            Self::Descriptors => {
                "too few file descriptors are left; raise the hard limit (LimitNOFILE=, ulimit -Hn)"
            }
            Self::ProbeLimit => {
                "its owner's files, or those of all users but root, have as many probes as can be let go of in time"
            }
            Self::TableFull => "too many files of TLS libraries are in use",
            Self::QueueFull => "its owner has too many files waiting to be looked into",
        }
    }
}

impl From<InspectError> for Reason {
    fn from(refusal: InspectError) -> Self {
        match refusal {
            InspectError::TooLarge => Self::TooLarge,
            InspectError::Timeout => Self::Timeout,
            InspectError::Changed => Self::Changed,
            InspectError::Unreadable => Self::Unreadable,
        }
    }
}

impl From<ReadError> for Reason {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Timeout => Self::Timeout,
            ReadError::Failed => Self::Unreadable,
        }
    }
}

/// How often each reason applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped([u64; Reason::ALL.len()]);

impl Skipped {
    /// Once more.
    pub const fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Each reason, and how often it applied.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason, self.0[reason as usize]))
    }
}
