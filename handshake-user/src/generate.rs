//! Writes the man pages and the completions of shells from the command line's own definition.
//!
//! A program of its own, behind a feature: none of it belongs in the program that runs on a host, and one
//! that is built for another processor could not be run here.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use handshake::cli::Cli;

/// The configuration file, which documents its keys.
const CONFIGURATION: &str = include_str!("../../config/handshake.toml");

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from).context("usage: handshake-generate FOLDER")?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Without a name clap takes the package's; and there is no page of `handshake help`.
    let mut cli = Cli::command().name("handshake").bin_name("handshake").disable_help_subcommand(true);
    cli.build();
    pages(&cli, &folder)
        .and_then(|()| completions(&mut cli, &folder))
        .with_context(|| format!("cannot write to {}", folder.display()))
}

/// handshake(1), a page for each command, and handshake.toml(5).
fn pages(cli: &Command, folder: &Path) -> io::Result<()> {
    page(cli.clone(), "handshake", folder)?;
    for command in cli.get_subcommands() {
        page(command.clone(), &format!("handshake-{}", command.get_name()), folder)?;
    }
    configuration(&mut fs::File::create(folder.join("handshake.toml.5"))?)
}

fn page(command: Command, name: &str, folder: &Path) -> io::Result<()> {
    let source = format!("handshake {}", env!("CARGO_PKG_VERSION"));
    // clap wants names to live as long as the program.
    let title: &'static str = name.to_owned().leak();
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command.name(title).display_name(title)).source(source).manual("handshake");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_subcommands {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    verbatim(&mut roff, examples.trim_start_matches("Examples:\n"));
    roff.to_writer(&mut text)?;
    fs::write(folder.join(format!("{name}.1")), text)
}

/// Lines as they are: `clap_mangen`'s own section of this text would fill them like prose.
fn verbatim(roff: &mut Roff, text: &str) {
    roff.control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

fn configuration(out: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("TH", ["handshake.toml", "5", "", concat!("handshake ", env!("CARGO_PKG_VERSION"))])
        .control("SH", ["NAME"])
        .text([roman("handshake.toml - configuration of handshake-daemon(1)")])
        .control("SH", ["DESCRIPTION"])
        .text([roman("The file as it is installed, with every key and its default:")])
        .control("PP", []);
    verbatim(&mut roff, CONFIGURATION);
    roff.control("SH", ["FILES"])
        .text([roman("/etc/handshake/handshake.toml")])
        .control("SH", ["SEE ALSO"])
        .text([roman("handshake(1), handshake-daemon(1)")]);
    roff.to_writer(out)
}

fn completions(cli: &mut Command, folder: &Path) -> io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, cli, "handshake", folder)?;
    }
    Ok(())
}
