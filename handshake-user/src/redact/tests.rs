use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use clap::ValueEnum as _;
use handshake_common::{Role, TlsClass, TlsVersion};
use proptest::prelude::*;

use super::*;
use crate::{
    cgroup::Names,
    config::{self, Config},
    event::testing::{closed, opened, waited, with_tls},
    exporter::{
        metrics::{Format, Metrics},
        page::{self, Facts, Lately},
    },
    output::{
        ladder,
        table::{Column, Table},
        text::endpoint,
    },
    report::{Collector, Missing, html, text},
    untrusted,
};

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn redactor(redaction: &str) -> Redactor {
    with_key(redaction, KEY)
}

fn with_key(redaction: &str, key: &[u8]) -> Redactor {
    Redactor { redaction: redaction.parse().unwrap(), key: Some(Hmac::new_from_slice(key).unwrap()) }
}

/// The values of one connection that can be redacted.
#[derive(Clone, Debug)]
struct Values {
    addrs: [Address; 2],
    sni: String,
    comm: String,
    /// Path, unit, container, pod.
    cgroup: [String; 4],
    /// Name and boot.
    host: [String; 2],
}

impl Values {
    /// Records of every stage, of both ends.
    fn events(&self) -> Vec<ConnectionEvent> {
        let stages = |role| {
            let tls = with_tls(role, TlsVersion::Tls12, TlsClass::Full);
            [opened(role), tls, closed(role), waited(role)]
        };
        let mut events: Vec<_> = [Role::Client, Role::Server].into_iter().flat_map(stages).collect();
        for event in &mut events {
            let [path, unit, container_id, pod_uid] =
                self.cgroup.each_ref().map(|name| Some(Untrusted::from(name.as_str())));
            let process = event.process.as_mut().unwrap();
            (process.comm, process.cgroup) = (Some(self.comm.as_str().into()), path);
            process.names = Names { unit, container_id, pod_uid };
            let [host, boot_id] = self.host.each_ref().map(|name| Some(Untrusted::from(name.as_str())));
            (event.host, event.boot_id) = (host, boot_id);
            for (end, addr) in [&mut event.local, &mut event.remote].into_iter().zip(self.addrs) {
                end.as_mut().unwrap().addr = Some(addr);
            }
            event.family = Some(self.addrs[0].family());
            if let Some(tls) = &mut event.tls {
                tls.sni = Some(self.sni.as_str().into());
            }
        }
        events
    }

    fn of(&self, field: Field) -> Vec<String> {
        match field {
            Field::Addr => self.addrs.iter().map(Address::to_string).collect(),
            Field::Sni => vec![self.sni.clone()],
            Field::Comm => vec![self.comm.clone()],
            Field::Cgroup => self.cgroup.to_vec(),
            Field::Host => self.host.to_vec(),
        }
    }
}

/// Everything that the program makes of events, form by form.
fn shown(redactor: &Redactor, events: Vec<ConnectionEvent>) -> Vec<(&'static str, String)> {
    let host = redactor.host(events[0].host.clone());
    let events: Vec<_> = events.into_iter().map(|event| redactor.event(event)).collect();
    let (mut json, mut table, mut ladders, mut pictures) = <(String, String, String, String)>::default();
    let lines = Table::of_hosts(Column::value_variants(), None, true);
    let labels = config::Metrics { labels: Label::ALL.to_vec(), ..Config::default().metrics };
    let mut metrics = Metrics::new(&labels).unwrap();
    metrics.fill_from_records();
    let mut lately = Lately::new(Duration::ZERO);
    lately.set_all_records(true);
    let mut collector = Collector::default();
    for event in &events {
        json += &untrusted::json(serde_json::to_string(event).unwrap());
        table += &lines.line(event);
        let _ = write!(ladders, "{}{}", ladder::host(event), ladder::draw(event));
        let _ = write!(pictures, "{}{}", ladder::who(event), ladder::svg(event));
        metrics.observe(event);
        lately.take(event.clone(), Duration::ZERO);
        collector.take(event.clone());
    }
    let report = collector.finish(Missing::default());
    let facts = Facts {
        now: SystemTime::UNIX_EPOCH,
        host,
        trouble: None,
        attached: None,
        families: metrics.gather(),
        shown: lately.shown(Duration::ZERO),
    };
    vec![
        ("records", json),
        ("table", table),
        ("ladders", ladders),
        ("pictures", pictures),
        ("metrics", metrics.render(Format::Text).unwrap()),
        ("page", page::html(&facts)),
        ("report as text", text::text(&report)),
        ("report as a page", html::html(&report)),
        ("report as JSON", serde_json::to_string(&report).unwrap()),
    ]
}

