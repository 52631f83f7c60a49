//! TLS as it is on the wire: what can be known of a handshake from its bytes, whatever the library.
//!
//! In the kernel [`walk()`] goes from record header to record header, packet by packet, until the handshake is over; it
//! keeps a log of records in a [`Wire`] and says which bytes of a packet belong to a ClientHello or ServerHello. In user
//! space [`Hellos::read`] puts those bytes together, and [`verdict()`] says what it all means.

pub mod alert;
pub mod cipher;
pub mod client_hello;
mod extensions;
pub mod group;
pub mod message;
mod opening;
pub mod packet;
pub mod raw;
mod reader;
pub mod record;
pub mod server_hello;
pub mod state;
pub mod trips;
pub mod verdict;
pub mod walk;

pub use client_hello::ClientHello;
pub use extensions::Protocols;
pub use message::{Buffers, Hellos, Piece};
pub use opening::begins_hello;
pub use packet::{Direction, Due, Next, Payload, Segment};
pub use raw::{Excerpt, Sighting};
pub use reader::Numbers;
pub use record::{Mark, Record};
pub use server_hello::ServerHello;
pub use state::{Ending, Wire};
pub use trips::Way;
pub use verdict::{Alert, Verdict, verdict};
pub use walk::{closed, walk};
