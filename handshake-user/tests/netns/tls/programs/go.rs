//! Go's crypto/tls: with and without symbols, position-independent, and on connections of a type of the
//! program's own.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use super::{Client, Library, Peers, Running, Settings, await_probes, both, drive_with, serve_with, tool};
use crate::testbed::{Testbed, packet::Side};

/// The peers of one build; `wrapped` is an argument of the program.
macro_rules! peers {
    ($build:literal, $($argument:literal)?) => {
        Peers {
            client: |bed, address, settings| client(bed, address, settings, $build, &[$($argument)?]),
            server: |bed, address, settings| server(bed, address, settings, $build, &[$($argument)?]),
            libraries: both(Some(Library::Go)),
        }
    };
}

/// A build of its own, as a module.
macro_rules! build {
    ($module:ident, $build:literal, $($argument:literal)?) => {
        pub(crate) mod $module {
            use super::{Library, Peers, both, client, server};

            pub(crate) const PEERS: Peers = peers!($build, $($argument)?);
        }
    };
}

pub(crate) const PEERS: Peers = peers!("plain",);
build!(stripped, "stripped",);
build!(pie, "pie",);
build!(wrapped, "plain", "wrapped=yes");

fn client(
    bed: &Testbed,
    address: SocketAddr,
    settings: Settings,
    build: &str,
    more: &[&str],
) -> Box<dyn Client> {
    let client = drive_with(command(bed, Side::Client, build), address, settings, more);
    await_probes(&program(build));
    client
}

fn server(bed: &Testbed, address: SocketAddr, settings: Settings, build: &str, more: &[&str]) -> Running {
    let server = serve_with(command(bed, Side::Server, build), bed, address, settings, more);
    await_probes(&program(build));
    server
}

fn program(build: &str) -> PathBuf {
    tool(&format!("go-{build}"))
}

fn command(bed: &Testbed, side: Side, build: &str) -> Command {
    bed.command(side, program(build).to_str().unwrap())
}