/// Values that nothing else in the output looks like.
fn values() -> impl Strategy<Value = Values> {
    let name = || "z[k-z]{9}q";
    let v4 = || any::<u8>().prop_map(|last| format!("203.0.113.{}", last | 128));
    let v6 = || any::<u16>().prop_map(|last| format!("2001:db8:77:1::{:x}", last | 0x8000));
    let ends = prop_oneof![(v4(), v4()), (v6(), v6())];
    (ends, name(), name(), [name(), name(), name(), name()], [name(), name()]).prop_map(
        |((a, b), sni, comm, [path, unit, container, pod], host)| Values {
            addrs: [a, b].map(|text| text.parse().unwrap()),
            // Whatever the case that the client chose.
            sni: format!("{}.Example.ORG", sni.to_ascii_uppercase()),
            comm,
            cgroup: [format!("/{path}.slice"), format!("{unit}.service"), container, pod],
            host,
        },
    )
}

fn ways() -> impl Strategy<Value = Redaction> {
    let names = prop::sample::select(&[None, Some(Way::Hash), Some(Way::Drop)][..]);
    let addr = prop::sample::select(&[None, Some(Way::Hash), Some(Way::Prefix), Some(Way::Drop)][..]);
    (addr, [names.clone(), names.clone(), names.clone(), names])
        .prop_map(|(addr, [sni, comm, cgroup, host])| Redaction([addr, sni, comm, cgroup, host]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_value_of_a_redacted_field_is_in_any_output(values in values(), redaction in ways()) {
        let redactor = Redactor { redaction, ..redactor("none") };
        let forms = shown(&redactor, values.events());
        for field in Field::ALL {
            for value in values.of(field) {
                let value = value.to_ascii_lowercase();
                let is_in = |text: &str| text.to_ascii_lowercase().contains(&value);
                if redaction.of(field).is_some() {
                    let found = forms.iter().find(|(_, text)| is_in(text));
                    prop_assert!(found.is_none(), "{field:?} {value} in {found:?}");
                } else {
                    // Else the test would find nothing in anything.
                    prop_assert!(is_in(&forms[0].1), "{field:?} {value} not in {}", forms[0].1);
                }
            }
        }
    }

    #[test]
    fn redacted_records_can_be_read_again(values in values(), redaction in ways()) {
        let redactor = Redactor { redaction, ..redactor("none") };
        for event in values.events() {
            let event = redactor.event(event);
            let json = serde_json::to_string(&event).unwrap();
            prop_assert!(!json.contains("null"), "{json}");
            prop_assert_eq!(serde_json::from_str::<ConnectionEvent>(&json).unwrap(), event);
        }
    }
}

/// A connection with names in all fields.
fn sample() -> ConnectionEvent {
    let values = Values {
        addrs: ["192.0.2.7", "198.51.100.9"].map(|text| text.parse().unwrap()),
        sni: "Example.ORG".to_owned(),
        comm: "curl".to_owned(),
        cgroup: ["/system.slice/web.service", "web.service", "1f2e", "8d7c"].map(str::to_owned),
        host: ["web-1", "11111111-2222-3333-4444-555555555555"].map(str::to_owned),
    };
    values.events().remove(1)
}

#[test]
fn hash_is_that_of_a_tool_that_has_the_key() {
    let event = redactor("addr=hash,sni=hash,comm=hash").event(sample());
    let process = event.process.unwrap();
    // printf %s addr:192.0.2.7 | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    assert_eq!(event.local.unwrap().addr.unwrap().to_string(), "ipv4-d08029e935f0fa57");
    assert_eq!(event.tls.unwrap().sni, Some("hash-46eca3f4fecec97c".into()));
    assert_eq!(process.comm, Some("hash-7cafb35b12304318".into()));
    // What was not asked for stays.
    assert_eq!((event.host, process.names.unit), (Some("web-1".into()), Some("web.service".into())));
}

#[test]
fn same_value_has_the_same_hash_and_only_with_the_same_key() {
    let sni = |redactor: &Redactor, name: &str| {
        let mut event = sample();
        event.tls.as_mut().unwrap().sni = Some(name.into());
        redactor.event(event).tls.unwrap().sni.unwrap()
    };
    let (one, other) = (redactor("sni=hash"), with_key("sni=hash", b"another key of 32 bytes"));
    assert_eq!(sni(&one, "example.org"), sni(&one, "EXAMPLE.org"));
    assert_ne!(sni(&one, "example.org"), sni(&one, "example.com"));
    assert_ne!(sni(&one, "example.org"), sni(&other, "example.org"));
    // What is equal in two fields does not look so.
    let mut same = sample();
    same.host = Some("curl".into());
    let same = redactor("comm=hash,host=hash").event(same);
    assert_ne!(same.host, same.process.unwrap().comm);
}

#[test]
fn prefix_keeps_the_network_and_drop_nothing() {
    let ends = |redaction: &str| {
        let event = redactor(redaction).event(sample());
        [event.local, event.remote].map(|end| end.unwrap())
    };
    let texts = |redaction: &str| ends(redaction).map(endpoint);
    assert_eq!(texts("addr=prefix"), ["192.0.2.0/24:51000", "198.51.100.0/24:443"]);
    assert_eq!(texts("addr=drop"), ["?:51000", "?:443"]);
    let dropped = redactor("sni=drop,comm=drop,cgroup=drop,host=drop").event(sample());
    let process = dropped.process.unwrap();
    assert_eq!((dropped.host, dropped.boot_id, dropped.tls.unwrap().sni), (None, None, None));
    assert_eq!((process.comm, process.cgroup, process.names), (None, None, Names::default()));
    assert_eq!(process.pid, 1234);
}

#[test]
fn root_of_the_cgroups_is_nobodys_name() {
    let mut event = sample();
    event.process.as_mut().unwrap().cgroup = Some("/".into());
    assert_eq!(redactor("cgroup=hash").event(event).process.unwrap().cgroup, Some("/".into()));
}

#[test]
fn filters_are_asked_of_the_true_values() {
    let filter = Filter { comm: Some("curl".into()), ..Filter::default() };
    let gate = Gate { filter, redactor: redactor("comm=drop") };
    assert_eq!(gate.pass(sample()).unwrap().process.unwrap().comm, None);
    let mut other = sample();
    other.process.as_mut().unwrap().comm = Some("wget".into());
    assert_eq!(gate.pass(other.clone()), None);
    let (weighed, passes) = gate.weigh(other);
    assert_eq!((weighed.process.unwrap().comm, passes), (None, false));
}

#[test]
fn setting_is_read_and_written_and_what_makes_no_sense_is_refused() {
    for text in ["none", "addr=prefix", "addr=hash,sni=drop,comm=hash,cgroup=drop,host=hash"] {
        assert_eq!(text.parse::<Redaction>().unwrap().to_string(), text);
    }
    assert_eq!("".parse::<Redaction>().unwrap(), Redaction::default());
    assert_eq!("sni=hash, addr=drop".parse::<Redaction>().unwrap().to_string(), "addr=drop,sni=hash");
    for (text, why) in [
        ("addr", "`addr` is not FIELD=WAY"),
        ("addr=", "`` is none of hash"),
        ("ip=hash", "`ip` is none of addr"),
        ("addr=hide", "`hide` is none of hash"),
        ("comm=prefix", "only addresses have a prefix"),
        ("sni=hash,sni=drop", "sni is redacted in one way only"),
        ("sni=hash,", "`` is not FIELD=WAY"),
    ] {
        let said = text.parse::<Redaction>().unwrap_err().to_string();
        assert!(said.contains(why), "{text}: {said}");
    }
}

#[test]
fn key_is_there_if_and_only_if_something_is_hashed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let key = file("key", &[KEY, b"\n"].concat());
    let new = |redaction: &str, key: &std::path::Path| {
        Redactor::new(&RedactSettings {
            redact: redaction.parse().unwrap(),
            redact_key: key.to_owned().into(),
        })
    };
    let read = new("addr=hash", &key).unwrap();
    assert_eq!(
        read.event(sample()),
        redactor("addr=hash").event(sample()),
        "its last line end is no part of it"
    );
    assert!(!format!("{read:?}").contains("0123"));
    assert!(new("addr=drop", "".as_ref()).is_ok() && new("none", "".as_ref()).is_ok());
    for (redaction, key, why) in [
        ("addr=hash", "".into(), "a hash needs a key"),
        ("addr=drop", key, "redact_key has no effect"),
        ("addr=hash", folder.path().join("missing"), "cannot read the redact_key"),
        ("addr=hash", file("short", b"0123456789abcde\n\n"), "less than 16 bytes"),
        ("addr=hash", "/dev/zero".into(), "cannot read the redact_key"),
    ] {
        let said = format!("{:#}", new(redaction, &key).unwrap_err());
        assert!(said.contains(why) && !said.contains('\n'), "{said}");
    }
}

#[test]
fn label_of_which_nothing_would_be_left_is_refused() {
    let leave = |redaction: &str, label| {
        let settings = RedactSettings { redact: redaction.parse().unwrap(), ..RedactSettings::default() };
        settings.leave(&[Label::LocalPort, label])
    };
    for label in [Label::Process, Label::Cgroup, Label::Unit, Label::ContainerId, Label::PodUid, Label::Sni] {
        assert!(leave("sni=hash,comm=hash,cgroup=hash,addr=drop", label).is_ok());
        let said = leave("sni=drop,comm=drop,cgroup=drop", label).unwrap_err().to_string();
        assert!(said.contains(label.as_str()) && said.contains("=hash, or"), "{said}");
    }
    assert!(leave("addr=prefix", Label::RemoteNet).is_ok());
    for lost in ["addr=hash", "addr=drop"] {
        let said = leave(lost, Label::RemoteNet).unwrap_err().to_string();
        assert!(said.contains("use addr=prefix"), "{said}");
    }
}
