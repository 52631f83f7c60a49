//! A connection as a ladder of its segments, drawn from the end whose record it is.

mod close;
mod draw;
mod handshake;
mod open;
mod seen;
mod segments;
mod step;
mod svg;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use handshake_common::{Outcome, Role, TlsOutcome};

use super::text::{columns, duration, endpoint, wrap};
use crate::{
    event::{Certificate, ConnectionEvent, Tls},
    join::advice::{self, Advice},
    untrusted::{Untrusted, escape},
};

/// Columns that text keeps to.
const WIDTH: usize = 96;
/// Longer names are cut; server names may have 255 characters.
const MAX_NAME: usize = 48;

/// What the signs mean.
#[must_use]
pub const fn legend() -> &'static str {
    "▶ sent and ◀ received by the end whose record it is, at the time since its SYN (on a server: since its SYN-ACK).
Plain times were measured; ~ follows from them by the protocol, if nobody waits; ? is unknown.
"
}

/// The ladder of one connection and what would have made it faster: several lines, each ending in a newline.
#[must_use]
pub fn draw(record: &ConnectionEvent) -> String {
    let mut text = header(record);
    let scale = draw::Scale::of(scale(record));
    for step in shown_steps(record) {
        text.push_str(&draw::line(&step, scale));
        text.push('\n');
    }
    for saving in savings(record) {
        let _ = writeln!(text, "    {saving}");
    }
    text
}

/// The ladder as an `<svg>` element. Its colours are the page's, by the classes `end`, `sent`, `received`,
/// `here`, `at`, `about` (a time that was derived) and `remark`.
#[must_use]
pub fn svg(record: &ConnectionEvent) -> String {
    let label = format!("{}: {}", who(record), how(record));
    svg::picture(&label, shown_steps(record), draw::Scale::of(scale(record)))
}

/// The segments, with names that are safe to show.
fn shown_steps(record: &ConnectionEvent) -> impl Iterator<Item = step::Step> {
    segments::steps(record).into_iter().map(|step| step::Step { what: escape(&step.what, MAX_NAME), ..step })
}

/// What would have made the connection faster, a line for each setting.
pub fn savings(record: &ConnectionEvent) -> impl Iterator<Item = String> {
    advice::advise(record).into_iter().map(|Advice { setting, round_trips, time }| {
        format!("saves {}: {}", saving(round_trips, time), setting.text())
    })
}

/// What became known after the socket of a connection, whose ladder up to there was drawn when it closed.
#[must_use]
pub fn draw_rest(record: &ConnectionEvent) -> String {
    let mut text = header(record);
    let scale = draw::Scale::of(scale(record));
    for step in segments::closing(record) {
        text.push_str(&draw::line(&step, scale));
        text.push('\n');
    }
    text
}

/// How much: round trips, time, or both.
fn saving(round_trips: u8, time: Option<Duration>) -> String {
    let trips = match round_trips {
        0 => String::new(),
        1 => "1 round trip".to_owned(),
        many => format!("{many} round trips"),
    };
    match (round_trips, time) {
        (0, None) => "time".to_owned(),
        (0, time) => duration(time),
        (_, None) => trips,
        (_, time) => format!("{trips} ({})", duration(time)),
    }
}

/// Who speaks with whom, and how it went.
fn header(record: &ConnectionEvent) -> String {
    let (who, how) = (who(record), how(record));
    let gap = WIDTH.saturating_sub(columns(&who) + columns(&how));
    let mut text = if gap >= 2 {
        format!("{who}{}{how}\n", " ".repeat(gap))
    } else {
        format!("{}\n    {how}\n", wrap(&who, WIDTH, 4))
    };
    if let Some(tls) = &record.tls {
        // No line ends inside of a fact.
        let whole: Vec<_> =
            tls_facts(tls, record.time).iter().map(|fact| fact.replace(' ', "\u{a0}")).collect();
        let facts = wrap(&whole.join("\u{a0}· "), WIDTH - 4, 4).replace('\u{a0}', " ");
        let _ = writeln!(text, "    {facts}");
    }
    text
}

/// Which host's record it is: a line for above a ladder, where there are several hosts.
#[must_use]
pub fn host(record: &ConnectionEvent) -> String {
    format!("host {}", record.host.as_ref().map_or_else(|| "?".to_owned(), name))
}

/// Who speaks with whom.
#[must_use]
pub fn who(record: &ConnectionEvent) -> String {
    let process = record.process.as_ref().map_or_else(
        || "process unknown".to_owned(),
        |process| format!("{}/{}", process.comm.as_ref().map_or_else(|| "?".to_owned(), name), process.pid),
    );
    let ends = match (record.local, record.remote) {
        (Some(local), Some(remote)) => {
            let arrow = match record.role {
                Some(Role::Client) => '→',
                Some(Role::Server) => '←',
                None => '↔',
            };
            format!("{} {arrow} {}", endpoint(local), endpoint(remote))
        }
        _ => "socket unknown".to_owned(),
    };
    let role = record.role.map_or("role unknown", |role| role.as_str());
    let tls_role = record.tls.as_ref().and_then(|tls| tls.role).filter(|_| advice::has_two_roles(record));
    let tls_role = tls_role.map_or_else(String::new, |role| format!(", TLS {role}"));
    format!("{process} {ends} {role}{tls_role}")
}

