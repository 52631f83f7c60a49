//! What the fuzz targets (fuzz/) call beside the public parts of this crate. Always compiled, so that it is
//! checked with the rest; nothing of the program calls it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    cmd::{daemon::preexisting, explain},
    config::{self, Config},
    exporter::{
        http::{self, Pages},
        metrics::Census,
    },
    host,
    tls::{
        discover::{ld_cache, maps, watch},
        library::inspect::{self, Inspection},
    },
};

/// Inspects a file with these bytes.
#[must_use]
pub fn inspect_bytes(file: &[u8]) -> Option<Inspection> {
    inspect::inspect(file)
}

/// Inspects it in pieces that hold this many entries of each table.
#[must_use]
pub fn inspect_in_pieces(file: &[u8], entries: usize) -> Option<Inspection> {
    inspect::inspect_in_pieces(file, entries)
}

/// The names of the functions that are looked for in a file.
#[must_use]
pub fn symbols() -> Vec<&'static str> {
    inspect::symbols()
}

/// The paths in an `ld.so.cache`.
#[must_use]
pub fn ld_cache(cache: &[u8]) -> Vec<PathBuf> {
    ld_cache::paths(cache)
}

/// The path of the executable mapping in a line of `/proc/PID/maps`. Returns `None` if it is not one.
#[must_use]
pub fn maps_line(line: &[u8]) -> Option<PathBuf> {
    maps::parse(line).map(|line| line.path)
}

/// Where file systems of this type are mounted according to a `mountinfo`.
#[must_use]
pub fn mounts(mountinfo: &str, kind: &str) -> Vec<PathBuf> {
    host::mounts(mountinfo, kind).collect()
}

/// The connections in a `/proc/net/tcp`.
#[must_use]
pub fn connections(table: &str) -> i64 {
    let mut census = Census::default();
    preexisting::connections(table, &mut census);
    census.opening + census.established + census.closing
}

/// The numbers in a list of CPUs, at most this many.
#[must_use]
pub fn cpus(list: &str, most: usize) -> Vec<usize> {
    watch::cpus(list).take(most).collect()
}

/// The configuration of a daemon with this file.
///
/// # Errors
/// When it is not valid.
pub fn config(text: &str, path: &Path) -> anyhow::Result<Config> {
    config::from_file(text, path)
}

/// What `handshake explain` draws from these bytes, and its complaints about lines that are not records.
#[must_use]
pub fn explain(records: &[u8]) -> (String, Vec<String>) {
    explain::to_text(records)
}

/// Serves one connection, until it ends.
pub async fn http<P: Pages>(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, pages: Arc<P>) {
    // Anything but HTTP ends with an error, as it should.
    drop(http::converse(stream, pages).await);
}
