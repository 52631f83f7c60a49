//! A report as one page that needs nothing else: no script, no font, no request.

use std::fmt::Write as _;

use super::{
    Report,
    text::{SAVINGS, SLOWEST, Section, heading, saved, sections},
};
use crate::output::{ladder, markup::Escaped};

pub(crate) const STYLE: &str = include_str!("report.css");
/// The only style that the page may use, by its SHA-256.
pub(crate) const STYLE_HASH: &str = "sha256-OmI/A4e5WCSz77TwIx0LkugN60ZZWxcuhAKEm629m0o=";

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
    page.push_str("</body>\n</html>\n");
    page
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
