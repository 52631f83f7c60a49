//! SIGHUP: reads the configuration anew. What can be changed without losing a count takes effect at once; the
//! rest is named, and waits for a restart.

use std::path::PathBuf;

use anyhow::Result;
use sd_notify::NotifyState;

use super::{exporter::Exporter, service::notify};
use crate::{
    config::Config,
    exporter::http::Web,
    settings::{ExporterOptions, ProbeOptions, RedactOptions},
    untrusted::say,
};

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) file: Option<PathBuf>,
    pub(super) exporter: ExporterOptions,
    pub(super) redact: RedactOptions,
    pub(super) probes: ProbeOptions,
}

impl Sources {
    /// Reads them.
    pub(super) fn read(&self) -> Result<Config> {
        let Self { file, exporter, redact, probes } = self.clone();
        Config::new(file.as_deref(), exporter, redact, probes)
    }
}

/// Reads the configuration anew, and tells the service manager, the log and the metrics what became of it.
pub(super) fn reload(sources: &Sources, exporter: &Exporter, web: &Web) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager of the reload"),
    }
    let result = sources.read().and_then(|new| {
        web.reload(new.web_config.as_deref())?;
        exporter.reconfigure(&new)
    });
    exporter.reloaded(result.is_ok());
    let said = match result {
        Ok(waiting) if waiting.is_empty() => "configuration reloaded".to_owned(),
        Ok(waiting) => format!("configuration reloaded; only a restart changes {}", waiting.join(", ")),
        Err(error) => format!("configuration not reloaded, the one in force stays: {error:#}"),
    };
    say(format_args!("handshake: {said}"));
    notify(&[NotifyState::Ready, NotifyState::Status(&said)]);
}
