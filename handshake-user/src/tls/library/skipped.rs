//! Why files that may hold a TLS library are not probed, counted by reason.

use crate::tls::{library::inspect::InspectError, reader::ReadError};

/// Why a file is not inspected, or not probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It exceeds the limits of an inspection, or its tables do.
    TooLarge,
    /// It was written to while it was read.
    Changed,
    /// Reading it took too long, or has not ended.
    Timeout,
    /// It cannot be read.
    Unreadable,
    /// Its probes would take file descriptors that are reserved for serving.
    Descriptors,
    /// The files of its owner, or those of all users but root, have too many probes.
    ProbeLimit,
    /// Too many files of TLS libraries are in use.
    TableFull,
    /// Its owner has too many files in the queue.
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

    /// The value of the metric's label.
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

    /// A description for the log.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::TooLarge => "the file is too large, or its tables are",
            Self::Changed => "it changes while it is read",
            Self::Timeout => "reading it takes too long; does its file system answer?",
            Self::Unreadable => "it cannot be read",
            Self::Descriptors => {
                "too few file descriptors are left; raise the hard limit (LimitNOFILE=, ulimit -Hn)"
            }
            Self::ProbeLimit => {
                "the files of its owner, or those of all users but root, have as many probes as can be detached in time"
            }
            Self::TableFull => "too many files of TLS libraries are in use",
            Self::QueueFull => "its owner has too many files waiting for inspection",
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
    /// Counts one more file.
    pub const fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Each reason, and how often it applied.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason, self.0[reason as usize]))
    }
}
