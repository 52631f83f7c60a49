use handshake_common::{Role, TlsClass, TlsVersion};
use prometheus::{Histogram, HistogramOpts, core::Collector as _};
use ring::digest::{SHA256, digest};

use super::*;
use crate::{config::Config, exporter::metrics::Metrics, report::html::base64};

fn facts() -> Facts {
    let metrics = Metrics::new(&Config::default().metrics).unwrap();
    metrics.probe("cgroup_skb", "none", false);
    metrics.probe("inet_sock_set_state", "tp_btf", true);
    Facts {
        families: metrics.gather(),
        trouble: None,
        all_records: false,
        slow: Vec::new(),
        failed: Vec::new(),
    }
}

#[test]
fn policy_names_the_style_and_the_script_that_the_page_has() {
    for (text, hash) in [(STYLE, STYLE_HASH), (SCRIPT, SCRIPT_HASH)] {
        assert_eq!(hash, format!("sha256-{}", base64(digest(&SHA256, text.as_bytes()).as_ref())));
        assert!(!text.contains('<') && !text.contains("url("));
    }
    let page = html(&facts());
    assert!(
        page.contains(&format!("<style>{STYLE}</style>"))
            && page.contains(&format!("<script>{SCRIPT}</script>"))
    );
    assert_eq!(page.matches("<script").count(), 1);
}

#[test]
fn page_says_what_is_not_attached_and_what_has_not_happened() {
    let page = html(&facts());
    assert!(page.contains("<li>cgroup_skb</li>") && !page.contains("<li>inet_sock_set_state</li>"), "{page}");
    assert!(
        page.contains("No handshake has failed.") && page.contains("Only connections with TLS have a record")
    );
    let trouble = Some("<b>stuck</b>".to_owned());
    let page = html(&Facts { trouble, all_records: true, ..facts() });
    assert!(
        page.contains("&lt;b&gt;stuck&lt;/b&gt;") && page.contains("Every connection has a record"),
        "{page}"
    );
}

#[test]
fn names_of_others_are_shown_and_not_obeyed() {
    use crate::{event::testing, untrusted::Untrusted};
    let hostile = "\"><script>alert(1)</script><img src=x onerror=alert(1)>";
    let mut event = testing::with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    event.process.as_mut().unwrap().comm = Untrusted::from(hostile);
    let page = html(&Facts { failed: vec![Arc::new(event)], ..facts() });
    assert!(page.contains("&lt;script&gt;"), "{page}");
    assert_eq!((page.matches("<script").count(), page.matches("<img").count()), (1, 0), "{page}");
}

#[test]
fn quantile_is_the_bound_that_enough_values_do_not_exceed() {
    let histogram =
        Histogram::with_opts(HistogramOpts::new("a", "a").buckets(vec![0.001, 0.01, 2.0])).unwrap();
    (0..98).for_each(|_| histogram.observe(0.001));
    let told = |histogram: &Histogram| {
        let mut all = Distribution::default();
        all.add(&histogram.collect()[0].get_metric()[0]);
        (all.bound(50), all.bound(99))
    };
    assert_eq!(told(&histogram), ("≤ 1 ms".into(), "≤ 1 ms".into()));
    histogram.observe(0.002);
    histogram.observe(1.0);
    assert_eq!(told(&histogram), ("≤ 1 ms".into(), "≤ 10 ms".into()));
    (0..200).for_each(|_| histogram.observe(9.0));
    assert_eq!(told(&histogram), ("&gt; 2 s".into(), "&gt; 2 s".into()));
}
