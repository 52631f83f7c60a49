//! Keeps the records of each connection until it ends, so that each is shown once, with everything known of
//! it.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use handshake_common::{Outcome, Stage};

use crate::{
    bounded_map::BoundedMap,
    event::{Close, ConnectionEvent, ConnectionId, Endpoint, Process},
};

/// Connections kept until they close, a record of some hundred bytes each. The oldest are evicted.
const MAX_CONNECTIONS: usize = 65_536;
/// Bytes of those records. Only records that this program did not write can reach it.
const MAX_BYTES: usize = 256 << 20;

/// Identifies a connection. Ids are of one boot of one host; the ends tell hosts apart that records do not
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    id: ConnectionId,
    ends: [Option<Endpoint>; 2],
    /// Of the host and its boot: there are few of them, and many connections.
    boot: u64,
}

/// Connections that have not ended yet, in the order in which they began.
#[derive(Debug)]
pub struct ConnectionJournal {
    open: BoundedMap<Identity, Entry>,
    /// Whether a connection ends with TIME_WAIT, where it enters it, rather than with its socket.
    awaits_time_wait: bool,
    bytes: usize,
    evicted: u64,
}

/// What is known of a connection so far.
#[derive(Debug)]
struct Entry {
    record: ConnectionEvent,
    /// Whether any of its records was wanted.
    wanted: bool,
}

impl Default for ConnectionJournal {
    fn default() -> Self {
        Self { open: BoundedMap::new(MAX_CONNECTIONS), awaits_time_wait: false, bytes: 0, evicted: 0 }
    }
}

impl ConnectionJournal {
    /// Keeps connections until TIME_WAIT is over, so that each is whole. Without this, what is learnt after
    /// the socket makes a whole of its own, of stage `time_wait`.
    #[must_use]
    pub fn awaiting_time_wait() -> Self {
        Self { awaits_time_wait: true, ..Self::default() }
    }

    /// Takes a record. Returns the complete one if it is the last of its connection.
    pub fn take(&mut self, record: ConnectionEvent) -> Option<ConnectionEvent> {
        self.take_if(record, true)
    }

    /// The same, but of a connection of which no record is wanted nothing is returned.
    pub fn take_if(&mut self, record: ConnectionEvent, wanted: bool) -> Option<ConnectionEvent> {
        let key = identity(&record);
        if let Some(Entry { record: earlier, wanted: is_wanted }) = self.open.get_mut(&key) {
            *is_wanted |= wanted;
            self.bytes -= size(earlier);
            // The entry stays where it is, so that the order is that of the beginnings.
            *earlier = filled(record, earlier);
            self.bytes += size(earlier);
            if is_last(earlier, self.awaits_time_wait) {
                return self.remove(&key);
            }
            self.limit(None);
            return None;
        }
        if is_last(&record, self.awaits_time_wait) {
            return wanted.then_some(record);
        }
        self.bytes += size(&record);
        let evicted = self.open.insert(key, Entry { record, wanted });
        self.limit(evicted);
        None
    }

    /// Accounts for an evicted record, and evicts more until the rest is within [`MAX_BYTES`].
    fn limit(&mut self, mut evicted: Option<(Identity, Entry)>) {
        loop {
            if let Some((_, Entry { record, wanted })) = evicted {
                self.bytes -= size(&record);
                self.evicted += u64::from(wanted);
            }
            if self.bytes <= MAX_BYTES {
                return;
            }
            evicted = self.open.pop_oldest();
        }
    }

    fn remove(&mut self, key: &Identity) -> Option<ConnectionEvent> {
        let Entry { record, wanted } = self.open.remove(key)?;
        self.bytes -= size(&record);
        wanted.then_some(record)
    }

    /// Returns the connections that did not close, in the order in which they began.
    pub fn finish(&mut self) -> impl Iterator<Item = ConnectionEvent> + use<> {
        self.bytes = 0;
        self.open.drain().filter(|(_, entry)| entry.wanted).map(|(_, entry)| entry.record)
    }

    /// How many were evicted because the journal was full. If they close, their close record is all there is.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }
}

pub(crate) fn identity(record: &ConnectionEvent) -> Identity {
    let mut boot = DefaultHasher::new();
    (&record.host, &record.boot_id).hash(&mut boot);
    Identity { id: record.id.clone(), ends: [record.local, record.remote], boot: boot.finish() }
}

