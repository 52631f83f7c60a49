//! The binary: reads the command line, calls the library, turns the result into an exit status.

use std::process::ExitCode;

use clap::Parser as _;
use handshake::cli::Cli;

fn main() -> ExitCode {
    // Usage errors leave here with status 2.
    let cli = Cli::parse();
    match handshake::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("handshake: {error:#}");
            ExitCode::FAILURE
        }
    }
}