/// How it went.
#[must_use]
pub fn how(record: &ConnectionEvent) -> String {
    let mut said = Vec::new();
    let failure = record.open.as_ref().and_then(|open| open.outcome).filter(|&it| it != Outcome::Established);
    let failed_tls = record.tls.as_ref().filter(|tls| tls.outcome != Some(TlsOutcome::Completed));
    if let Some(outcome) = failure {
        let took = record.open.as_ref().and_then(|open| open.duration);
        return format!("{outcome} after {}", duration(took));
    }
    if record.preexisting {
        said.push("from before the trace".to_owned());
    } else if let Some(setup) = record.setup {
        said.push(format!("setup {}", duration(setup.duration)));
    } else if let Some(open) = &record.open {
        said.push(format!("opening {}", duration(open.duration)));
    }
    if let Some(tls) = failed_tls {
        said.push(format!("TLS {}", tls.outcome.map_or("?", |outcome| outcome.as_str())));
    } else if let Some(tls) = record.tls.as_ref().filter(|_| record.setup.is_none()) {
        said.push(format!("TLS {}", duration(tls.duration)));
    }
    let trips = |many: u8| if many == 1 { "1 round trip".to_owned() } else { format!("{many} round trips") };
    if failed_tls.is_none()
        && let (Some(taken), Some(possible)) = (advice::taken(record), advice::possible(record))
    {
        said.push(format!("{} (possible: {possible})", trips(taken)));
    }
    said.join(" · ")
}

/// What is known of the TLS handshake at that time, in a few words each.
#[must_use]
pub fn tls_facts(tls: &Tls, time: SystemTime) -> Vec<String> {
    let mut facts = Vec::new();
    facts.push(
        tls.version.map_or_else(|| "TLS, version unknown".to_owned(), |version| format!("TLS {version}")),
    );
    if tls.outcome == Some(TlsOutcome::Completed) {
        facts.push(tls.class.map_or("class unknown", |class| class.as_str()).to_owned());
    }
    if tls.round_trips.is_some() || tls.duration.is_some() {
        facts.push(format!("took {}", duration(tls.duration)));
    }
    if tls.compute.is_some() {
        facts.push(format!("computed {}", duration(tls.compute)));
    }
    if let Some(held) = tls.held.filter(|held| !held.is_zero()) {
        facts.push(format!("last flight held {}", duration(Some(held))));
    }
    facts.extend(tls.cipher.as_ref().map(name));
    facts.extend(tls.group.as_ref().map(name));
    facts.extend(tls.signature.as_ref().map(|scheme| format!("signed with {}", name(scheme))));
    facts.extend(tls.certificate.as_ref().map(|certificate| certificate_fact(certificate, time)));
    facts.extend(tls.sni.as_ref().map(|sni| format!("sni {}", name(sni))));
    facts.extend(tls.alpn.as_ref().map(|alpn| format!("alpn {}", name(alpn))));
    facts.extend(tls.library.map(|library| library.as_str().to_owned()));
    facts
}

/// The key of a certificate and until when it is valid; in days where it ends soon, or has ended.
fn certificate_fact(certificate: &Certificate, time: SystemTime) -> String {
    /// Time enough to renew it.
    const SOON: u64 = 14;
    let Certificate { not_after, key_type, key_bits, curve, .. } = certificate;
    let days = |time: Duration| time.as_secs() / 86_400;
    let date = humantime::format_rfc3339_seconds(*not_after).to_string();
    let date = date.split('T').next().unwrap_or_default();
    let until = match not_after.duration_since(time).map(days) {
        Ok(left @ 0..=SOON) => format!("ends in {left} {} ({date})", if left == 1 { "day" } else { "days" }),
        Ok(_) => format!("until {date}"),
        Err(_) => format!("EXPIRED on {date}"),
    };
    let bits = key_bits.map(|bits| format!(" {bits}")).unwrap_or_default();
    let curve = curve.as_ref().map(|curve| format!(" {}", name(curve))).unwrap_or_default();
    let key = key_type.as_ref().map(|kind| format!("{}{bits}{curve} ", name(kind))).unwrap_or_default();
    format!("{key}certificate {until}")
}

/// An untrusted name, cut if it is too long.
fn name(text: &Untrusted) -> String {
    format!("{text:.MAX_NAME$}")
}

/// The duration that decides how finely times are shown.
fn scale(record: &ConnectionEvent) -> Option<Duration> {
    let open = record.open.as_ref().and_then(|open| open.duration);
    let tls = record.tls.as_ref().and_then(|tls| tls.duration);
    open.max(tls)
}
