//! The setting that says what is redacted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What can be redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The addresses of both ends.
    Addr,
    /// The server name.
    Sni,
    /// The name of the process.
    Comm,
    /// The path of the process's cgroup, and the unit, container and pod that it names.
    Cgroup,
    /// The name of the host, and the number of its boot, by which it could be told.
    Host,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 5] = [Self::Addr, Self::Sni, Self::Comm, Self::Cgroup, Self::Host];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Addr => "addr",
            Self::Sni => "sni",
            Self::Comm => "comm",
            Self::Cgroup => "cgroup",
            Self::Host => "host",
        }
    }
}

/// How to redact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A keyed hash takes its place: the same for the same value.
    Hash,
    /// Of an address its network stays.
    Prefix,
    /// It is left out, as if it were unknown.
    Drop,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Hash, Self::Prefix, Self::Drop];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Prefix => "prefix",
            Self::Drop => "drop",
        }
    }
}

/// What to redact, and how: `addr=prefix,sni=hash`, or `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Redaction(pub(crate) [Option<Way>; Field::ALL.len()]);

impl Redaction {
    /// How this field is.
    #[must_use]
    pub const fn of(self, field: Field) -> Option<Way> {
        self.0[field as usize]
    }
}

/// Why a text says nothing of what to redact.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedactionError {
    /// Not a field and a way.
    #[error("`{0}` is not FIELD=WAY, such as addr=prefix, sni=hash or comm=drop")]
    NoPair(String),
    /// A field that does not exist.
    #[error("`{0}` is none of addr, sni, comm, cgroup, host")]
    NoField(String),
    /// A way that does not exist.
    #[error("`{0}` is none of hash, prefix, drop")]
    NoWay(String),
    /// A field twice.
    #[error("{0} is redacted in one way only")]
    Twice(&'static str),
    /// The prefix of a name.
    #[error("only addresses have a prefix: {0}=hash or {0}=drop")]
    NoPrefix(&'static str),
}

impl FromStr for Redaction {
    type Err = RedactionError;

    fn from_str(text: &str) -> Result<Self, RedactionError> {
        let mut redaction = Self::default();
        if matches!(text.trim(), "" | "none") {
            return Ok(redaction);
        }
        for pair in text.split(',').map(str::trim) {
            let (field, way) = pair.split_once('=').ok_or_else(|| RedactionError::NoPair(pair.to_owned()))?;
            let known = Field::ALL.into_iter().find(|known| known.as_str() == field);
            let field = known.ok_or_else(|| RedactionError::NoField(field.to_owned()))?;
            let known = Way::ALL.into_iter().find(|known| known.as_str() == way);
            let way = known.ok_or_else(|| RedactionError::NoWay(way.to_owned()))?;
            if way == Way::Prefix && field != Field::Addr {
                return Err(RedactionError::NoPrefix(field.as_str()));
            }
            if redaction.0[field as usize].replace(way).is_some() {
                return Err(RedactionError::Twice(field.as_str()));
            }
        }
        Ok(redaction)
    }
}

impl TryFrom<String> for Redaction {
    type Error = RedactionError;

    fn try_from(text: String) -> Result<Self, RedactionError> {
        text.parse()
    }
}

impl From<Redaction> for String {
    fn from(redaction: Redaction) -> Self {
        redaction.to_string()
    }
}

impl fmt::Display for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = Field::ALL.into_iter().zip(self.0);
        let pairs: Vec<_> =
            pairs.filter_map(|(field, way)| Some(format!("{}={}", field.as_str(), way?.as_str()))).collect();
        f.write_str(if pairs.is_empty() { "none" } else { "" })?;
        f.write_str(&pairs.join(","))
    }
}
