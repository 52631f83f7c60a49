//! The TLS libraries in use, and whether their handshakes are seen: probed, and detached at once.

use anyhow::{Context as _, Result, anyhow};
use handshake_common::histograms::Bounds;

use super::report::TlsLibrary;
use crate::{
    kernel::probe::Kernel,
    settings::{AttachMode, Switch, TlsWire},
    tls::library::libraries::File,
    tracer::Tracer,
    untrusted::Untrusted,
};

/// Every file of a library, and what kept others from being found.
///
/// # Errors
/// Why they are unknown.
pub(super) fn look(kernel: &Kernel, mode: AttachMode) -> Result<(Vec<TlsLibrary>, Vec<String>)> {
    let settings = super::probes::settings(mode, TlsWire::Off, Switch::On);
    let (tracer, _ring) = Tracer::attach(kernel, &settings, &Bounds::NONE)?;
    let libraries =
        tracer.libraries().context("they were not asked for")?.map_err(|error| anyhow!("{error}"))?;
    let files = libraries.files().into_iter().map(|(file, processes)| row(file, processes)).collect();
    Ok((files, libraries.shortfalls().to_vec()))
}

fn row(file: &File, processes: usize) -> TlsLibrary {
    TlsLibrary {
        path: file.shown.as_path().into(),
        library: file.inspection.library,
        version: file.inspection.description.as_deref().map(Untrusted::from),
        covered: file.is_covered(),
        processes,
        gaps: file.gaps(),
    }
}
