//! What completed handshakes agreed on. The peer can choose from thousands of suites and groups, so the
//! number of series is limited.

use std::collections::HashMap;

use handshake_common::{Role, TlsVersion};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::labels::{Key, Labels, OTHER, shown};
use crate::{config, event::Tls, untrusted::Untrusted};

const UNKNOWN: &str = "unknown";

/// `handshake_tls_negotiated_total`.
pub(super) struct Negotiated {
    family: IntCounterVec,
    counters: HashMap<(Agreed, Option<Key>), IntCounter>,
    max_series: usize,
    labels: usize,
}

/// What one handshake agreed on.
#[derive(PartialEq, Eq, Hash)]
struct Agreed {
    role: Option<Role>,
    version: Option<TlsVersion>,
    cipher: Option<Untrusted>,
    group: Option<Untrusted>,
}

impl Negotiated {
    pub(super) fn new(
        registry: &Registry,
        settings: &config::Metrics,
        labels: &Labels,
    ) -> prometheus::Result<Self> {
        let names: Vec<_> =
            ["role", "version", "cipher", "group"].into_iter().chain(labels.names()).collect();
        let help = "Completed TLS handshakes, by what they agreed on.";
        let family = IntCounterVec::new(Opts::new("handshake_tls_negotiated_total", help), &names)?;
        registry.register(Box::new(family.clone()))?;
        let labels = labels.names().count();
        Ok(Self { family, counters: HashMap::new(), max_series: settings.max_series, labels })
    }

    /// Counts a completed handshake.
    pub(super) fn count(&mut self, tls: &Tls, labels: &Labels, key: Option<&Key>) {
        let Tls { role, version, cipher, group, .. } = tls;
        let agreed = Agreed { role: *role, version: *version, cipher: cipher.clone(), group: group.clone() };
        let place = (agreed, key.cloned());
        let role = role.map_or(UNKNOWN, Role::as_str).to_owned();
        let version = version.map_or(UNKNOWN, TlsVersion::as_str).to_owned();
        let mut values = vec![role, version];
        if !self.counters.contains_key(&place) && self.counters.len() >= self.max_series {
            labels.overflowed();
            values.resize(4 + self.labels, OTHER.to_owned());
            self.family.with_label_values(&values).inc();
            return;
        }
        self.counters
            .entry(place)
            .or_insert_with_key(|(agreed, key)| {
                let word = |word: &Option<Untrusted>| word.as_ref().map_or(UNKNOWN.to_owned(), shown);
                values.extend([word(&agreed.cipher), word(&agreed.group)]);
                values.extend(key.iter().flat_map(|key| labels.values(key)));
                self.family.with_label_values(&values)
            })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::TlsClass;
    use prometheus::TextEncoder;

    use super::*;
    use crate::join::{
        build::tests::{client, tls_event},
        view::{TlsView, tests::completed},
    };

    fn counted(max_series: usize, groups: impl IntoIterator<Item = Option<u16>>) -> String {
        let registry = Registry::new();
        let settings = config::Metrics { max_series, ..config::Config::default().metrics };
        let labels = Labels::new(&registry, &settings).unwrap();
        let mut negotiated = Negotiated::new(&registry, &settings, &labels).unwrap();
        for group in groups {
            let view = TlsView {
                cipher: Some(0x1301),
                group,
                ..completed(Role::Server, TlsVersion::Tls13, TlsClass::Full)
            };
            negotiated.count(&tls_event(&client(), &view).tls.unwrap(), &labels, None);
        }
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn completed_handshakes_are_counted_by_what_they_agreed_on() {
        let text = counted(9, [Some(4588), Some(4588), Some(29), None]);
        let series = |group| {
            format!(
                "handshake_tls_negotiated_total{{cipher=\"TLS_AES_128_GCM_SHA256\",group=\"{group}\",\
                 role=\"server\",version=\"1.3\"}}"
            )
        };
        for (group, count) in [("X25519MLKEM768", 2), ("x25519", 1), ("unknown", 1)] {
            assert!(text.contains(&format!("{} {count}\n", series(group))), "{text}");
        }
    }

    #[test]
    fn groups_over_the_limit_on_series_are_counted_as_other() {
        let text = counted(2, (1000..1100).map(Some));
        assert_eq!(text.matches("handshake_tls_negotiated_total{").count(), 3, "{text}");
        assert!(
            text.contains("{cipher=\"other\",group=\"other\",role=\"server\",version=\"1.3\"} 98"),
            "{text}"
        );
    }
}
