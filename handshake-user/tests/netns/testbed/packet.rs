//! A TCP packet on the link.

use std::{fmt, net::SocketAddr, ops::BitOr, sync::Arc};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    pub(crate) const FIN: Self = Self(0x01);
    pub(crate) const SYN: Self = Self(0x02);
    pub(crate) const RST: Self = Self(0x04);
    pub(crate) const ACK: Self = Self(0x10);

    pub(crate) fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::SYN, 'S'), (Self::FIN, 'F'), (Self::RST, 'R'), (Self::ACK, '.')];
        let text: String = names.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| name).collect();
        out.pad(&text)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: Side,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) flags: Flags,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) payload: usize,
    pub(crate) bytes: Arc<[u8]>,
}

impl Packet {
    /// Returns `None` if it is not TCP.
    pub(crate) fn parse(from: Side, bytes: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(bytes).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
        let (source, destination) = match sliced.net? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        Some(Self {
            from,
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            flags: Flags(tcp.slice()[13]),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            payload: tcp.payload().len(),
            bytes: bytes.into(),
        })
    }

    pub(crate) fn is_syn(&self) -> bool {
        self.flags.has(Flags::SYN) && !self.flags.has(Flags::ACK)
    }

    pub(crate) fn is_syn_ack(&self) -> bool {
        self.flags.has(Flags::SYN | Flags::ACK)
    }

    pub(crate) fn is_fin(&self) -> bool {
        self.flags.has(Flags::FIN)
    }

    pub(crate) fn is_rst(&self) -> bool {
        self.flags.has(Flags::RST)
    }

    pub(crate) fn has_data(&self) -> bool {
        self.payload > 0
    }

    /// An ACK without data or another flag.
    pub(crate) fn is_bare_ack(&self) -> bool {
        self.flags.has(Flags::ACK)
            && !self.has_data()
            && !self.is_syn_ack()
            && !self.is_fin()
            && !self.is_rst()
    }

    /// The sequence number behind everything that this packet carries.
    pub(crate) fn end(&self) -> u32 {
        let controls = u32::from(self.flags.has(Flags::SYN)) + u32::from(self.is_fin());
        self.seq.wrapping_add(controls).wrapping_add(u32::try_from(self.payload).unwrap())
    }

    /// Whether it acknowledges everything before `seq`.
    pub(crate) fn acknowledges(&self, seq: u32) -> bool {
        self.flags.has(Flags::ACK) && self.ack.wrapping_sub(seq) < 1 << 31
    }
}
