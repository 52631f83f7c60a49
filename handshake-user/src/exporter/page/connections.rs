//! The latest slow and failed connections, as ladders.

use std::{fmt::Write as _, sync::Arc};

use super::lately::Shown;
use crate::{
    event::ConnectionEvent,
    output::{ladder, markup::Escaped},
};

pub(super) fn add(page: &mut String, shown: &Shown) {
    let scope = if shown.all_records {
        "Every connection has a record here."
    } else {
        "Only connections with TLS have a record here: an opening that TCP itself failed is in the counts above, \
         not below."
    };
    let _ = writeln!(
        page,
        "<h2 id=\"connections\">Latest connections</h2>\n<p>{scope} At most 16 of each kind are kept, in memory only.</p>\n\
         <details id=\"legend\"><summary>How to read a ladder</summary>\n<p>This end is to the left, the peer to \
         the right, time goes down."
    );
    for line in ladder::legend().lines() {
        let _ = writeln!(page, "<br>{}", Escaped(line));
    }
    page.push_str("</p>\n</details>\n");
    ladders(page, "failed", "Failed", "No handshake has failed.", &shown.failed);
    ladders(page, "slow", "Slow", "None took longer than the network explains.", &shown.slow);
}

fn ladders(page: &mut String, id: &str, title: &str, none: &str, records: &[Arc<ConnectionEvent>]) {
    let _ = writeln!(page, "<h3 id=\"{id}\">{title}</h3>");
    if records.is_empty() {
        let _ = writeln!(page, "<p class=\"soft\">{none}</p>");
    }
    for (number, record) in records.iter().enumerate() {
        let time = humantime::format_rfc3339_seconds(record.time);
        let open = if number == 0 { " open" } else { "" };
        let _ = writeln!(
            page,
            "<details class=\"connection\" id=\"{id}-{}\"{open}><summary><time>{time}</time> <strong>{}</strong> \
             <span class=\"soft\">{}</span></summary>",
            Escaped(&record.id.to_string()),
            Escaped(&ladder::who(record)),
            Escaped(&ladder::how(record))
        );
        if let Some(tls) = &record.tls {
            let _ = writeln!(
                page,
                "<p class=\"soft\">{}</p>",
                Escaped(&ladder::tls_facts(tls, record.time).join(" · "))
            );
        }
        for saving in ladder::savings(record) {
            let _ = writeln!(page, "<p class=\"soft\">{}</p>", Escaped(&saving));
        }
        let _ = writeln!(page, "{}</details>", ladder::svg(record));
    }
}
