//! Java's own TLS, which cannot be probed: its handshakes are seen on the wire alone.

use std::{path::Path, process::Command, sync::OnceLock};

use tempfile::TempDir;

use super::{Peers, both, drive, serve, source};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(command(bed, Side::Client), address, settings),
    server: |bed, address, settings| serve(command(bed, Side::Server), bed, address, settings),
    libraries: both(None),
};

fn command(bed: &Testbed, side: Side) -> Command {
    // At a low priority: it compiles its own code while other tests measure times.
    let mut command = bed.command(side, "nice");
    // These options make it start faster on a small machine.
    command.args(["-n", "10", "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp"]);
    command.arg(classes()).arg("Peer");
    command
}

/// The compiled program. Compiled once, because `java Peer.java` would compile it at every start.
fn classes() -> &'static Path {
    static CLASSES: OnceLock<TempDir> = OnceLock::new();
    let folder = CLASSES.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut compile = Command::new("javac");
        compile.arg("-d").arg(folder.path()).arg(source("java/Peer.java"));
        let out = compile.output().expect("javac, which this test needs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        folder
    });
    folder.path()
}