/// Bytes that a kept record takes; its id is stored twice.
pub(crate) fn size(record: &ConnectionEvent) -> usize {
    let ConnectionEvent { host, boot_id, id, process, tls, close, .. } = record;
    let host = [host, boot_id].map(Option::as_ref);
    let process = process.iter().flat_map(|Process { comm, cgroup, names, .. }| {
        [comm, cgroup, &names.unit, &names.container_id, &names.pod_uid].map(Option::as_ref)
    });
    let tls = tls.iter().flat_map(|tls| {
        let offered = tls.alpn_offered.iter().flatten().map(Some);
        let certificate = tls.certificate.iter().flat_map(|it| [&it.key_type, &it.curve, &it.signature]);
        [&tls.cipher, &tls.sni, &tls.alpn, &tls.group, &tls.signature, &tls.alert, &tls.error]
            .into_iter()
            .chain(certificate)
            .map(Option::as_ref)
            .chain(offered)
    });
    let texts = process.chain(tls).chain(host).flatten().map(|text| text.raw().len());
    let ids = 2 * id.heap_size()
        + close
            .iter()
            .filter_map(|close| close.reused_by.as_ref())
            .map(ConnectionId::heap_size)
            .sum::<usize>();
    let offered =
        record.tls.iter().filter_map(|tls| tls.alpn_offered.as_ref()).map(|names| size_of_val(&**names));
    let flights = record.tls.iter().filter_map(|tls| tls.flights.as_ref()).map(|all| size_of_val(&**all));
    let stalls = record.tls.iter().filter_map(|tls| tls.stalls.as_ref()).map(|all| size_of_val(&**all));
    let certificate = record.tls.iter().filter_map(|tls| tls.certificate.as_deref()).map(size_of_val);
    let passed: usize = flights.chain(stalls).chain(certificate).sum();
    size_of::<ConnectionEvent>() + ids + texts.sum::<usize>() + offered.sum::<usize>() + passed
}

/// Whether this is the last record of its connection, or of its handshake.
fn is_last(record: &ConnectionEvent, awaits_time_wait: bool) -> bool {
    match record.stage {
        Stage::Close => !(awaits_time_wait && record.close.as_ref().is_some_and(Close::enters_time_wait)),
        Stage::TimeWait => record.close.as_ref().is_none_or(|close| close.time_wait_end.is_some()),
        Stage::Open => record.open.as_ref().is_none_or(|open| open.outcome != Some(Outcome::Established)),
        Stage::Tls => record.local.is_none(),
    }
}

