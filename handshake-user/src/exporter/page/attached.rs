//! Whether the daemon is well, and what it sees.

use std::fmt::Write as _;

use prometheus::proto::MetricFamily;

use super::{
    counts::{label, metrics},
    table,
};
use crate::output::markup::Escaped;

/// What is attached.
#[derive(Debug)]
pub struct Attached {
    /// Every hook of the kernel.
    pub probes: Vec<Probe>,
    /// What else is out of sight, each in a sentence.
    pub notes: Vec<String>,
}

/// A hook of the kernel.
#[derive(Debug)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// How it is attached, or would be.
    pub kind: &'static str,
    /// What is unknown without it.
    pub lost_without: &'static str,
    /// Why it is not attached, if so.
    pub missing: Option<String>,
}

pub(super) fn add(
    page: &mut String,
    trouble: Option<&str>,
    families: &[MetricFamily],
    attached: Option<&Attached>,
) {
    page.push_str("<h2 id=\"state\">State</h2>\n");
    let _ = match trouble {
        None => writeln!(page, "<p class=\"state\">Healthy: probes are attached, and records are read.</p>"),
        Some(trouble) => {
            writeln!(page, "<p class=\"state trouble\"><strong>{}</strong></p>", Escaped(trouble))
        }
    };
    let lost: Vec<_> = metrics(families, "handshake_events_lost_total")
        .map(|metric| (label(metric, "reason"), metric.get_counter().get_value()))
        .filter(|(_, count)| *count > 0.0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    let _ = if lost.is_empty() {
        writeln!(page, "<p>No record was lost.</p>")
    } else {
        let lost = lost.join(", ");
        writeln!(
            page,
            "<p class=\"state trouble\">Lost, by reason: {}. What is taken from records lacks these; the kernel's counts \
             lack only <code>recursion</code>.</p>",
            Escaped(&lost)
        )
    };
    let Some(attached) = attached else { return };
    for probe in &attached.probes {
        if let Some(reason) = &probe.missing {
            let _ = writeln!(
                page,
                "<p class=\"state trouble\">Not attached: <code>{}</code> ({}). Without it is unknown: {}.</p>",
                probe.name,
                Escaped(reason),
                Escaped(probe.lost_without)
            );
        }
    }
    for note in &attached.notes {
        let _ = writeln!(page, "<p class=\"state trouble\">{}</p>", Escaped(note));
    }
    let all = attached.probes.len();
    let there = attached.probes.iter().filter(|probe| probe.missing.is_none()).count();
    let _ =
        writeln!(page, "<details id=\"attached\"><summary>{there} of {all} probes are attached</summary>");
    table::begin(page, "probes", "Probes", &["probe", "attached", "what it tells"], &[]);
    for Probe { name, kind, lost_without, missing } in &attached.probes {
        let how = if missing.is_none() { kind } else { "no" };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\"><code>{name}</code></th><td>{how}</td><td class=\"text\">{}</td></tr>",
            Escaped(lost_without)
        );
    }
    table::end(page);
    page.push_str(
        "<p>Libraries of TLS are in a table below. What other kernels or privileges would add: <code>handshake \
         check</code>.</p>\n</details>\n",
    );
}
