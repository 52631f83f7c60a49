//! Which tests a virtual machine runs, and how their outcomes become rows of the table.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use super::{
    built::Built,
    kernel::numbers,
    output::{Output, Section},
    report::{Count, Row},
};
use crate::target::Target;

/// The ways to attach that every kernel has.
const MODES: [&str; 2] = ["tp_btf", "tracepoint"];

/// One test of each kind of open and close.
const TCP: &[&str] = &[
    "opens::established::plain",
    "opens::failed::refused",
    "opens::failed::timed_out",
    "opens::fast_open::data_accepted",
    "opens::lost::syn",
    "closes::orderly::four_segments",
    "closes::orderly::three_segments",
    "closes::orderly::half_close::",
    "closes::reset::by_linger_zero",
    "closes::reset::by_unread_data",
    "closes::traps::fin_behind_unsent_data",
    "programs::curl_and_nginx",
];

/// Handshakes of libraries that are probed.
const LIBRARIES: &[&str] = &[
    "tls::classes::tls12::openssl",
    "tls::classes::tls12::gnutls",
    "tls::classes::tls12::go",
    "tls::classes::tls13::openssl",
    "tls::classes::tls13::gnutls",
    "tls::classes::tls13::go",
    "tls::classes::tls13_hello_retry::openssl",
];

/// What only a library tells.
const LIBRARIES_ALONE: &[&str] = &[
    "tls::failed::untrusted_certificate_with_tls13::openssl",
    "tls::failed::untrusted_certificate_with_tls13::gnutls",
    "tls::failed::untrusted_certificate_with_tls13::go",
];

/// Handshakes of a library that cannot be probed.
const WIRE: &[&str] = &[
    "tls::classes::tls12::rustls",
    "tls::classes::tls13::rustls",
    "tls::classes::tls13_hello_retry::rustls",
    "tls::failed::wrong_version::rustls",
    "tls::failed::untrusted_certificate::rustls",
];

/// Files that processes have mapped.
const DISCOVERY: &[&str] = &[
    "file_below_two_overlays",
    "replaced_library",
    "later_program_is_found_and_reported",
    "library_opened_long_after",
    "libraries_at_standard_paths",
];

/// What CI runs of all that: a few of each kind.
const CI: &[&str] = &[
    "opens::established::plain",
    "opens::failed::refused",
    "closes::orderly::four_segments",
    "closes::reset::by_linger_zero",
    "tls::classes::tls12::gnutls",
    "tls::classes::tls13::openssl",
    "tls::classes::tls13::go",
    "tls::classes::tls13::rustls",
];
const CI_DISCOVERY: &[&str] = &["later_program_is_found_and_reported"];

/// The kernel's iterator over the mappings of one process (6.1).
const ITERATOR: &[&str] = &["mappings::"];

/// Soft interrupts inside the program on changes of state.
const DAEMON: &[&str] = &["interrupted::"];

/// Seconds that one step may take: loading alone takes a minute where the machine is busy.
const SECONDS: u32 = 1800;

/// What one kernel runs.
pub(super) struct Plan {
    /// Whether the kernel can tell the uprobes of a program apart (5.15).
    has_cookies: bool,
    modes: Vec<&'static str>,
    netns: Vec<String>,
    discover: Vec<String>,
    daemon: Vec<String>,
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

impl Plan {
    /// All tests for this kernel, or those whose names contain one of the filters.
    pub(super) fn new(release: &str, filters: &[String]) -> Self {
        let has_cookies = numbers(release) >= vec![5, 15];
        let (netns, discover, daemon) = if filters.is_empty() {
            let alone = if has_cookies { LIBRARIES_ALONE } else { &[] };
            (owned(&[TCP, LIBRARIES, alone, WIRE].concat()), owned(DISCOVERY), owned(DAEMON))
        } else {
            (filters.to_vec(), filters.to_vec(), filters.to_vec())
        };
        Self { has_cookies, modes: MODES.to_vec(), netns, discover, daemon }
    }

    /// What CI runs: one attach mode, and a few of the tests.
    pub(super) fn of_ci(release: &str) -> Self {
        let iterator = if numbers(release) >= vec![6, 1] { ITERATOR } else { &[] };
        let discover = owned(&[CI_DISCOVERY, iterator].concat());
        Self { modes: vec![MODES[0]], netns: owned(CI), discover, ..Self::new(release, &[]) }
    }

    /// The commands behind init.sh.
    pub(super) fn script(&self, built: &Built, package: &Path) -> String {
        let mut script = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(script, "{text}");
        };
        line(format_args!("cd {}", quoted(package)));
        line(format_args!("export CI=true HANDSHAKE_TEST_SLOW=1 RUST_BACKTRACE=0"));
        line(format_args!("export HANDSHAKE_BIN={}", quoted(&built.binary)));
        if !self.has_cookies {
            line(format_args!("export HANDSHAKE_TEST_TLS_LIBRARIES=off"));
        }
        line(format_args!("run check {SECONDS} env RUST_LOG=off {} check --json", quoted(&built.binary)));
        for mode in &self.modes {
            line(format_args!(
                "run netns/{mode} {SECONDS} env HANDSHAKE_TEST_ATTACH={mode} {} --test-threads 1 {}",
                quoted(&built.netns),
                self.netns.join(" ")
            ));
        }
        line(format_args!(
            "run discover {SECONDS} {} --test-threads 1 {}",
            quoted(&built.discover),
            self.discover.join(" ")
        ));
        line(format_args!(
            "run daemon {SECONDS} {} --test-threads 1 --nocapture {}",
            quoted(&built.daemon),
            self.daemon.join(" ")
        ));
        script
    }

    /// A row for each attach mode.
    pub(super) fn rows(&self, release: &str, target: Target, output: &Output) -> Vec<Row> {
        let check =
            output.section("check").and_then(|section| serde_json::from_str(&section.lines.join("\n")).ok());
        let discover = output.section("discover");
        self.modes
            .iter()
            .map(|mode| {
                let netns = output.section(&format!("netns/{mode}"));
                let count = |filters: &[&[&str]]| Count::of(netns, &filters.concat());
                let mut failed = failures(netns, &format!("netns over {mode}"));
                if mode == &MODES[0] {
                    failed.extend(failures(discover, "discover"));
                    failed.extend(failures(output.section("daemon"), "daemon"));
                }
                Row {
                    release: release.to_owned(),
                    arch: target.arch(),
                    mode,
                    tcp: count(&[TCP]),
                    libraries: self.has_cookies.then(|| count(&[LIBRARIES, LIBRARIES_ALONE])),
                    wire: if self.has_cookies { count(&[WIRE]) } else { count(&[WIRE, LIBRARIES]) },
                    discovery: Count::all(discover),
                    check: check.clone(),
                    failed,
                }
            })
            .collect()
    }
}

/// What went wrong in a test executable.
fn failures(section: Option<&Section>, name: &str) -> BTreeSet<String> {
    let Some(section) = section else { return [format!("{name}: not run")].into() };
    let tests = section.tests();
    let mut failed: BTreeSet<_> =
        tests.iter().filter(|test| !test.passed).map(|test| format!("{name}: {}", test.name)).collect();
    if section.announced() != Some(tests.len()) {
        failed.insert(format!("{name}: {} of {:?} tests ended", tests.len(), section.announced()));
    } else if section.status != Some(0) && failed.is_empty() {
        failed.insert(format!("{name}: ended with {:?}", section.status));
    }
    failed
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
