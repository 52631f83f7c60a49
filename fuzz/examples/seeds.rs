//! Writes the seeds of the fuzzers, all of them generated here or taken from this project: run `cargo run
//! --example seeds` in this directory to add one. Inputs that the fuzzers found are stored beside them.

mod seeds {
    pub mod kernel;
    pub mod library;
    pub mod ring;
    pub mod text;
}

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    for (target, name, bytes) in
        [seeds::library::all(), seeds::ring::all(), seeds::kernel::all(), seeds::text::all()].concat()
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// Target, name, bytes.
type Seed = (&'static str, String, Vec<u8>);
