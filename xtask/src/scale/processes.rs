//! Very many processes, each of which maps very many files.

use std::{
    fs::{self, File},
    path::Path,
    sync::atomic::AtomicBool,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap},
    process::{Signal, set_parent_process_death_signal},
};

use super::{Daemon, Table, holder::Holder, ms};
use crate::process::step;

/// Bytes that are mapped of each file.
const MAPPED: usize = 4096;
/// Where the libraries of a Debian system are; others have them in the second.
const FOLDERS: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

pub(super) fn measure(binary: &Path, count: u32, libraries: u32, interrupted: &AtomicBool) -> Result<Table> {
    let folder =
        tempfile::Builder::new().prefix("handshake-scale-").tempdir().context("is the disk full?")?;
    copy_libraries(folder.path(), libraries)?;
    let mut table = Table::default();
    table.row("processes", count.to_string());
    table.row("files mapped by each", libraries.to_string());
    step(format!("starting {count} processes that map {libraries} files each"));
    let holder = Holder::start(&[
        "processes".as_ref(),
        folder.path().as_os_str(),
        count.to_string().as_ref(),
        libraries.to_string().as_ref(),
    ])?;
    let daemon = Daemon::start(binary, &[])?;
    table.row("ready after", ms(daemon.ready));
    table.row("settled after another", ms(daemon.settle(Duration::from_mins(2), interrupted)?));
    let usage = daemon.usage()?;
    table.row("CPU time so far", format!("{:.2} s", usage.cpu_seconds));
    let scrape = daemon.scrape()?;
    table.usage("then", &usage, &scrape);
    table
        .row("files covered", format!("{:.0}", scrape.sum("handshake_tls_libraries", &["covered=\"true\""])));
    table.row("CPU time a second, idle", format!("{:.1} ms", daemon.idle_cost(interrupted)?));
    table.row("stop", ms(daemon.stop()?));
    drop(holder);
    Ok(table)
}

/// Fills the folder with copies of this host's libraries, libssl first.
fn copy_libraries(folder: &Path, count: u32) -> Result<()> {
    let mut files: Vec<_> = FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().contains(".so") && path.is_file())
        .collect();
    files.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with("libssl.so"), name)
    });
    ensure!(files.len() >= count as usize, "this host has only {} libraries to map", files.len());
    for (number, file) in files.iter().take(count as usize).enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = folder.join(format!("{number:03}-{name}"));
        fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
        // libssl is recognized by its name.
        if name.starts_with("libssl.so") {
            fs::rename(&to, folder.join(name))?;
        }
    }
    Ok(())
}

/// Maps the files and forks; all children map them, too, and end with this process.
pub(super) fn hold(folder: &Path, count: u32, libraries: u32) -> Result<()> {
    let mut mapped = 0;
    for entry in fs::read_dir(folder).context("cannot list the files")?.flatten() {
        let file = File::open(entry.path())?;
        // SAFETY: a new private mapping, which nothing reads.
        unsafe {
            mmap(std::ptr::null_mut(), MAPPED, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, &file, 0)
        }
        .with_context(|| format!("cannot map {}", entry.path().display()))?;
        mapped += 1;
    }
    ensure!(mapped == libraries, "{mapped} files instead of {libraries}");
    for _ in 0..count {
        // SAFETY: this process has one thread, and its children make system calls only.
        match unsafe { libc::fork() } {
            -1 => bail!("cannot fork: {}", std::io::Error::last_os_error()),
            0 => {
                set_parent_process_death_signal(Some(Signal::KILL)).ok();
                loop {
                    // SAFETY: waits for a signal; nothing else.
                    unsafe { libc::pause() };
                }
            }
            _ => {}
        }
    }
    super::holder::ready()
}
