//! A report as one page that needs nothing else: no script, no font, no request.

use std::{fmt::Write as _, time::Duration};

use handshake_common::Stage;

use super::{
    Report,
    text::{SAVINGS, SLOWEST, Section, heading, saved, sections},
};
use crate::output::{
    chart::{Distribution, distributions},
    ladder,
    markup::Escaped,
    summary::{Row, Timed},
};

pub(crate) const STYLE: &str = include_str!("report.css");
/// The only style that the page may use, by its SHA-256.
pub(crate) const STYLE_HASH: &str = "sha256-FbJn+gtNgfi0FaGbUTdpiZQC4XPjIH9SzTatpaWgWxw=";

/// The whole page. It forbids itself scripts and requests, and every text of others is escaped.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{STYLE_HASH}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Handshakes</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Handshakes</h1>\n"
    );
    for line in heading(report) {
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", Escaped(&line));
    }
    for section in sections(report) {
        add_table(&mut page, &section);
    }
    add_charts(&mut page, &report.stages);
    if !report.savings.is_empty() {
        let _ = writeln!(page, "<h2>{SAVINGS}</h2>\n<ul>");
        for saving in &report.savings {
            let _ = writeln!(
                page,
                "<li>{}: <strong>{}</strong><br><span class=\"detail\">{}</span></li>",
                Escaped(&saved(saving)),
                Escaped(saving.setting),
                Escaped(saving.detail)
            );
        }
        page.push_str("</ul>\n");
    }
    if !report.slowest.is_empty() {
        let _ = writeln!(
            page,
            "<h2>{SLOWEST}</h2>\n<p class=\"soft\">This end is to the left, the peer to the right."
        );
        for line in ladder::legend().lines() {
            let _ = writeln!(page, "<br>{}", Escaped(line));
        }
        page.push_str("</p>\n");
        for record in &report.slowest {
            let host = if report.hosts.len() > 1 { ladder::host(record) + " · " } else { String::new() };
            let _ = writeln!(
                page,
                "<figure><figcaption>{}<strong>{}</strong> {}",
                Escaped(&host),
                Escaped(&ladder::who(record)),
                Escaped(&ladder::how(record))
            );
            if let Some(tls) = &record.tls {
                let _ =
                    writeln!(page, "<p>{}</p>", Escaped(&ladder::tls_facts(tls, record.time).join(" · ")));
            }
            for saving in ladder::savings(record) {
                let _ = writeln!(page, "<p>{}</p>", Escaped(&saving));
            }
            let _ = writeln!(page, "</figcaption>{}</figure>", ladder::svg(record));
        }
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// How durations are distributed: a picture for each stage that has some.
fn add_charts(page: &mut String, rows: &[Row]) {
    let mut charts = Vec::new();
    for (title, stage) in CHARTS {
        let rows: Vec<_> = rows.iter().filter(|row| row.stage == stage).map(distribution).collect();
        charts.extend(distributions(title, &rows).map(|chart| (title, chart)));
    }
    if charts.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Distributions of durations</h2>\n<p class=\"soft\">Each row's highest bar has the same height; the \
         line is the median, and the number to the right how many were timed.</p>"
    );
    for (title, chart) in charts {
        let _ = writeln!(page, "<figure><figcaption>{title}</figcaption>{chart}</figure>");
    }
}

/// In the order of a connection's life.
const CHARTS: [(&str, Timed); 4] = [
    ("TCP openings", Timed::Stage(Stage::Open)),
    ("TLS handshakes", Timed::Stage(Stage::Tls)),
    ("Setups", Timed::Setup),
    ("TCP closings", Timed::Stage(Stage::Close)),
];

fn distribution(row: &Row) -> Distribution {
    Distribution {
        name: format!("{} {}", row.role, row.class),
        buckets: row.buckets.clone(),
        median: row.p50_us.map(Duration::from_micros),
    }
}

/// A section without rows is left out.
fn add_table(page: &mut String, Section { title, head, words, rows }: &Section) {
    if rows.is_empty() {
        return;
    }
    let columns = head.iter().take_while(|cell| !cell.is_empty()).count();
    let class = |column: usize| if column < *words { "" } else { " class=\"number\"" };
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>",
        Escaped(title)
    );
    for (column, cell) in head[..columns].iter().enumerate() {
        let _ = write!(page, "<th scope=\"col\"{}>{}</th>", class(column), Escaped(cell));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for (column, cell) in row[..columns].iter().enumerate() {
            let _ = write!(page, "<td{}>{}</td>", class(column), Escaped(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use ring::digest::{SHA256, digest};

    use super::*;

    #[test]
    fn policy_names_the_style_that_the_page_has() {
        let hash = BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
        assert_eq!(STYLE_HASH, format!("sha256-{hash}"));
        assert!(!STYLE.contains('<') && !STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
