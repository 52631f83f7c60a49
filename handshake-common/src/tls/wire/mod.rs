//! TLS on the wire: what the kernel side does with each packet of a handshake, and what it sends of it.
//!
//! [`track()`] goes from record header to record header, packet by packet, until the handshake is over; it
//! keeps a log of records in a [`Wire`] and says which bytes of a packet belong to a ClientHello or
//! ServerHello. What they mean, user space says.

pub mod burst;
mod opening;
pub mod packet;
pub mod pass;
pub mod raw;
pub mod record;
pub mod state;
pub mod tracker;

pub use burst::{Burst, BurstFlags};
pub use opening::{begins_hello, may_be_proxy_header, proxy_header};
pub use packet::{Direction, Next, PacketAction, Payload, Segment};
pub use pass::pass;
pub use raw::{HelloFragment, WireHandshake};
pub use record::{Record, RecordFlags};
pub use state::{Ending, Wire};
pub use tracker::{MAX_PER_PACKET, arrive, closed, depart, is_refused, may_be_refused, next_record, track};
