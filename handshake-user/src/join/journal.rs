//! Connections as a whole, out of records that tell of their stages: each is told once, by all that is known of it.

use std::collections::{BTreeMap, HashMap};

use handshake_common::{Outcome, Stage};

use crate::{
    event::{ConnectionEvent, Endpoint},
    untrusted::Untrusted,
};

/// Connections remembered until they close, each by a record of some hundred bytes. The oldest give way.
const MAX_CONNECTIONS: usize = 65_536;
/// And bytes of them, which only records that this program has not written reach.
const MAX_BYTES: usize = 256 << 20;

/// Which connection. The ends tell records of different hosts apart.
type Key = (Untrusted, Option<Endpoint>, Option<Endpoint>);

/// Connections that are not told yet.
#[derive(Debug, Default)]
pub struct ConnectionJournal {
    /// In the order in which they began.
    open: BTreeMap<u64, ConnectionEvent>,
    places: HashMap<Key, u64>,
    next: u64,
    bytes: usize,
    evicted: u64,
}

impl ConnectionJournal {
    /// Takes a record in; gives the whole when it is the last of its connection.
    pub fn take(&mut self, record: ConnectionEvent) -> Option<ConnectionEvent> {
        let key = key(&record);
        let place = self.places.get(&key).copied();
        let whole = match place.and_then(|place| self.open.remove(&place)) {
            Some(earlier) => {
                self.bytes -= size(&earlier);
                filled(record, earlier)
            }
            None => record,
        };
        if is_last(&whole) {
            self.places.remove(&key);
            return Some(whole);
        }
        let place = place.unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        self.bytes += size(&whole);
        self.open.insert(place, whole);
        self.places.insert(key, place);
        while (self.open.len() > MAX_CONNECTIONS || self.bytes > MAX_BYTES)
            && let Some((_, oldest)) = self.open.pop_first()
        {
            self.bytes -= size(&oldest);
            self.places.remove(&self::key(&oldest));
            self.evicted += 1;
        }
        None
    }

    /// Those that did not close, in the order in which they began.
    pub fn finish(&mut self) -> impl Iterator<Item = ConnectionEvent> + use<> {
        self.places.clear();
        self.bytes = 0;
        std::mem::take(&mut self.open).into_values()
    }

    /// How many were evicted for want of room: they are told if they close, by what their close record holds.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn key(record: &ConnectionEvent) -> Key {
    (record.id.clone(), record.local, record.remote)
}

/// Bytes that it takes to remember a record, by its text; its id is kept twice.
fn size(record: &ConnectionEvent) -> usize {
    let ConnectionEvent { id, process, tls, .. } = record;
    let process = process.iter().flat_map(|process| [Some(&process.comm), process.cgroup.as_ref()]);
    let tls = tls
        .iter()
        .flat_map(|tls| [&tls.cipher, &tls.sni, &tls.alpn, &tls.alert, &tls.error].map(Option::as_ref));
    let texts = [id, id].into_iter().chain(process.chain(tls).flatten());
    size_of::<ConnectionEvent>() + texts.map(|text| text.raw().len()).sum::<usize>()
}

/// Whether no further record will come of this connection, or of this handshake.
fn is_last(record: &ConnectionEvent) -> bool {
    match record.stage {
        Stage::Close => true,
        Stage::Open => record.open.as_ref().is_none_or(|open| open.outcome != Some(Outcome::Established)),
        Stage::Tls => record.local.is_none(),
    }
}

/// A record holds all that was known when it was written, so the later one counts; what it lacks is filled in.
fn filled(later: ConnectionEvent, earlier: ConnectionEvent) -> ConnectionEvent {
    ConnectionEvent {
        role: later.role.or(earlier.role),
        process: later.process.or(earlier.process),
        open: later.open.or(earlier.open),
        setup: later.setup.or(earlier.setup),
        tls: later.tls.or(earlier.tls),
        ..later
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::{Role, TlsClass, TlsVersion};

    use super::*;
    use crate::event::testing::{closed, opened, with_tls};

    #[test]
    fn a_connection_is_told_once_at_its_end() {
        let mut whole = ConnectionJournal::default();
        let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        assert_eq!(whole.take(opened(Role::Client)), None);
        assert_eq!(whole.take(tls.clone()), None);
        let mut end = closed(Role::Client);
        (end.tls, end.setup) = (None, None);
        let told = whole.take(end).unwrap();
        assert_eq!((told.stage, told.tls), (Stage::Close, tls.tls), "what the closing lacks is filled in");
        assert_eq!(whole.finish().count(), 0);
    }

    #[test]
    fn what_does_not_close_comes_at_the_end_in_order() {
        let mut whole = ConnectionJournal::default();
        for id in ["b", "a", "b"] {
            assert_eq!(whole.take(ConnectionEvent { id: id.into(), ..opened(Role::Server) }), None);
        }
        let ids: Vec<_> = whole.finish().map(|record| record.id).collect();
        assert_eq!(ids, ["b".into(), "a".into()]);
    }

    #[test]
    fn what_failed_and_what_has_no_socket_is_told_at_once() {
        let mut refused = opened(Role::Client);
        refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
        assert!(ConnectionJournal::default().take(refused).is_some());
        let mut alone = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        (alone.local, alone.remote) = (None, None);
        assert!(ConnectionJournal::default().take(alone).is_some());
    }

    #[test]
    fn two_hosts_may_use_the_same_id() {
        let mut whole = ConnectionJournal::default();
        let here = opened(Role::Client);
        let there = ConnectionEvent {
            local: here.remote,
            remote: here.local,
            role: Some(Role::Server),
            ..here.clone()
        };
        assert_eq!((whole.take(here), whole.take(there)), (None, None));
        assert_eq!(whole.finish().count(), 2);
    }

    #[test]
    fn memory_is_bounded_and_what_is_evicted_is_counted() {
        let mut whole = ConnectionJournal::default();
        for id in 0..MAX_CONNECTIONS + 10 {
            whole.take(ConnectionEvent { id: id.to_string().into(), ..opened(Role::Client) });
        }
        assert_eq!(
            (whole.open.len(), whole.places.len(), whole.evicted()),
            (MAX_CONNECTIONS, MAX_CONNECTIONS, 10)
        );
    }

    #[test]
    fn long_texts_do_not_take_more_memory() {
        let mut whole = ConnectionJournal::default();
        let long = "a".repeat(1 << 20);
        for id in 0..300 {
            let mut record = ConnectionEvent { id: format!("{id}").into(), ..opened(Role::Client) };
            record.process.as_mut().unwrap().comm = long.as_str().into();
            whole.take(record.clone());
            // Filled in, it counts once.
            whole.take(record);
        }
        assert_eq!(whole.bytes, whole.open.values().map(size).sum::<usize>());
        assert!(whole.bytes <= MAX_BYTES && whole.open.len() == whole.places.len());
        assert_eq!(whole.open.len() as u64 + whole.evicted(), 300);
        assert!(whole.evicted() > 40, "{}", whole.evicted());
    }
}
