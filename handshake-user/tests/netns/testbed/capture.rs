//! The second measurement: what the link carried and when, from which the true durations follow.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use super::packet::{Packet, Side};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Held,
    Dropped,
    Released(Instant),
}

/// A packet, when it entered the link, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) packet: Packet,
    pub(crate) arrived: Instant,
    pub(crate) fate: Fate,
}

/// Both ends of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
}

impl Connection {
    pub(crate) fn end(&self, side: Side) -> SocketAddr {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    fn holds(&self, packet: &Packet) -> bool {
        (packet.source, packet.destination) == (self.end(packet.from), self.end(packet.from.other()))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Capture(Vec<Seen>);

impl Capture {
    pub(super) fn new(seen: Vec<Seen>) -> Self {
        Self(seen)
    }

    /// The connections that the client side opened or tried to, oldest first.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        let mut found = Vec::new();
        for packet in self.0.iter().map(|seen| &seen.packet).filter(|packet| packet.is_syn()) {
            let connection = Connection { client: packet.source, server: packet.destination };
            if packet.from == Side::Client && !found.contains(&connection) {
                found.push(connection);
            }
        }
        found
    }

    /// Only the packets of that connection.
    pub(crate) fn of(&self, connection: Connection) -> Self {
        Self(self.0.iter().filter(|seen| connection.holds(&seen.packet)).cloned().collect())
    }

    pub(super) fn is_quiet_for(&self, time: Duration) -> bool {
        self.0.iter().all(|seen| {
            let last = match seen.fate {
                Fate::Held => return false,
                Fate::Dropped => seen.arrived,
                Fate::Released(at) => at,
            };
            last.elapsed() >= time
        })
    }

    /// The matching packets that this side sent.
    pub(crate) fn from(&self, side: Side, matches: impl Fn(&Packet) -> bool) -> Vec<&Seen> {
        self.0.iter().filter(|seen| seen.packet.from == side && matches(&seen.packet)).collect()
    }

    pub(crate) fn count(&self, side: Side, matches: impl Fn(&Packet) -> bool) -> usize {
        self.from(side, matches).len()
    }

    /// When this side first sent a matching packet.
    #[track_caller]
    pub(crate) fn sent(&self, side: Side, matches: impl Fn(&Packet) -> bool) -> Instant {
        match self.from(side, matches).first() {
            Some(seen) => seen.arrived,
            None => panic!("the {side:?} never sent a matching packet"),
        }
    }

    /// When this side first received a matching packet.
    #[track_caller]
    pub(crate) fn got(&self, side: Side, matches: impl Fn(&Packet) -> bool) -> Instant {
        let came = self.from(side.other(), matches).into_iter().filter_map(|seen| match seen.fate {
            Fate::Released(at) => Some(at),
            Fate::Held | Fate::Dropped => None,
        });
        came.min().unwrap_or_else(|| panic!("the {side:?} never received a matching packet"))
    }

    /// When this side first sent its FIN, and when it first received an ACK of it.
    #[track_caller]
    pub(crate) fn fin_acknowledged(&self, side: Side) -> (Instant, Instant) {
        let Some(fin) = self.from(side, Packet::is_fin).first().copied() else {
            panic!("the {side:?} never sent a FIN")
        };
        let end = fin.packet.end();
        (fin.arrived, self.got(side, |packet| packet.acknowledges(end)))
    }

    /// Whether this side has received a matching packet.
    pub(crate) fn has_got(&self, side: Side, matches: impl Fn(&Packet) -> bool) -> bool {
        self.from(side.other(), matches).iter().any(|seen| matches!(seen.fate, Fate::Released(_)))
    }

    /// Whether this side has received an ACK of its FIN.
    pub(crate) fn has_fin_acknowledged(&self, side: Side) -> bool {
        let fins = self.from(side, Packet::is_fin);
        fins.first().is_some_and(|fin| {
            let end = fin.packet.end();
            self.has_got(side, |packet| packet.acknowledges(end))
        })
    }

    /// Writes a file for tcpdump and Wireshark, with the times at which the packets were sent.
    pub(super) fn write_pcap(&self, path: &Path) -> io::Result<()> {
        const LINKTYPE_RAW: u32 = 101;
        const MAX_LEN: u32 = 65_535;
        let mut out = BufWriter::new(File::create(path)?);
        // The classic format: magic, version 2.4, zone, accuracy, longest packet, link type.
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, MAX_LEN, LINKTYPE_RAW] {
            out.write_all(&word.to_ne_bytes())?;
        }
        for seen in &self.0 {
            let time = self.since_first(seen.arrived);
            let length = u32::try_from(seen.packet.bytes.len()).unwrap_or(MAX_LEN);
            let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            for word in [seconds, time.subsec_micros(), length, length] {
                out.write_all(&word.to_ne_bytes())?;
            }
            out.write_all(&seen.packet.bytes)?;
        }
        out.flush()
    }

    fn since_first(&self, moment: Instant) -> Duration {
        self.0.first().map_or(Duration::ZERO, |first| moment.saturating_duration_since(first.arrived))
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut starts = HashMap::new();
        for Seen { packet, arrived, fate } in &self.0 {
            let sequence = (packet.source, packet.destination);
            let start = *starts.entry(sequence).or_insert(packet.seq);
            let acknowledged = starts.get(&(packet.destination, packet.source)).copied().unwrap_or_default();
            let arrow = match packet.from {
                Side::Client => "->",
                Side::Server => "<-",
            };
            let fate = match fate {
                Fate::Held => "on the link".into(),
                Fate::Dropped => "DROPPED".into(),
                Fate::Released(at) => format!("there at {:9.3}", milliseconds(self.since_first(*at))),
            };
            writeln!(
                out,
                "  {:9.3} ms {arrow} {:>5} {:4} seq {:5} ack {:5} length {:5}  {fate}",
                milliseconds(self.since_first(*arrived)),
                match packet.from {
                    Side::Client => packet.source.port(),
                    Side::Server => packet.destination.port(),
                },
                packet.flags,
                packet.seq.wrapping_sub(start),
                packet.ack.wrapping_sub(acknowledged),
                packet.payload,
            )?;
        }
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
