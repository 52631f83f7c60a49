use base64::{Engine as _, prelude::BASE64_STANDARD};
use handshake_common::{Role, TlsClass, TlsOutcome, TlsVersion};
use ring::digest::{SHA256, digest};

use super::*;
use crate::{
    config::Config,
    event::{ConnectionEvent, testing},
    exporter::metrics::Metrics,
};

const NOW: Duration = Duration::from_hours(1);

fn facts(all_records: bool, events: Vec<ConnectionEvent>) -> Facts {
    let mut metrics = Metrics::new(&Config::default().metrics).unwrap();
    let mut lately = Lately::new(NOW);
    lately.set_all_records(all_records);
    for event in events {
        metrics.observe(&event);
        lately.take(event, NOW);
    }
    let probe =
        |name, missing| Probe { name, kind: "tp_btf", lost_without: "how connections closed", missing };
    Facts {
        now: SystemTime::UNIX_EPOCH,
        host: Some("build-7".into()),
        trouble: None,
        attached: Some(Attached {
            probes: vec![
                probe("inet_sock_set_state", None),
                probe("tcp_send_reset", Some("<no>".to_owned())),
            ],
            notes: vec!["a <note>".to_owned()],
        }),
        families: metrics.gather(),
        shown: lately.shown(NOW),
    }
}

/// A handshake of a client, by a process of this name, which failed.
fn failed(comm: &str) -> ConnectionEvent {
    let mut event = testing::with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    event.process.as_mut().unwrap().comm = Some(comm.into());
    (event.tls.as_mut().unwrap().outcome, event.setup) = (Some(TlsOutcome::Failed), None);
    event
}

#[test]
fn policy_names_the_style_and_the_script_that_the_page_has() {
    for (text, hash) in [(STYLE, STYLE_HASH), (SCRIPT, SCRIPT_HASH)] {
        assert_eq!(hash, format!("sha256-{}", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()))));
        assert!(!text.contains('<') && !text.contains("url(") && !text.contains("@import"));
    }
    let page = html(&facts(false, Vec::new()));
    assert!(page.contains(&format!("<style>{STYLE}</style>")));
    assert!(page.contains(&format!("<script>{SCRIPT}</script>")));
    assert_eq!((page.matches("<script").count(), page.matches("style=").count()), (1, 0));
}

#[test]
fn page_says_what_is_not_attached_what_is_lost_and_what_has_not_happened() {
    let page = html(&facts(false, Vec::new()));
    for said in [
        "<title>handshake · build-7</title>",
        "Healthy: ",
        "No record was lost.",
        "1 of 2 probes are attached",
        "Not attached: <code>tcp_send_reset</code> (&lt;no&gt;). Without it is unknown: how connections closed.",
        "a &lt;note&gt;",
        "counts are taken every five seconds",
        "No handshake has failed.",
        "Only connections with TLS have a record here",
        "set a label on demand",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let page =
        html(&Facts { trouble: Some("<b>stuck</b>".to_owned()), attached: None, ..facts(true, vec![]) });
    assert!(page.contains("&lt;b&gt;stuck&lt;/b&gt;") && !page.contains("Healthy: "), "{page}");
    assert!(
        page.contains("Every connection has a record here") && !page.contains("label on demand"),
        "{page}"
    );
}

#[test]
fn columns_that_need_every_record_are_there_with_every_record_only() {
    for all_records in [false, true] {
        let page = html(&facts(all_records, vec![failed("curl")]));
        assert!(page.contains("<th scope=\"row\">curl</th>"), "{page}");
        for column in ["openings/s", "failed", "SYNs again"] {
            let head = format!("<th scope=\"col\" class=\"number\">{column}</th>");
            assert_eq!(page.contains(&head), all_records, "{column}");
        }
    }
}

#[test]
fn names_of_others_are_shown_and_not_obeyed() {
    let hostile = "\"><script>alert(1)</script><img src=x onerror=alert(1)>";
    let mut event = failed(hostile);
    let tls = event.tls.as_mut().unwrap();
    (tls.sni, tls.cipher, tls.group) = (Some(hostile.into()), Some(hostile.into()), Some(hostile.into()));
    let mut facts = facts(false, vec![event]);
    facts.host = Some(hostile.into());
    let page = html(&facts);
    assert!(page.matches("&lt;script&gt;").count() >= 4, "{page}");
    assert_eq!((page.matches("<script").count(), page.matches("<img").count()), (1, 0), "{page}");
}

/// Whatever is shown: no element is left open, and no two have one id, which is what an update goes by.
#[test]
fn elements_are_closed_and_ids_are_unique() {
    let many = (0..40).map(|number| {
        let mut event = failed(&format!("<p{number}"));
        event.id = crate::event::ConnectionId::of_socket(number, 0);
        event
    });
    let page = html(&facts(true, many.collect()));
    let (mut open, mut ids) = (Vec::new(), std::collections::BTreeSet::new());
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap();
        let is_void = ["!DOCTYPE", "meta", "br"].contains(&name) || tag.ends_with('/');
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !is_void {
            open.push(name);
        }
        if let Some((_, id)) = tag.split_once(" id=\"") {
            assert!(ids.insert(id.split('"').next().unwrap()), "{tag}");
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(page.matches("class=\"connection\"").count(), 16);
    assert!(page.contains("all others"), "groups are bounded");
}
