//! Real sockets over a link of a known length: what `handshake trace` says is compared with what really happened.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`; the tests of the link
//! itself (`testbed::`) need no program.

#[path = "netns/socket.rs"]
mod socket;
#[path = "netns/testbed/mod.rs"]
mod testbed;
