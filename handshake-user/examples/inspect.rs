//! Measures what it costs to inspect files: the given files and every regular file in the given directories,
//! one after the other.
//!
//! `cargo run --release --example inspect -- /usr/bin /usr/lib/x86_64-linux-gnu`

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use handshake::tls::library::inspect::inspect_file;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut files = Vec::new();
    for argument in arguments {
        if argument.is_dir() {
            let entries = fs::read_dir(&argument).with_context(|| argument.display().to_string())?;
            files.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
        } else {
            files.push(argument);
        }
    }
    // A symbolic link leads to a file that is listed already, or to one that is not wanted.
    files.retain(|path| !path.is_symlink());

    let (mut bytes, mut refused) = (0, 0);
    let mut found: Vec<(Duration, String)> = Vec::new();
    let mut slowest = (Duration::ZERO, PathBuf::new());
    let (before, begin) = (read_so_far(), Instant::now());
    for path in &files {
        let (size, took, result) = look(path)?;
        bytes += size;
        match result {
            Ok(Some(what)) => found.push((took, format!("{}: {what}", path.display()))),
            Ok(None) => {}
            Err(reason) => {
                refused += 1;
                println!("{}: {reason}", path.display());
            }
        }
        if took > slowest.0 {
            slowest = (took, path.clone());
        }
    }
    let total = begin.elapsed();
    for (took, what) in found {
        println!("{:8.1} ms  {what}", took.as_secs_f64() * 1e3);
    }
    println!(
        "{} files of {} MB, {refused} refused: {:.2} s, {} MB read, slowest {:.0} ms ({}), peak {} MB",
        files.len(),
        bytes >> 20,
        total.as_secs_f64(),
        (read_so_far() - before) >> 20,
        slowest.0.as_secs_f64() * 1e3,
        slowest.1.display(),
        peak_kib() >> 10
    );
    Ok(())
}

type Looked = Result<Option<String>, String>;

fn look(path: &Path) -> Result<(u64, Duration, Looked)> {
    let begin = Instant::now();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let looked = inspect_file(&file);
    let took = begin.elapsed();
    let looked = looked.map_err(|refusal| refusal.to_string());
    let what = looked.map(|found| {
        found.map(|inspection| format!("{}, {} probes", inspection.library, inspection.points.len()))
    });
    Ok((file.metadata()?.len(), took, what))
}

/// The number of bytes that this process has read.
fn read_so_far() -> u64 {
    field("/proc/self/io", "rchar:")
}

/// The peak memory use of this process.
fn peak_kib() -> u64 {
    field("/proc/self/status", "VmHWM:")
}

fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
