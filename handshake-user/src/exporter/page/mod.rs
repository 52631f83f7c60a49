//! The page `/`, for a reader: what `/metrics` counts, what happened of late and to whom, and the latest slow
//! and failed connections.
//!
//! It is drawn whole by the daemon, so it can be read without scripts; with them it draws itself anew. Every
//! text of others goes through [`Escaped`].

mod attached;
mod chart;
mod connections;
mod counts;
mod distribution;
mod groups;
mod history;
mod lately;
mod table;

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use handshake_common::Role;
use humantime::FormattedDuration;
use prometheus::proto::MetricFamily;

use self::history::{Kind, roles};
pub use self::{
    attached::{Attached, Probe},
    lately::{Lately, Shown},
};
use crate::{
    output::{markup::Escaped, rows::per_second},
    report::html::{STYLE as LADDER_STYLE, STYLE_HASH as LADDER_STYLE_HASH},
    untrusted::Untrusted,
};

const STYLE: &str = include_str!("page.css");
const STYLE_HASH: &str = "sha256-v2xzEyPmPtSdj7xnKR7DnormiWSQItqcz2fS8V5ocpw=";
const SCRIPT: &str = include_str!("page.js");
const SCRIPT_HASH: &str = "sha256-faOo7uQ30j++AtSO6IwQqW82YkvA3jgffvFEt/ihNIA=";

/// What the page shows.
#[derive(Debug)]
pub struct Facts {
    /// When all of this was so.
    pub now: SystemTime,
    /// The host's name.
    pub host: Option<Untrusted>,
    /// Why the daemon is not healthy or not ready, if so.
    pub trouble: Option<String>,
    /// What is attached; `None` while it is being attached.
    pub attached: Option<Attached>,
    /// The metrics, as they are gathered for `/metrics`.
    pub families: Vec<MetricFamily>,
    /// What happened of late.
    pub shown: Shown,
}

/// The page's `Content-Security-Policy`: its own styles and script, and requests to itself.
#[must_use]
pub fn policy() -> String {
    format!(
        "default-src 'none'; style-src '{LADDER_STYLE_HASH}' '{STYLE_HASH}'; script-src '{SCRIPT_HASH}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The whole page.
#[must_use]
pub fn html(facts: &Facts) -> String {
    let host = facts.host.as_ref().map_or_else(|| "this host".to_owned(), Untrusted::to_string);
    let host = Escaped(&host);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>handshake · {host}</title>\n\
         <style>{LADDER_STYLE}</style>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header>\n<h1>handshake on {host}</h1>\n\
         <p>How its connections open and close: TCP, TLS and what they cost in time, seen in the kernel.</p>\n\
         <nav aria-label=\"Other pages\"><a href=\"metrics\">metrics</a> <a href=\"config\">configuration</a> \
         <a href=\"healthz\">health</a> <a href=\"readyz\">readiness</a></nav>\n\
         <p><button type=\"button\" hidden>Pause updates</button> <output></output>\
         <noscript>Without scripts this page stands still: load it again for newer numbers.</noscript></p>\n\
         </header>\n<main id=\"main\" tabindex=\"-1\">\n"
    );
    let now = humantime::format_rfc3339_seconds(facts.now);
    let _ = writeln!(page, "<p class=\"soft\">As of <time>{now}</time>.</p>");
    attached::add(&mut page, facts.trouble.as_deref(), &facts.families, facts.attached.as_ref());
    lately(&mut page, &facts.shown);
    groups::add(&mut page, &facts.shown);
    counts::add(&mut page, &facts.families);
    connections::add(&mut page, &facts.shown);
    let _ = write!(page, "{HELP}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

/// Charts, and the same numbers in sum.
fn lately(page: &mut String, shown: &Shown) {
    page.push_str("<h2 id=\"lately\">The last five minutes</h2>\n");
    let Some(all) = shown.history.all() else {
        page.push_str("<p class=\"soft\">Nothing yet: counts are taken every five seconds.</p>\n");
        return;
    };
    let _ = writeln!(page, "<p class=\"legend\">{}</p>\n<div class=\"charts\">", chart::legend());
    for kind in Kind::ALL {
        let chart = chart::rate(&shown.history, kind);
        let _ = writeln!(page, "<figure><figcaption>{}</figcaption>{chart}</figure>", kind.title());
    }
    page.push_str("</div>\n");
    let length = whole_seconds(all.length);
    let _ = writeln!(page, "<p class=\"soft\">In the {length} that are drawn:</p>");
    let has =
        |role: &Option<Role>| role.is_some() || Kind::ALL.iter().any(|&kind| all.counts.get(kind, *role) > 0);
    let roles: Vec<_> = roles().filter(has).collect();
    let heads: Vec<_> = roles.iter().map(|role| role.map_or("role unknown", |role| role.as_str())).collect();
    table::begin(page, "lately-counts", "Counts of the last five minutes", &["what"], &heads);
    for kind in Kind::ALL {
        let _ = write!(page, "<tr><th scope=\"row\">{}</th>", kind.title());
        for &role in &roles {
            let (count, rate) = (all.counts.get(kind, role), per_second(all.rate(kind, role)));
            let _ = write!(
                page,
                "<td class=\"number\">{count} <span class=\"soft\">({}/s)</span></td>",
                Escaped(&rate)
            );
        }
        page.push_str("</tr>\n");
    }
    table::end(page);
}

fn whole_seconds(length: Duration) -> FormattedDuration {
    humantime::format_duration(Duration::from_secs(length.as_secs()))
}

const HELP: &str = "<h2 id=\"help\">How to read this</h2>\n<dl class=\"help\">\n\
    <dt>opening</dt><dd>TCP's handshake, from the SYN (a server: its SYN-ACK) until the connection is established.</dd>\n\
    <dt>setup</dt><dd>From the start of the opening until the client may send application data: with TLS, \
    until its handshake allows that.</dd>\n\
    <dt>role</dt><dd>Of this host. A connection within the host has both ends here, and is counted for each.</dd>\n\
    <dt>≤, &gt;</dt><dd>Durations of all connections are counted in buckets: half of them, or 99 of 100, took at \
    most the upper bound that is shown, and not much less only if the bucket is narrow. Of groups, \
    durations are at most 1 % too long.</dd>\n\
    <dt>round trips</dt><dd>What a setup took, and the fewest that the same two ends could have taken: with TLS \
    1.3, resumption with early data, or TCP Fast Open.</dd>\n\
    <dt>slow</dt><dd>An opening or a setup that took longer than the network explains: a SYN was lost, or a \
    program let the other end wait.</dd>\n\
    <dt>unknown, ?, -</dt><dd>What could not be known for certain: nothing is guessed.</dd>\n\
    <dt>keyboard</dt><dd>Tab goes from one table or connection to the next, the arrows scroll within a table, \
    Enter opens a connection. Updates go on meanwhile, and the place is kept; the button at the top \
    pauses them.</dd>\n</dl>\n\
    <p>The whole host live, with every connection: <code>handshake top</code>. One connection after the other: \
    <code>handshake trace</code>. What is missing on this host and why: <code>handshake check</code>.</p>\n";

#[cfg(test)]
mod tests;
