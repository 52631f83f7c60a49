//! How much the kernel's verifier looks at. A program over its limit of a million instructions does not load,
//! and older verifiers look at more of the same program.

use std::{collections::BTreeMap, fs, os::unix::process::CommandExt as _};

use aya::programs::loaded_programs;

use crate::program::{Daemon, command, mount_tracefs};

/// The most instructions for the large programs, by their names as the kernel cuts them, and for the rest.
const LIMITS: [(&str, u32); 3] = [("inet_sock_set_s", 200_000), ("tls_wire", 170_000), ("", 30_000)];

fn verified(daemon: &Daemon) -> BTreeMap<String, u32> {
    let files = fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).unwrap().flatten();
    let id = |info: String| {
        info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok())
    };
    let own: Vec<_> = files.filter_map(|file| id(fs::read_to_string(file.path()).ok()?)).collect();
    let programs = loaded_programs().filter_map(Result::ok).filter(|program| own.contains(&program.id()));
    let mut largest = BTreeMap::new();
    for program in programs {
        // Before 5.16 the kernel does not tell.
        let Some(number) = program.verified_instruction_count() else { continue };
        let name = program.name_as_str().unwrap().to_owned();
        let largest = largest.entry(name).or_insert(0);
        *largest = number.max(*largest);
    }
    largest
}

fn assert_bounded(attach: &str) {
    let mut command = command(&["--listen", "127.0.0.1:0", "--attach", attach]);
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(mount_tracefs) };
    let daemon = Daemon::spawn(&mut command);
    assert!(!daemon.said().contains("too large"), "{}", daemon.said());
    let verified = verified(&daemon);
    println!("{attach}: {verified:?}");
    if verified.is_empty() {
        return eprintln!("skipped: the kernel does not tell what its verifier has looked at");
    }
    assert!(verified.contains_key(LIMITS[0].0), "{verified:?}");
    for (name, number) in verified {
        let (_, most) = LIMITS.iter().find(|(beginning, _)| name.starts_with(beginning)).unwrap();
        assert!(
            number <= *most,
            "{attach}: the verifier looks at {number} instructions of {name}, not {most}"
        );
    }
}

#[test]
fn programs_with_types_are_far_from_the_limit() {
    assert_bounded("tp_btf");
}

#[test]
fn programs_of_perf_tracepoints_are_far_from_the_limit() {
    assert_bounded("tracepoint");
}
