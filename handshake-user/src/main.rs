//! The binary: reads the command line, calls the library, turns the result into an exit status.

use std::{env, process::ExitCode};

use clap::Parser as _;
use handshake::{
    cli::Cli,
    untrusted::{Untrusted, say},
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(Cli::possible) {
        Ok(cli) => cli,
        Err(error) => usage(&error),
    };
    match handshake::run(cli) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("handshake: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Usage errors leave here with status 2, help and version with 0. An error quotes arguments, and they may be names out of
/// a stranger's folder (`explain *`): it is made again, about the same arguments without harm in them.
fn usage(error: &clap::Error) -> ! {
    let arguments =
        env::args_os().map(|argument| Untrusted::from_bytes(argument.as_encoded_bytes()).to_string());
    match Cli::try_parse_from(arguments).and_then(Cli::possible) {
        Err(harmless) => harmless.exit(),
        // Then it was about bytes that are no text, and quotes none.
        Ok(_) => error.exit(),
    }
}
