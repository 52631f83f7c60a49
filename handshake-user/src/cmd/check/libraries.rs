//! The TLS libraries in use, and whether their handshakes are seen: probed, and let go at once.

use super::report::TlsLibrary;
use crate::{
    kernel::probe::{self, Kernel, Settings, plan::Attach},
    tls::library::libraries::File,
    untrusted::Untrusted,
};

/// Every file of a library; otherwise why they cannot be told.
pub fn look(kernel: &Kernel, way: Attach) -> Result<(Vec<TlsLibrary>, Vec<String>), String> {
    let settings = Settings {
        attach: Some(way),
        ring_bytes: super::probes::RING_BYTES,
        max_connections: 1,
        tls_libraries: true,
        tls_wire: probe::TlsWire::Off,
    };
    let (probes, _ring) = probe::Probes::attach(kernel, &settings).map_err(|error| error.to_string())?;
    let libraries =
        probes.libraries.as_ref().ok_or("they were not asked for")?.as_ref().map_err(Clone::clone)?;
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