/// A record holds everything known when it was written, so the later one wins; what it lacks comes from the
/// earlier.
pub(crate) fn filled(later: ConnectionEvent, earlier: &mut ConnectionEvent) -> ConnectionEvent {
    ConnectionEvent {
        role: later.role.or(earlier.role),
        process: later.process.or_else(|| earlier.process.take()),
        open: later.open.or_else(|| earlier.open.take()),
        setup: later.setup.or(earlier.setup),
        tls: later.tls.or_else(|| earlier.tls.take()),
        ..later
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::{Initiator, Role, TlsClass, TlsVersion};

    use super::*;
    use crate::event::{
        Unseen,
        testing::{closed, opened, waited, with_tls},
    };

    #[test]
    fn connection_is_reported_once_at_its_end() {
        let mut whole = ConnectionJournal::default();
        let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        assert_eq!(whole.take(opened(Role::Client)), None);
        assert_eq!(whole.take(tls.clone()), None);
        let mut end = closed(Role::Client);
        (end.tls, end.setup) = (None, None);
        let told = whole.take(end).unwrap();
        assert_eq!(
            (told.stage, told.tls),
            (Stage::Close, tls.tls),
            "what the close record lacks is filled in"
        );
        assert_eq!(whole.finish().count(), 0);
    }

    #[test]
    fn open_connections_are_returned_in_order() {
        let mut whole = ConnectionJournal::default();
        for id in ["b", "a", "b"] {
            assert_eq!(whole.take(ConnectionEvent { id: id.into(), ..opened(Role::Server) }), None);
        }
        let ids: Vec<_> = whole.finish().map(|record| record.id).collect();
        assert_eq!(ids, ["b".into(), "a".into()]);
    }

    #[test]
    fn connection_is_awaited_to_the_end_of_time_wait() {
        let mut end = closed(Role::Client);
        let close = end.close.as_mut().unwrap();
        (close.duration, close.app_wait, close.unseen) = (None, None, Some(Unseen::PeerFin));
        let mut fin = waited(Role::Client);
        (fin.tls, fin.close.as_mut().unwrap().time_wait_end) = (None, None);
        let mut whole = ConnectionJournal::awaiting_time_wait();
        let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        for record in [opened(Role::Client), tls.clone(), end.clone(), fin] {
            assert_eq!(whole.take(record), None);
        }
        let told = whole.take(waited(Role::Client)).unwrap();
        assert_eq!((told.stage, told.tls), (Stage::TimeWait, tls.tls));
        // Without the end, it is what is known.
        assert_eq!(whole.take(end.clone()), None);
        assert_eq!(whole.finish().count(), 1);
        let mut passive = end.clone();
        passive.close.as_mut().unwrap().initiator = Some(Initiator::Remote);
        assert!(whole.take(passive).is_some(), "it does not enter TIME_WAIT");
        assert!(ConnectionJournal::default().take(end).is_some());
    }

    #[test]
    fn failed_and_socketless_connections_are_returned_at_once() {
        let mut refused = opened(Role::Client);
        refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
        assert!(ConnectionJournal::default().take(refused).is_some());
        let mut alone = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        (alone.local, alone.remote) = (None, None);
        assert!(ConnectionJournal::default().take(alone).is_some());
    }

    #[test]
    fn records_of_two_hosts_may_share_an_id() {
        let mut whole = ConnectionJournal::default();
        let here = opened(Role::Client);
        let there = ConnectionEvent {
            local: here.remote,
            remote: here.local,
            role: Some(Role::Server),
            ..here.clone()
        };
        let of_boot = |host: &str, boot_id: &str| ConnectionEvent {
            host: Some(host.into()),
            boot_id: Some(boot_id.into()),
            ..here.clone()
        };
        let all = [of_boot("a", "1"), of_boot("b", "1"), of_boot("a", "2"), here.clone(), there];
        assert!(all.into_iter().all(|record| whole.take(record).is_none()));
        assert_eq!(whole.finish().count(), 5);
    }

    #[test]
    fn connection_is_returned_whole_if_any_of_its_records_is_wanted() {
        for wanted in [[false, true, false], [false, false, false]] {
            let mut whole = ConnectionJournal::default();
            let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
            let mut end = closed(Role::Client);
            end.tls = None;
            assert_eq!(whole.take_if(opened(Role::Client), wanted[0]), None);
            assert_eq!(whole.take_if(tls.clone(), wanted[1]), None);
            let told = whole.take_if(end, wanted[2]).and_then(|told| told.tls);
            assert_eq!(told, tls.tls.filter(|_| wanted[1]));
        }
        let mut whole = ConnectionJournal::default();
        whole.take_if(opened(Role::Client), false);
        assert_eq!((whole.take_if(closed(Role::Server), false), whole.finish().count()), (None, 0));
    }

    #[test]
    fn connections_are_bounded_and_evictions_counted() {
        let mut whole = ConnectionJournal::default();
        for id in 0..MAX_CONNECTIONS + 10 {
            whole.take(ConnectionEvent { id: id.to_string().as_str().into(), ..opened(Role::Client) });
        }
        assert_eq!((whole.open.len(), whole.evicted()), (MAX_CONNECTIONS, 10));
    }

    #[test]
    fn bytes_are_bounded() {
        let mut whole = ConnectionJournal::default();
        let long = "a".repeat(1 << 20);
        for id in 0..300 {
            let mut record = ConnectionEvent { id: format!("{id}").as_str().into(), ..opened(Role::Client) };
            record.process.as_mut().unwrap().comm = Some(long.as_str().into());
            whole.take(record.clone());
            // Filled in, it counts once.
            whole.take(record);
        }
        assert_eq!(whole.bytes, whole.open.iter().map(|(_, entry)| size(&entry.record)).sum::<usize>());
        assert!(whole.bytes <= MAX_BYTES);
        assert_eq!(whole.open.len() as u64 + whole.evicted(), 300);
        assert!(whole.evicted() > 40, "{}", whole.evicted());
    }
}
