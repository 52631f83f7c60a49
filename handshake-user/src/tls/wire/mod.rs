//! TLS on the wire, as user space reads it: [`Hellos::read`] reassembles the hellos from the bytes that the
//! kernel side copied, and [`verdict()`] interprets them together with the kernel side's log of records.

pub mod alert;
pub mod certificate;
pub mod cipher;
pub mod client_hello;
mod extensions;
pub mod group;
pub mod message;
mod reader;
pub mod server_hello;
pub mod signature;
pub mod verdict;

pub use certificate::Certificate;
pub use client_hello::ClientHello;
pub use extensions::Protocols;
pub use message::{Buffers, Hellos, Piece};
pub use reader::Numbers;
pub use server_hello::ServerHello;
pub use verdict::{Alert, Verdict, verdict};
