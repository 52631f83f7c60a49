//! Who opens connections, and how they fare: the table of `handshake top`.

use std::fmt::Write as _;

use super::{
    lately::{Groups, Shown, Table},
    table, whole_seconds,
};
use crate::{
    aggregate::Grouping,
    output::{
        markup::Escaped,
        rows::{Column, RowId},
    },
};

/// The columns, where every connection has a record.
const ALL: [Column; 15] = [
    Column::Name,
    Column::Role,
    Column::Openings,
    Column::Failed,
    Column::Retransmits,
    Column::Tls,
    Column::TlsFailed,
    Column::Tls13,
    Column::Tls12,
    Column::Older,
    Column::Resumed,
    Column::P50,
    Column::P99,
    Column::RoundTrips,
    Column::Resets,
];

/// Those that only a record of every connection can fill.
const NEED_ALL: [Column; 3] = [Column::Openings, Column::Failed, Column::Retransmits];

const fn heading(column: Column, grouping: Grouping) -> &'static str {
    match column {
        Column::Name => grouping.as_str(),
        Column::Role => "role",
        Column::Openings => "openings/s",
        Column::Failed => "failed",
        Column::Retransmits => "SYNs again",
        Column::Tls => "TLS",
        Column::TlsFailed => "TLS failed",
        Column::Full => "full",
        Column::Resumed => "resumed",
        Column::Retried => "retried",
        Column::Tls13 => "1.3",
        Column::Tls12 => "1.2",
        Column::Older => "≤ 1.1",
        Column::P50 => "setup p50",
        Column::P99 => "p99",
        Column::RoundTrips => "round trips",
        Column::Resets => "resets",
    }
}

pub(super) fn add(page: &mut String, shown: &Shown) {
    page.push_str("<h2 id=\"groups\">By process and by service</h2>\n");
    page.push_str(if shown.all_records {
        "<p>Every connection has a record here.</p>\n"
    } else {
        "<p>Of connections with TLS: the kernel itself counts and times all others, without their names. To see \
         the openings, failures and retransmitted SYNs of each process and service too, set a label on demand, \
         such as <code>labels = [\"process\"]</code>, or run <code>handshake top</code>.</p>\n"
    });
    let columns: Vec<_> =
        ALL.into_iter().filter(|column| shown.all_records || !NEED_ALL.contains(column)).collect();
    for Groups { grouping, lately, total } in &shown.groups {
        let by = grouping.as_str();
        let _ = writeln!(page, "<h3>By {by}, the last {}</h3>", whole_seconds(lately.length));
        rows(page, &format!("by-{by}"), &columns, *grouping, lately);
        let _ = writeln!(
            page,
            "<details id=\"by-{by}-since\"><summary>By {by}, since the daemon started ({} ago)</summary>",
            whole_seconds(total.length)
        );
        rows(page, &format!("by-{by}-total"), &columns, *grouping, total);
        page.push_str("</details>\n");
    }
    page.push_str("<details id=\"columns\"><summary>What the columns mean</summary>\n<dl class=\"help\">\n");
    for column in columns {
        let (name, meaning) = (heading(column, Grouping::Process), Escaped(column.meaning()));
        let _ = writeln!(page, "<dt>{name}</dt><dd>{meaning}</dd>");
    }
    page.push_str(
        "</dl>\n<p>A service is a server's port; a client's peer, by its port and the server name that was asked \
         for. Groups beyond 32 are counted in one row.</p>\n</details>\n",
    );
}

fn rows(page: &mut String, id: &str, columns: &[Column], grouping: Grouping, table: &Table) {
    if table.rows.is_empty() {
        page.push_str("<p class=\"soft\">None.</p>\n");
        return;
    }
    let name = |column: &Column| heading(*column, grouping);
    let is_word = |column: &&Column| !column.is_number();
    let words: Vec<_> = columns.iter().filter(is_word).map(name).collect();
    let numbers: Vec<_> = columns.iter().filter(|column| column.is_number()).map(name).collect();
    table::begin(page, id, &format!("Connections by {}", grouping.as_str()), &words, &numbers);
    for row in &table.rows {
        page.push_str("<tr>");
        for column in columns {
            let text = column.text(row);
            let zero = if text == "0" { " soft" } else { "" };
            let text = Escaped(&text);
            let _ = match column {
                Column::Name if row.id == RowId::Rest => write!(page, "<th scope=\"row\">all others</th>"),
                Column::Name => write!(page, "<th scope=\"row\">{text}</th>"),
                _ if column.is_number() => write!(page, "<td class=\"number{zero}\">{text}</td>"),
                _ => write!(page, "<td>{text}</td>"),
            };
        }
        page.push_str("</tr>\n");
    }
    super::table::end(page);
}
