//! What the kernel side and the user side of `handshake` agree on.
//!
//! The way of a connection through this crate: a tracepoint fires, [`tcp::state`] advances the
//! [`Connection`] with what [`tcp::Sock`] reads from the kernel's socket, and when a stage ends the
//! same bytes go through the ring buffer to user space, where [`tcp::open`] and [`tcp::close`] say what
//! they mean. The kernel side calls the same functions for its [`totals`] and [`histograms`], so both can
//! never disagree.
#![warn(clippy::unwrap_used)]
#![expect(
    clippy::inline_always,
    reason = "the kernel side must have it inlined: its programs are one function"
)]
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod connection;
pub mod function;
pub mod histograms;
pub mod integer;
pub mod layout;
pub mod tcp;
pub mod tls;
pub mod totals;
pub mod vocabulary;

pub use connection::{Accepted, Connection, ConnectionFlags, Phase, WirePhase};
pub use layout::Layout;
pub use vocabulary::{
    CloseStyle, Family, FastOpen, FastOpenReason, FinalAck, Initiator, Kind, Library, MinisocketStep,
    Outcome, ProcessBy, Role, Stage, TimeWaitEnd, TlsClass, TlsOutcome, TlsSource, TlsVersion,
};
/// The bytes of a raw record: `as_bytes()`.
pub use zerocopy::IntoBytes;
