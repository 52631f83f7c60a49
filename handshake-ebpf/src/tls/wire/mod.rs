//! TLS handshakes as their packets show them, whatever the library: `cgroup_skb` on the cgroup v2 root.
//!
//! Both programs run for every packet of the host, so nearly all packets leave at the first look: those of
//! other protocols, and while no handshake is under way on their connection, those of connections that have
//! moved more bytes than come before any handshake, and those whose payload does not begin as one. What is
//! left is read ([`packet`]), and followed from its ClientHello on ([`follow`]).

mod copy;
mod follow;
mod maps;
mod packet;

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};
pub(crate) use follow::{established, socket_closed};
use handshake_common::tls::wire::Direction;

/// Lets the packet pass.
const PASS: i32 = 1;

#[cgroup_skb(egress)]
pub(crate) fn wire_egress(ctx: SkBuffContext) -> i32 {
    follow::look(&ctx, Direction::Sent);
    PASS
}

#[cgroup_skb(ingress)]
pub(crate) fn wire_ingress(ctx: SkBuffContext) -> i32 {
    follow::look(&ctx, Direction::Received);
    PASS
}
