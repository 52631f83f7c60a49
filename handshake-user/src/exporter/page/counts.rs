//! The metrics as tables with bars.

use std::{collections::BTreeMap, fmt::Write as _};

use prometheus::proto::{Metric, MetricFamily};

use super::{chart, distribution::Distribution, table};
use crate::output::{
    chart::{Distribution as Drawn, distributions},
    markup::Escaped,
};

/// Most rows of a table: peers choose cipher suites and groups.
const MOST: usize = 24;

/// A table of counts: title, family, and the labels that make a row; over the others it is summed up.
struct Counted {
    title: &'static str,
    family: &'static str,
    labels: &'static [&'static str],
}

const fn counted(title: &'static str, family: &'static str, labels: &'static [&'static str]) -> Counted {
    Counted { title, family, labels }
}

const COUNTED: [Counted; 11] = [
    counted("TCP openings", "handshake_tcp_opens_total", &["role", "outcome"]),
    counted("TCP closings", "handshake_tcp_closes_total", &["role", "style"]),
    counted("Setups by round trips", "handshake_setup_round_trips_total", &["role", "round_trips"]),
    counted("SYNs and SYN-ACKs sent again", "handshake_tcp_syn_retransmits_total", &["role"]),
    counted("TLS handshakes by outcome", "handshake_tls_handshakes_total", &["role", "outcome"]),
    counted("TLS versions", "handshake_tls_negotiated_total", &["role", "version"]),
    counted("TLS handshakes by kind", "handshake_tls_handshakes_total", &["role", "class"]),
    counted("TLS cipher suites", "handshake_tls_negotiated_total", &["cipher"]),
    counted("TLS groups of the key exchange", "handshake_tls_negotiated_total", &["group"]),
    counted("TCP Fast Open", "handshake_tcp_fast_open_total", &["role", "result"]),
    counted(
        "Files of TLS libraries, by whether their handshakes are seen",
        "handshake_tls_libraries",
        &["library", "covered"],
    ),
];

const DURATIONS: [(&str, &str); 4] = [
    ("TCP opening", "handshake_tcp_open_duration_seconds"),
    ("TLS handshake", "handshake_tls_duration_seconds"),
    ("setup", "handshake_setup_duration_seconds"),
    ("TCP closing", "handshake_tcp_close_duration_seconds"),
];

pub(super) fn add(page: &mut String, families: &[MetricFamily]) {
    page.push_str("<h2 id=\"counts\">Since the daemon started</h2>\n");
    durations(page, families);
    page.push_str("<div class=\"tables\">\n");
    for (number, counted) in COUNTED.iter().enumerate() {
        counts(page, number, counted, families);
    }
    page.push_str("</div>\n");
}

/// A row for each set of label values that counted something, with a bar.
fn counts(page: &mut String, number: usize, counted: &Counted, families: &[MetricFamily]) {
    let Counted { title, family, labels } = counted;
    let mut counts = BTreeMap::<Vec<&str>, f64>::new();
    for metric in metrics(families, family) {
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        if value > 0.0 {
            *counts.entry(labels.iter().map(|name| label(metric, name)).collect()).or_default() += value;
        }
    }
    let _ = writeln!(page, "<section><h3>{title}</h3>");
    if counts.is_empty() {
        page.push_str("<p class=\"soft\">None so far.</p></section>\n");
        return;
    }
    let mut rows: Vec<_> = counts.into_iter().collect();
    if rows.len() > MOST {
        rows.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let rest = rows.split_off(MOST - 1);
        let mut all_others = vec![""; labels.len()];
        all_others[0] = "all others";
        rows.push((all_others, rest.iter().map(|(_, count)| count).sum()));
    }
    let most = rows.iter().map(|(_, count)| *count).fold(1.0, f64::max);
    let heads: Vec<_> = labels.iter().map(|label| label.replace('_', " ")).collect();
    let heads: Vec<_> = heads.iter().map(String::as_str).collect();
    table::begin(page, &format!("counts-{number}"), title, &heads, &["count", ""]);
    for (values, count) in rows {
        page.push_str("<tr>");
        for value in values {
            let _ = write!(page, "<th scope=\"row\">{}</th>", Escaped(value));
        }
        let bar = chart::bar(count / most);
        let _ = writeln!(page, "<td class=\"number\">{count}</td><td>{bar}</td></tr>");
    }
    table::end(page);
    page.push_str("</section>\n");
}

fn durations(page: &mut String, families: &[MetricFamily]) {
    page.push_str("<h3>Durations</h3>\n");
    let mut rows = Vec::new();
    for (what, family) in DURATIONS {
        let mut roles = BTreeMap::<&str, Distribution>::new();
        for metric in metrics(families, family) {
            roles.entry(label(metric, "role")).or_default().add(metric);
        }
        rows.extend(roles.into_iter().filter(|(_, all)| all.count > 0).map(|(role, all)| (what, role, all)));
    }
    if rows.is_empty() {
        page.push_str("<p class=\"soft\">None so far.</p>\n");
        return;
    }
    let numbers = ["count", "half of them", "99 of 100"];
    table::begin(page, "durations", "Durations", &["duration", "role"], &numbers);
    for (what, role, all) in &rows {
        let (role, count, half, most) = (Escaped(role), all.count, all.bound(50), all.bound(99));
        let (half, most) = (Escaped(&half), Escaped(&most));
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{what}</th><th scope=\"row\">{role}</th><td class=\"number\">{count}</td>\
             <td class=\"number\">{half}</td><td class=\"number\">{most}</td></tr>"
        );
    }
    table::end(page);
    let rows: Vec<_> = rows
        .iter()
        .map(|(what, role, all)| Drawn {
            name: format!("{what}, {role}"),
            buckets: all.buckets(),
            // A histogram does not tell it.
            median: None,
        })
        .collect();
    if let Some(drawn) = distributions("Durations, shortest to the left", &rows) {
        let _ = writeln!(page, "<figure>{drawn}</figure>");
    }
}

pub(super) fn metrics<'a>(families: &'a [MetricFamily], name: &str) -> impl Iterator<Item = &'a Metric> {
    families.iter().filter(move |family| family.name() == name).flat_map(MetricFamily::get_metric)
}

pub(super) fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", |pair| pair.value())
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts, core::Collector as _};

    use super::*;

    #[test]
    fn rows_beyond_the_most_are_summed_up() {
        let family =
            IntCounterVec::new(Opts::new("handshake_tls_negotiated_total", "a"), &["cipher"]).unwrap();
        for number in 0..100 {
            family.with_label_values(&[format!("0x{number:04x}")]).inc_by(number);
        }
        let mut page = String::new();
        counts(
            &mut page,
            0,
            &counted("Suites", "handshake_tls_negotiated_total", &["cipher"]),
            &family.collect(),
        );
        assert_eq!(page.matches("<tr>").count(), MOST + 1, "{page}");
        let rest: u64 = (1..=76).sum();
        assert!(page.contains(&format!("all others</th><td class=\"number\">{rest}</td>")), "{page}");
        assert!(page.contains("0x0063</th><td class=\"number\">99</td>"), "{page}");
    }
}
