//! The latest connections that somebody may want to see, without groups or numbers.

use std::sync::Arc;

use super::{Recent, has_failed, is_slow, recent::whole};
use crate::{event::ConnectionEvent, join::journal};

/// The latest slow connections and the latest failed ones.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Those whose opening or setup took longer than the network explains.
    pub slow: Recent,
    /// Those of which a handshake failed, TCP's or TLS's.
    pub failed: Recent,
}

impl Latest {
    /// At most so many of each.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { slow: Recent::new(most), failed: Recent::new(most) }
    }

    /// Takes an event. It is copied only if its connection is shown.
    pub fn take(&mut self, event: &ConnectionEvent) {
        let belongs = [has_failed(event), is_slow(event)];
        let identity = journal::identity(event);
        for (recent, belongs) in [&mut self.failed, &mut self.slow].into_iter().zip(belongs) {
            let earlier = recent.get(&identity).cloned();
            if belongs {
                recent.take(identity.clone(), &whole(&Arc::new(event.clone()), earlier.as_ref()));
            } else if earlier.is_some() {
                recent.learn(&identity, &Arc::new(event.clone()));
            }
        }
    }
}
