//! The page `/`: what `/metrics` counts, and the latest slow and failed connections, for a reader.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use prometheus::proto::{Metric, MetricFamily};

use crate::{
    event::ConnectionEvent,
    output::{ladder, markup::Escaped},
    report::html::{STYLE as LADDER_STYLE, STYLE_HASH as LADDER_STYLE_HASH},
};

const STYLE: &str = include_str!("page.css");
const STYLE_HASH: &str = "sha256-wgNGCOoFO9tJcqPjz0XwIp7U4Pjn6NODKynOpCvgZR4=";
const SCRIPT: &str = include_str!("page.js");
const SCRIPT_HASH: &str = "sha256-D4+9MkdqmQuo0bJbmpa9Y/AKdBNse5HlhzYNJuGHtFM=";

/// Pixels of the longest bar.
const BAR: f64 = 160.0;

/// What the page shows.
pub struct Facts {
    /// The metrics, as they are gathered for `/metrics`.
    pub families: Vec<MetricFamily>,
    /// Why the daemon is not healthy or not ready, if so.
    pub trouble: Option<String>,
    /// Whether every connection has a record; otherwise only those with TLS, and ends of TIME_WAIT.
    pub all_records: bool,
    /// The latest slow connections, the latest first.
    pub slow: Vec<Arc<ConnectionEvent>>,
    /// The latest failed ones.
    pub failed: Vec<Arc<ConnectionEvent>>,
}

