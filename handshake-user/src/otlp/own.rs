//! The exporter's own connections to the collector. Their records would make further exports, and with a
//! collector that closes after each, for ever.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use crate::{
    bounded_map::BoundedMap,
    event::{Address, ConnectionEvent, ConnectionId, Endpoint},
};

/// As many are remembered: the record of a close comes at once, that of TIME_WAIT up to 70 s later.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
pub(super) struct OwnConnections(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// Our end, also of attempts that fail. The collector's address is part of it because an id may be a
    /// number of the program's own instead of a cookie.
    sockets: BoundedMap<(ConnectionId, Endpoint), ()>,
    /// Ours and the collector's address: also tells the other end, if that is on this host.
    ends: BoundedMap<(Endpoint, Endpoint), ()>,
}

impl Default for OwnConnections {
    fn default() -> Self {
        Self(Mutex::new(Known { sockets: BoundedMap::new(REMEMBERED), ends: BoundedMap::new(REMEMBERED) }))
    }
}

impl OwnConnections {
    /// A socket is about to be connected.
    pub(super) fn dials(&self, cookie: u64, collector: SocketAddr) {
        self.with(|known| {
            known.sockets.insert((ConnectionId::of_socket(cookie, 0), endpoint(collector)), ());
        });
    }

    /// It is connected.
    pub(super) fn connected(&self, local: SocketAddr, collector: SocketAddr) {
        self.with(|known| {
            known.ends.insert((endpoint(local), endpoint(collector)), ());
        });
    }

    /// Whether the event is of one of them, at either end.
    pub(super) fn has(&self, event: &ConnectionEvent) -> bool {
        let (Some(local), Some(remote)) = (event.local, event.remote) else { return false };
        self.with(|known| {
            known.ends.contains(&(local, remote))
                || known.ends.contains(&(remote, local))
                || known.sockets.contains(&(event.id.clone(), remote))
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

const fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { addr: Some(Address::Ip(address.ip())), port: address.port() }
}

#[cfg(test)]
mod tests {
    use handshake_common::Role;

    use super::*;
    use crate::event::testing::{closed, opened};

    #[test]
    fn own_connections_are_told_at_both_ends_and_no_others_are() {
        let own = OwnConnections::default();
        let (client, server) = (closed(Role::Client), closed(Role::Server));
        assert!(!own.has(&client) && !own.has(&server));
        own.connected("10.0.0.1:51000".parse().unwrap(), "10.0.0.2:443".parse().unwrap());
        assert!(own.has(&client) && own.has(&server));
        let mut other = client;
        other.local.as_mut().unwrap().port = 51001;
        assert!(!own.has(&other));
    }

    #[test]
    fn failed_attempt_is_told_by_its_socket() {
        let own = OwnConnections::default();
        own.dials(0x1007, "10.0.0.2:443".parse().unwrap());
        assert!(own.has(&opened(Role::Client)));
        let mut elsewhere = opened(Role::Client);
        elsewhere.remote.as_mut().unwrap().port = 80;
        assert!(!own.has(&elsewhere), "the number of another program's connection");
    }
}
