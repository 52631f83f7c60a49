//! Each alert fires by its fault and is silent without it, and the queries of the dashboard have answers.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    program::Daemon,
    prometheus::{Prometheus, WINDOW, file},
    traffic::{self, Background, Tls},
};

/// How long an alert may take to fire, or to end after its window.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What fires for one instance.
struct Watch<'a> {
    prometheus: &'a Prometheus,
    instance: String,
    /// Those whose fault was made.
    caused: BTreeSet<String>,
}

impl Watch<'_> {
    /// What fires now, which must have been caused.
    #[track_caller]
    fn firing(&self) -> BTreeSet<String> {
        let firing = self.prometheus.firing(&self.instance);
        assert!(firing.is_subset(&self.caused), "{firing:?} fire, without the fault of one");
        firing
    }

    /// Nothing without a fault fires for this long.
    #[track_caller]
    fn is_silent_for(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.firing();
            thread::sleep(Duration::from_millis(250));
        }
    }

    /// Makes the fault, again and again, until the alert fires.
    #[track_caller]
    fn fires_by(&mut self, alert: &str, mut fault: impl FnMut()) {
        assert!(!self.firing().contains(alert), "{alert} fires before its fault");
        self.caused.insert(alert.to_owned());
        let deadline = Instant::now() + TIMEOUT;
        while !self.firing().contains(alert) {
            assert!(Instant::now() < deadline, "{alert} does not fire");
            fault();
            thread::sleep(Duration::from_millis(500));
        }
    }

    #[track_caller]
    fn until_nothing_fires(&self) {
        let deadline = Instant::now() + WINDOW + TIMEOUT;
        while !self.firing().is_empty() {
            assert!(Instant::now() < deadline, "{:?} still fire", self.firing());
            thread::sleep(Duration::from_millis(250));
        }
    }
}

#[test]
fn alerts_fire_by_their_faults_and_the_dashboard_has_answers() {
    let prometheus = Prometheus::start();
    let daemon = Daemon::start(&[]);
    let background = Background::start();
    let (good, expired) = (Tls::start(2, &[]), Tls::start(-1, &[]));
    let old = Tls::start(2, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    prometheus.scrape(&[&daemon.address]);
    let mut watch =
        Watch { prometheus: &prometheus, instance: daemon.address.clone(), caused: BTreeSet::new() };

    let is_up = || prometheus.query("up == 1").len() == 1;
    let deadline = Instant::now() + TIMEOUT;
    while !is_up() {
        assert!(Instant::now() < deadline, "nothing is scraped");
        thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..5 {
        let out = good.connect();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        watch.is_silent_for(Duration::from_secs(1));
    }

    watch.fires_by("TcpSynsRetransmitted", traffic::lose_syns);
    watch.fires_by("TcpOpensFail", traffic::be_refused);
    watch.fires_by("TcpNoLocalPort", traffic::exhaust_ports);
    watch.fires_by("TcpListenerDrops", traffic::overflow_accept_queue);
    watch.fires_by("TlsHandshakesFail", || {
        let out = expired.connect();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("certificate has expired"), "{said}");
    });
    watch.fires_by("TcpProgramClosesLate", traffic::close_late);
    watch.fires_by("TlsLegacyVersion", || {
        let out = old.connect();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    });
    dashboard_has_answers(&prometheus);
    assert!(prometheus.broken_rules().is_empty(), "{:?}", prometheus.broken_rules());

    watch.until_nothing_fires();
    let full = Daemon::start(&["--max-connections", "1", "--tls-libraries", "off"]);
    prometheus.scrape(&[&daemon.address, &full.address]);
    let mut of_full =
        Watch { prometheus: &prometheus, instance: full.address.clone(), caused: watch.caused.clone() };
    of_full.fires_by("HandshakeLosesEvents", || ());
    watch.is_silent_for(Duration::from_secs(1));

    let (status, _) = daemon.stop(Signal::SIGTERM);
    assert!(status.success());
    watch.fires_by("HandshakeDown", || ());
    drop(background);
}

/// With the variables of the dashboard filled in, every query yields something.
#[track_caller]
fn dashboard_has_answers(prometheus: &Prometheus) {
    let dashboard = fs::read_to_string(file("packaging/grafana/handshake.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        targets.iter().map(|target| (panel["title"].as_str().unwrap(), target["expr"].as_str().unwrap()))
    });
    let mut empty = Vec::new();
    let mut count = 0;
    for (title, query) in targets {
        let query = query.replace("$__rate_interval", "2m").replace("$job", ".+").replace("$instance", ".+");
        if prometheus.query(&query).is_empty() {
            empty.push((title, query));
        }
        count += 1;
    }
    assert!(count > 30, "{count} queries");
    assert!(empty.is_empty(), "no answer: {empty:#?}");
    for variable in dashboard["templating"]["list"].as_array().unwrap().iter().skip(1) {
        let query = variable["query"]["query"].as_str().unwrap();
        let series = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", ")).unwrap().0;
        assert!(!prometheus.query(&series.replace("$job", ".+")).is_empty(), "{query}");
    }
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    let folder = file("packaging/prometheus");
    for arguments in [
        &["check", "rules", "recording.yml", "alerts.yml"][..],
        &["test", "rules", "tests.yml"],
        &["check", "config", "--syntax-only", "scrape.yml"],
    ] {
        let mut command = Command::new("promtool");
        let out = command.args(arguments).current_dir(&folder).stdin(Stdio::null()).output();
        let out = out.expect("promtool, which this test needs");
        let said = [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(out.status.success(), "promtool {arguments:?}: {said}");
    }
}