/// The page's `Content-Security-Policy`: its own styles and script, and requests to itself.
#[must_use]
pub fn policy() -> String {
    format!(
        "default-src 'none'; style-src '{LADDER_STYLE_HASH}' '{STYLE_HASH}'; script-src '{SCRIPT_HASH}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The whole page. Every text of others is escaped.
#[must_use]
pub fn html(facts: &Facts) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>handshake</title>\n\
         <style>{LADDER_STYLE}</style>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>handshake</h1>\n\
         <p>TCP and TLS handshakes and TCP closes of this host, timed in the kernel, since the daemon started.</p>\n\
         <nav><a href=\"/metrics\">/metrics</a><a href=\"/config\">/config</a><a href=\"/healthz\">/healthz</a>\
         <a href=\"/readyz\">/readyz</a></nav>\n\
         <p><button type=\"button\" hidden>Pause updates</button> <output></output></p>\n</header>\n<main>\n"
    );
    state(&mut page, facts);
    for (title, family, labels) in COUNTS {
        counts(&mut page, &facts.families, title, family, labels);
    }
    durations(&mut page, &facts.families);
    let scope = if facts.all_records {
        "Every connection has a record here, since histograms are filled from records."
    } else {
        "Only connections with TLS have a record here: the kernel itself counts and times all others. \
         An opening that TCP failed is in the counts above, not below."
    };
    let _ = writeln!(
        page,
        "<h2>Latest connections</h2>\n<p class=\"soft\">{scope} At most 16 of each kind are kept. In a ladder this \
         end is to the left, the peer to the right."
    );
    for line in ladder::legend().lines() {
        let _ = writeln!(page, "<br>{}", Escaped(line));
    }
    page.push_str("</p>\n");
    ladders(&mut page, "Failed", "No handshake has failed.", &facts.failed);
    ladders(&mut page, "Slow", "None took longer than the network explains.", &facts.slow);
    let _ = write!(page, "{HELP}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

/// The counters that are shown: title, family, and the labels of a row; the others are summed up.
const COUNTS: [(&str, &str, &[&str]); 7] = [
    ("TCP openings by role and outcome", "handshake_tcp_opens_total", &["role", "outcome"]),
    ("TCP closings by role and style", "handshake_tcp_closes_total", &["role", "style"]),
    ("TLS handshakes by version and outcome", "handshake_tls_handshakes_total", &["version", "outcome"]),
    ("TLS handshakes by role and kind", "handshake_tls_handshakes_total", &["role", "class"]),
    ("Setups by role and round trips", "handshake_setup_round_trips_total", &["role", "round_trips"]),
    (
        "Files of TLS libraries in use, by whether their handshakes are seen",
        "handshake_tls_libraries",
        &["library", "covered"],
    ),
    ("Records lost, by reason", "handshake_events_lost_total", &["reason"]),
];

const DURATIONS: [(&str, &str); 4] = [
    ("TCP opening", "handshake_tcp_open_duration_seconds"),
    ("TLS handshake", "handshake_tls_duration_seconds"),
    ("Setup", "handshake_setup_duration_seconds"),
    ("TCP closing", "handshake_tcp_close_duration_seconds"),
];

const HELP: &str = "<h2>How to read this</h2>\n<ul>\n\
    <li>An opening is TCP's handshake; a setup lasts from its start until the client may send application data.</li>\n\
    <li>Half of the durations, or 99 of 100, are at most as long as the column says: it is the upper bound of a bucket.</li>\n\
    <li><code>unknown</code> is what could not be known for certain; nothing is guessed.</li>\n\
    <li>A setup in fewer round trips needs TLS 1.3, resumption with early data, or TCP Fast Open.</li>\n</ul>\n";

fn state(page: &mut String, facts: &Facts) {
    page.push_str("<h2>State</h2>\n");
    let _ = match &facts.trouble {
        None => writeln!(page, "<p>Healthy: the probes are attached, and records are read.</p>"),
        Some(trouble) => writeln!(page, "<p><strong>{}</strong></p>", Escaped(trouble)),
    };
    let probes = metrics(&facts.families, "handshake_probe_attached");
    let missing: Vec<_> = probes.filter(|probe| probe.get_gauge().get_value() < 1.0).collect();
    if missing.is_empty() {
        page.push_str("<p>Every probe is attached.</p>\n");
    } else {
        page.push_str(
            "<p>Not attached (<code>handshake check</code> says why, and what is lost):</p>\n<ul>\n",
        );
        for probe in missing {
            let _ = writeln!(page, "<li>{}</li>", Escaped(label(probe, "probe")));
        }
        page.push_str("</ul>\n");
    }
}

/// A row for each set of label values that counted something, with a bar.
fn counts(page: &mut String, families: &[MetricFamily], title: &str, family: &str, labels: &[&str]) {
    let mut rows = BTreeMap::<Vec<&str>, f64>::new();
    for metric in metrics(families, family) {
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        if value > 0.0 {
            *rows.entry(labels.iter().map(|name| label(metric, name)).collect()).or_default() += value;
        }
    }
    let _ = writeln!(page, "<h2>{title}</h2>");
    if rows.is_empty() {
        page.push_str("<p class=\"soft\">None so far.</p>\n");
        return;
    }
    let most = rows.values().copied().fold(1.0, f64::max);
    head(page, title, labels, &["count", ""]);
    for (values, count) in rows {
        page.push_str("<tr>");
        for value in values {
            let _ = write!(page, "<th scope=\"row\">{}</th>", Escaped(value));
        }
        let width = (count / most * BAR).max(1.0);
        let _ = writeln!(
            page,
            "<td class=\"number\">{count}</td><td><svg class=\"bars\" aria-hidden=\"true\">\
             <rect width=\"{width:.1}\" height=\"12\"/></svg></td></tr>"
        );
    }
    page.push_str("</tbody></table></div>\n");
}

fn durations(page: &mut String, families: &[MetricFamily]) {
    let title = "Durations";
    let _ = writeln!(page, "<h2>{title}</h2>");
    head(page, title, &["duration", "role"], &["count", "half of them", "99 of 100"]);
    for (what, family) in DURATIONS {
        let mut roles = BTreeMap::<&str, Distribution>::new();
        for metric in metrics(families, family) {
            roles.entry(label(metric, "role")).or_default().add(metric);
        }
        for (role, all) in roles.iter().filter(|(_, all)| all.count > 0) {
            let _ = writeln!(
                page,
                "<tr><th scope=\"row\">{what}</th><th scope=\"row\">{}</th><td class=\"number\">{}</td>\
                 <td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
                Escaped(role),
                all.count,
                all.bound(50),
                all.bound(99)
            );
        }
    }
    page.push_str("</tbody></table></div>\n");
}

/// Histograms of the same buckets, added up.
#[derive(Default)]
struct Distribution {
    count: u64,
    /// Upper bound in seconds, and how many are not above it.
    buckets: Vec<(f64, u64)>,
}

impl Distribution {
    fn add(&mut self, metric: &Metric) {
        let histogram = metric.get_histogram();
        self.count += histogram.get_sample_count();
        for (i, bucket) in histogram.get_bucket().iter().enumerate() {
            match self.buckets.get_mut(i) {
                Some((_, below)) => *below += bucket.cumulative_count(),
                None => self.buckets.push((bucket.upper_bound(), bucket.cumulative_count())),
            }
        }
    }

    /// The smallest bound that so many of a hundred do not exceed.
    fn bound(&self, percent: u64) -> String {
        let enough = |below: u64| u128::from(below) * 100 >= u128::from(self.count) * u128::from(percent);
        match self.buckets.iter().find(|(bound, below)| bound.is_finite() && enough(*below)) {
            Some((bound, _)) => format!("≤ {}", seconds(*bound)),
            None => {
                let last = self.buckets.iter().rev().find(|(bound, _)| bound.is_finite());
                last.map_or_else(|| "?".to_owned(), |(bound, _)| format!("&gt; {}", seconds(*bound)))
            }
        }
    }
}

fn seconds(seconds: f64) -> String {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    if seconds < 0.001 {
        format!("{} µs", rounded(seconds * 1e6))
    } else if seconds < 1.0 {
        format!("{} ms", rounded(seconds * 1e3))
    } else {
        format!("{} s", rounded(seconds))
    }
}

fn ladders(page: &mut String, title: &str, none: &str, records: &[Arc<ConnectionEvent>]) {
    let _ = writeln!(page, "<h3>{title}</h3>");
    if records.is_empty() {
        let _ = writeln!(page, "<p class=\"soft\">{none}</p>");
    }
    for record in records {
        let _ = writeln!(
            page,
            "<figure><figcaption><strong>{}</strong> {}",
            Escaped(&ladder::who(record)),
            Escaped(&ladder::how(record))
        );
        if let Some(tls) = &record.tls {
            let _ = writeln!(page, "<p>{}</p>", Escaped(&ladder::tls_facts(tls).join(" · ")));
        }
        for saving in ladder::savings(record) {
            let _ = writeln!(page, "<p>{}</p>", Escaped(&saving));
        }
        let _ = writeln!(page, "</figcaption>{}</figure>", ladder::svg(record));
    }
}

fn head(page: &mut String, title: &str, words: &[&str], numbers: &[&str]) {
    let _ = write!(
        page,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\"><table>\n<thead><tr>"
    );
    for word in words {
        let _ = write!(page, "<th scope=\"col\">{word}</th>");
    }
    for number in numbers {
        let _ = match *number {
            "" => write!(page, "<td></td>"),
            number => write!(page, "<th scope=\"col\" class=\"number\">{number}</th>"),
        };
    }
    page.push_str("</tr></thead>\n<tbody>\n");
}

fn metrics<'a>(families: &'a [MetricFamily], name: &str) -> impl Iterator<Item = &'a Metric> {
    families.iter().filter(move |family| family.name() == name).flat_map(MetricFamily::get_metric)
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", |pair| pair.value())
}

#[cfg(test)]
mod tests;
