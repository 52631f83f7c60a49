//! What leaves the host in records, on the screen and as labels, where that is to be less than is known.
//!
//! A [`Gate`] stands between those who make events and everybody who shows, counts or writes them: filters
//! are asked first, of the true values, and then the values are redacted.

#[cfg(test)]
mod tests;

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{
    bounded,
    event::{Address, ConnectionEvent, Endpoint, Process},
    filter::Filter,
    redaction::{Field, Redaction, Way},
    settings::{Label, RedactOptions, RedactSettings},
    untrusted::Untrusted,
};

/// Prefix lengths of the networks that addresses are cut to: IPv4, IPv6.
const PREFIX: (u8, u8) = (24, 48);
/// Shortest key, bytes: no shorter than what could be guessed.
const SHORTEST_KEY: usize = 16;

impl RedactSettings {
    /// Refuses labels of which nothing would be left.
    ///
    /// # Errors
    /// Which one, and what to do.
    pub fn leave(&self, labels: &[Label]) -> Result<()> {
        for &label in labels {
            let field = source(label);
            let way = field.and_then(|field| self.redact.of(field));
            let (Some(field), Some(way)) = (field, way) else { continue };
            let is_lost = way == Way::Drop || (label, way) == (Label::RemoteNet, Way::Hash);
            let instead = if label == Label::RemoteNet { "prefix" } else { "hash" };
            let (label, field, way) = (label.as_str(), field.as_str(), way.as_str());
            ensure!(
                !is_lost,
                "redact: {field}={way} leaves nothing for the label {label}: use {field}={instead}, or leave the label out"
            );
        }
        Ok(())
    }
}

/// What the values of a label come from.
const fn source(label: Label) -> Option<Field> {
    match label {
        Label::Process => Some(Field::Comm),
        Label::LocalPort => None,
        Label::RemoteNet => Some(Field::Addr),
        Label::Cgroup | Label::Unit | Label::ContainerId | Label::PodUid => Some(Field::Cgroup),
        Label::Sni => Some(Field::Sni),
    }
}

/// Redacts events. The default leaves them as they are.
#[derive(Clone, Default)]
pub struct Redactor {
    redaction: Redaction,
    /// There if anything is hashed.
    key: Option<Hmac<Sha256>>,
}

/// Without the key.
impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redactor").field(&self.redaction).finish()
    }
}

impl Redactor {
    /// Reads the key, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, is too short, is missing or has no use.
    pub fn new(settings: &RedactSettings) -> Result<Self> {
        let redaction = settings.redact;
        let hashes = redaction.0.contains(&Some(Way::Hash));
        let Some(path) = settings.redact_key.path() else {
            ensure!(
                !hashes,
                "redact: a hash needs a key: make one with `openssl rand -hex 32 > FILE`, and name it with --redact-key or \
                 `redact_key`"
            );
            return Ok(Self { redaction, key: None });
        };
        let name = Untrusted::from(path);
        ensure!(hashes, "redact_key has no effect: `redact` says that nothing is hashed");
        let key = bounded::read(path, bounded::SMALL);
        let key = key.with_context(|| format!("cannot read the redact_key {name}"))?;
        let key = key.trim_ascii_end();
        ensure!(
            key.len() >= SHORTEST_KEY,
            "redact_key: {name} has less than {SHORTEST_KEY} bytes; make one with `openssl rand -hex 32`"
        );
        Ok(Self { redaction, key: Some(Hmac::new_from_slice(key)?) })
    }

    /// The event, with what is to be redacted.
    #[must_use]
    pub fn event(&self, mut event: ConnectionEvent) -> ConnectionEvent {
        if self.redaction == Redaction::default() {
            return event;
        }
        for Endpoint { addr, .. } in [&mut event.local, &mut event.remote].into_iter().flatten() {
            *addr = addr.and_then(|addr| self.address(addr));
        }
        if let Some(tls) = &mut event.tls {
            self.name(Field::Sni, "sni", &mut tls.sni);
        }
        if let Some(Process { comm, cgroup, names, .. }) = &mut event.process {
            self.name(Field::Comm, "comm", comm);
            self.name(Field::Cgroup, "cgroup", cgroup);
            self.name(Field::Cgroup, "unit", &mut names.unit);
            self.name(Field::Cgroup, "container_id", &mut names.container_id);
            self.name(Field::Cgroup, "pod_uid", &mut names.pod_uid);
        }
        self.name(Field::Host, "host", &mut event.host);
        self.name(Field::Host, "boot_id", &mut event.boot_id);
        event
    }

    /// The name of the host, as events have it.
    #[must_use]
    pub fn host(&self, mut host: Option<Untrusted>) -> Option<Untrusted> {
        self.name(Field::Host, "host", &mut host);
        host
    }

    fn address(&self, addr: Address) -> Option<Address> {
        match (self.redaction.of(Field::Addr), addr) {
            (Some(Way::Drop), _) => None,
            (Some(Way::Prefix), _) => Some(addr.network(PREFIX).map_or(addr, Address::Network)),
            (Some(Way::Hash), _) => {
                self.hash("addr", &addr.to_string()).map(|hash| Address::Hash(addr.family(), hash))
            }
            (None, _) => Some(addr),
        }
    }

    /// A value of the field, which records call `key`.
    fn name(&self, field: Field, key: &str, value: &mut Option<Untrusted>) {
        match (self.redaction.of(field), &value) {
            (Some(Way::Drop), _) => *value = None,
            (Some(Way::Hash | Way::Prefix), Some(name)) => {
                // The root of all cgroups is nobody's name.
                if (field, name.raw()) != (Field::Cgroup, "/") {
                    // Server names are equal whatever the case (RFC 6066 §3).
                    let lower = (field == Field::Sni).then(|| name.raw().to_ascii_lowercase());
                    let hash = self.hash(key, lower.as_deref().unwrap_or(name.raw()));
                    *value = hash.map(|hash| Untrusted::from(format!("hash-{hash:016x}")));
                }
            }
            (Some(Way::Hash | Way::Prefix), None) | (None, _) => {}
        }
    }

    /// The first 64 bits of HMAC-SHA-256 (RFC 2104) over `KEY:VALUE`: what is equal in two fields does not
    /// look so.
    fn hash(&self, key: &str, value: &str) -> Option<u64> {
        let mut hmac = self.key.clone()?;
        hmac.update(key.as_bytes());
        hmac.update(b":");
        hmac.update(value.as_bytes());
        let bytes = hmac.finalize().into_bytes();
        bytes.first_chunk().map(|first| u64::from_be_bytes(*first))
    }
}

/// Which events come through, and what of them.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    filter: Filter,
    redactor: Redactor,
}

impl Gate {
    /// For what passes the filter.
    ///
    /// # Errors
    /// Those of [`Redactor::new`].
    pub fn new(filter: Filter, options: &RedactOptions) -> Result<Self> {
        Ok(Self { filter, redactor: Redactor::new(&options.clone().settle())? })
    }

    /// From now on another filter.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// The event redacted, if it passes.
    #[must_use]
    pub fn pass(&self, event: ConnectionEvent) -> Option<ConnectionEvent> {
        self.filter.passes(&event).then(|| self.redactor.event(event))
    }

    /// The event redacted, and whether it passes.
    #[must_use]
    pub fn weigh(&self, event: ConnectionEvent) -> (ConnectionEvent, bool) {
        let passes = self.filter.passes(&event);
        (self.redactor.event(event), passes)
    }
}
