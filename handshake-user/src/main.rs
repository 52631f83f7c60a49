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

/// Usage errors exit with status 2, help and version with 0. An error quotes arguments, which may be file
/// names that someone else chose (`explain *`), so it is made again from the same arguments in escaped form.
fn usage(error: &clap::Error) -> ! {
    let arguments =
        env::args_os().map(|argument| Untrusted::from_bytes(argument.as_encoded_bytes()).to_string());
    match Cli::try_parse_from(arguments).and_then(Cli::possible) {
        Err(harmless) => harmless.exit(),
        // Then the error is about bytes that are not UTF-8, and quotes none of them.
        Ok(_) => error.exit(),
    }
}
