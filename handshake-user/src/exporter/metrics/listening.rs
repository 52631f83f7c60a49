//! How full the accept queues of the listening sockets are, and what those sockets dropped, by port.

use std::collections::{HashMap, HashSet};

use handshake_common::tcp::listener::{LISTEN, Queue};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::labels::OTHER;

/// The families of listening sockets.
pub(super) struct Listening {
    waiting: IntGaugeVec,
    limit: IntGaugeVec,
    full: IntGaugeVec,
    drops: IntCounterVec,
    /// The ports that have series of their own.
    ports: HashSet<u16>,
    max_ports: usize,
    /// What each socket had dropped when it was last seen, by its key and when it began to listen.
    seen: HashMap<(u64, u64), u32>,
}

impl Listening {
    /// Registers the families, each with its series for the ports over the limit.
    pub(super) fn new(registry: &Registry, max_ports: usize) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &["local_port"])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let waiting =
            gauge("handshake_listener_accept_queue", "Established connections that wait for accept().")?;
        let limit = gauge(
            "handshake_listener_accept_queue_limit",
            "How many may wait: the backlog of listen(), limited by net.core.somaxconn.",
        )?;
        let full = gauge(
            "handshake_listener_accept_queues_full",
            "Listening sockets whose accept queue takes no further connection.",
        )?;
        let drops = IntCounterVec::new(
            Opts::new(
                "handshake_listener_drops_total",
                "Packets that listening sockets dropped: SYNs and final ACKs, for a full queue or another reason.",
            ),
            &["local_port"],
        )?;
        registry.register(Box::new(drops.clone()))?;
        let this =
            Self { waiting, limit, full, drops, ports: HashSet::new(), max_ports, seen: HashMap::new() };
        this.clear();
        this.drops.with_label_values(&[OTHER]);
        Ok(this)
    }

    /// No gauge of a port on which nobody listens any more is left.
    fn clear(&self) {
        for family in [&self.waiting, &self.limit, &self.full] {
            family.reset();
            family.with_label_values(&[OTHER]);
        }
    }

    /// Takes a reading.
    pub(super) fn set(&mut self, queues: &[Queue]) {
        self.clear();
        let mut now = HashMap::with_capacity(queues.len());
        for queue in queues.iter().filter(|queue| queue.state == LISTEN && queue.backlog.is_known != 0) {
            let port = self.label(queue.listener.port);
            let add = |family: &IntGaugeVec, count: u32| {
                family.with_label_values(&[port.as_str()]).add(i64::from(count));
            };
            add(&self.waiting, queue.backlog.length);
            add(&self.limit, queue.backlog.limit);
            add(&self.full, u32::from(queue.is_full()));
            let socket = (queue.key, queue.listener.since_ns);
            let dropped = queue.drops().wrapping_sub(self.seen.get(&socket).copied().unwrap_or(0));
            self.drops.with_label_values(&[port.as_str()]).inc_by(u64::from(dropped));
            now.insert(socket, queue.drops());
        }
        self.seen = now;
    }

    fn label(&mut self, port: u16) -> String {
        if self.ports.contains(&port) || (self.ports.len() < self.max_ports && self.ports.insert(port)) {
            port.to_string()
        } else {
            OTHER.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::tcp::listener::{Backlog, Listener};
    use prometheus::TextEncoder;

    use super::*;

    fn queue(key: u64, port: u16, length: u32, drops: u32) -> Queue {
        let listener = Listener { port, ..Listener::default() };
        let backlog = Backlog { length, limit: 10, drops, is_known: 1 };
        Queue { key, listener, backlog, state: LISTEN }
    }

    fn said(readings: &[&[Queue]]) -> Vec<String> {
        let registry = Registry::new();
        let mut listening = Listening::new(&registry, 2).unwrap();
        for queues in readings {
            listening.set(queues);
        }
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
        lines.map(|line| line.trim_start_matches("handshake_listener_").to_owned()).collect()
    }

    #[test]
    fn sockets_of_a_port_are_added_up_and_a_full_one_is_told() {
        let group = [queue(1, 80, 11, 0), queue(2, 80, 3, 0)];
        assert_eq!(
            said(&[&group]),
            [
                r#"accept_queue{local_port="80"} 14"#,
                r#"accept_queue_limit{local_port="80"} 20"#,
                r#"accept_queues_full{local_port="80"} 1"#,
            ]
        );
    }

    #[test]
    fn drops_of_each_socket_are_counted_once() {
        let drops = |readings: &[&[Queue]]| {
            said(readings).into_iter().filter(|line| line.starts_with("drops")).collect::<Vec<_>>()
        };
        let later = [queue(1, 80, 0, 9), queue(2, 80, 0, 1), queue(3, 81, 0, 5)];
        assert_eq!(
            drops(&[&[queue(1, 80, 0, 7)], &later]),
            [r#"drops_total{local_port="80"} 10"#, r#"drops_total{local_port="81"} 5"#]
        );
        let (before, after) = ([queue(1, 80, 0, u32::MAX - 1)], [queue(1, 80, 0, 1)]);
        assert_eq!(
            drops(&[&before, &after]),
            [r#"drops_total{local_port="80"} 4294967297"#],
            "the kernel's counter has 32 bits"
        );
        let mut another = queue(1, 80, 0, 2);
        another.listener.since_ns = 9;
        let drops_of_both = drops(&[&[queue(1, 80, 0, 7)], &[another]]);
        assert_eq!(
            drops_of_both,
            [r#"drops_total{local_port="80"} 9"#],
            "another socket at the same address"
        );
    }

    #[test]
    fn ports_are_bounded_and_those_without_a_listener_go() {
        let three = [queue(1, 80, 1, 0), queue(2, 81, 2, 0), queue(3, 82, 4, 0)];
        let waiting: Vec<_> = said(&[&three, &three[1..]])
            .into_iter()
            .filter(|line| line.starts_with("accept_queue{"))
            .collect();
        assert_eq!(waiting, [r#"accept_queue{local_port="81"} 2"#, r#"accept_queue{local_port="other"} 4"#]);
    }
}
