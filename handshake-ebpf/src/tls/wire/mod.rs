//! TLS handshakes by their packets, whatever the library: `cgroup_skb` on the cgroup v2 root.
//!
//! The program runs for every packet of the host, so nearly all packets return at the first check: those of
//! other protocols and, while no handshake is in progress on their connection, those of connections that have
//! moved more bytes than precede any handshake, and those whose payload does not begin like one. The rest is
//! parsed ([`packet`]), and followed from its ClientHello on ([`follow`]).

mod copy;
mod follow;
mod maps;
mod packet;

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};
pub(crate) use follow::{established, socket_closed};
/// Lets the packet pass.
const PASS: i32 = 1;

/// Attached to both directions: one program, because the verifier takes most of the start for it. Inlined
/// into what the macro makes of it: each function on the way to the last takes 32 bytes of the stack or more,
/// and there are 512.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn tls_wire(ctx: SkBuffContext) -> i32 {
    follow::look(&ctx);
    PASS
}
