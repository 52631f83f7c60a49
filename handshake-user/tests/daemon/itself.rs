//! What the exporter says of the tracer itself.

use std::fs;

use nix::sys::signal::Signal;

use crate::{
    close, connect, listen,
    program::{Daemon, Scrape, send},
};

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Switches the kernel's statistics on, and back to what they were.
struct Statistics(String);

impl Statistics {
    fn on() -> Self {
        let before = fs::read_to_string(STATS).unwrap();
        fs::write(STATS, "1").unwrap();
        Self(before.trim().to_owned())
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        fs::write(STATS, &self.0).unwrap();
    }
}

/// The runs of its programs by the kernel's own account.
fn runs(pid: u32) -> f64 {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let count =
        |info: &str| info.lines().find_map(|line| line.strip_prefix("run_cnt:")?.trim().parse::<u32>().ok());
    let infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    // A program may be open twice.
    let of_program = |info: &str| {
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"))?.trim().to_owned();
        Some((id, f64::from(count(info)?)))
    };
    let programs: std::collections::BTreeMap<_, _> = infos.filter_map(|info| of_program(&info)).collect();
    programs.values().sum()
}

#[test]
fn run_times_of_programs_are_those_of_the_kernel_while_it_keeps_them() {
    let daemon = Daemon::start(&[]);
    let (listener, at, _) = listen("127.77.31.1");
    let kept = |scrape: &Scrape| scrape.sum("handshake_bpf_runs_total", &[]);
    if fs::read_to_string(STATS).unwrap().trim() == "0" {
        let (_, _, text) = daemon.request("GET", "/metrics");
        assert!(!text.contains("handshake_bpf_run"), "they would be zeros");
    }
    let _on = Statistics::on();
    for _ in 0..50 {
        close(connect(&listener, at));
    }
    let before = runs(daemon.pid());
    let scrape = daemon.scrape();
    let after = runs(daemon.pid());
    println!("{before} runs, then {}, then {after}", kept(&scrape));
    assert!(
        before > 0.0 && (before..=after).contains(&kept(&scrape)),
        "{before}, {}, {after}",
        kept(&scrape)
    );
    let program = ["program=\"inet_sock_set_state"];
    // Three changes of state at each end, at the least.
    assert!(scrape.sum("handshake_bpf_runs_total", &program) >= 300.0);
    let each = scrape.sum("handshake_bpf_run_seconds_total", &program)
        / scrape.sum("handshake_bpf_runs_total", &program);
    assert!((20e-9..1e-3).contains(&each), "{each} s for each run");
}

#[test]
fn fill_of_the_ring_is_that_of_its_fullest_moment() {
    const SIZE: f64 = 65_536.0;
    let daemon = Daemon::start(&["--ring-kib", "64", "--label", "remote_net"]);
    let (listener, at, _) = listen("127.77.32.1");
    let peak = |scrape: &Scrape| scrape.sum("handshake_ring_peak_bytes", &[]);
    let calm = daemon.scrape();
    assert_eq!(calm.sum("handshake_ring_size_bytes", &[]), SIZE);
    send(daemon.pid(), Signal::SIGSTOP);
    for _ in 0..200 {
        close(connect(&listener, at));
    }
    send(daemon.pid(), Signal::SIGCONT);
    let full = daemon.scrape_until(|scrape| peak(scrape) > SIZE * 0.9);
    println!("{} bytes, then {} of {SIZE}", peak(&calm), peak(&full));
    assert!((SIZE * 0.9..=SIZE).contains(&peak(&full)), "{} bytes", peak(&full));
    assert!(full.sum("handshake_events_lost_total", &["ring_full"]) > 0.0, "it was full");
    assert_eq!(peak(&daemon.scrape()), peak(&full), "the next scrape sees it too");
    let queued = full.sum("handshake_tls_inspection_queue_files", &[]);
    assert!((0.0..=256.0).contains(&queued), "{queued}");
}
