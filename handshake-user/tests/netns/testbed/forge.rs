//! Forged packets, which no socket of the test sends.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, PacketBuilder, PacketBuilderStep, icmpv4::DestUnreachableHeader,
    icmpv6::DestUnreachableCode,
};

use super::packet::Packet;

const TTL: u8 = 64;

/// ICMP "host unreachable" to the sender of this packet. It quotes the packet, so the kernel finds the
/// socket.
pub(crate) fn host_unreachable(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (packet.destination.ip(), packet.source.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL)
            .icmpv4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host))
            .write(&mut bytes, &packet.bytes),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL)
            .icmpv6(Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address))
            .write(&mut bytes, &packet.bytes),
        _ => unreachable!("both addresses of a packet are of one family"),
    }
    .unwrap();
    bytes
}

/// The RST from a host that does not have the connection of this packet.
pub(crate) fn reset(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    answer_to(packet)
        .tcp(packet.destination.port(), packet.source.port(), packet.ack, 0)
        .ack(packet.end())
        .rst()
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

fn answer_to(packet: &Packet) -> PacketBuilderStep<etherparse::IpHeaders> {
    let headers = match (packet.destination.ip(), packet.source.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, TTL, IpNumber::TCP, from.octets(), to.octets()).unwrap(),
            etherparse::Ipv4Extensions::default(),
        ),
        (IpAddr::V6(from), IpAddr::V6(to)) => etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                next_header: IpNumber::TCP,
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            },
            etherparse::Ipv6Extensions::default(),
        ),
        _ => unreachable!("both addresses of a packet are of one family"),
    };
    PacketBuilder::ip(headers)
}
