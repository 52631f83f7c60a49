//! Writes the inputs that the fuzzers begin with, all of them made here or by this project: `cargo run
//! --example seeds` in this folder, when one is to be added. What the fuzzers found lies beside them.

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
