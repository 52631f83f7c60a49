//! Puts the eBPF object, which `cargo xtask build` makes and names in `HANDSHAKE_EBPF_OBJECT`, where `probe`
//! includes it.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=HANDSHAKE_EBPF_OBJECT");
    let Some(object) = env::var_os("HANDSHAKE_EBPF_OBJECT").map(PathBuf::from) else {
        println!(
            "cargo::error=no eBPF object to put into the program; build with `cargo xtask build`, which makes it first"
        );
        return;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("handshake-ebpf");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo::error=cannot copy the eBPF object {}: {error}; `cargo xtask build` makes it",
            object.display()
        );
    }
}
