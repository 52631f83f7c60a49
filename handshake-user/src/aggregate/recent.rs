//! The latest connections, each whole.

use std::sync::Arc;

use crate::{
    bounded_map::BoundedMap,
    event::ConnectionEvent,
    join::journal::{self, Identity},
};

/// Larger records are counted but not kept. Only a record that this program did not write can be so large.
const MAX_BYTES: usize = 16 << 10;

/// The connections of which something was learnt last, the latest at the end; each with everything known.
#[derive(Clone, Debug)]
pub struct Recent {
    connections: BoundedMap<Identity, Arc<ConnectionEvent>>,
    capacity: usize,
}

impl Recent {
    pub(super) fn new(capacity: usize) -> Self {
        Self { connections: BoundedMap::new(capacity), capacity }
    }

    /// The connections, the latest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ConnectionEvent>> {
        self.connections.iter().rev().map(|(_, event)| event)
    }

    pub(super) fn get(&self, identity: &Identity) -> Option<&Arc<ConnectionEvent>> {
        self.connections.get(identity)
    }

    pub(super) fn take(&mut self, identity: Identity, whole: &Arc<ConnectionEvent>) {
        if self.capacity > 0 && journal::size(whole) <= MAX_BYTES {
            self.connections.remove(&identity);
            self.connections.insert(identity, Arc::clone(whole));
        }
    }

    /// Takes what is new of a connection, if that is kept; it keeps its place.
    pub(super) fn learn(&mut self, identity: &Identity, event: &Arc<ConnectionEvent>) {
        if let Some(earlier) = self.connections.get_mut(identity)
            && journal::size(event) <= MAX_BYTES
        {
            *earlier = whole(event, Some(earlier));
        }
    }

    pub(super) fn remove(&mut self, identity: &Identity) -> Option<Arc<ConnectionEvent>> {
        self.connections.remove(identity)
    }
}

/// The event, with what only an earlier one of the same connection says.
pub(super) fn whole(
    event: &Arc<ConnectionEvent>,
    earlier: Option<&Arc<ConnectionEvent>>,
) -> Arc<ConnectionEvent> {
    match earlier {
        Some(earlier) if !Arc::ptr_eq(event, earlier) => {
            Arc::new(journal::filled(ConnectionEvent::clone(event), &mut ConnectionEvent::clone(earlier)))
        }
        _ => Arc::clone(event),
    }
}
