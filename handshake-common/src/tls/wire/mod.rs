//! TLS on the wire: what the kernel side does with each packet of a handshake, and what it sends of it.
//!
//! [`walk()`] goes from record header to record header, packet by packet, until the handshake is over; it keeps a log of
//! records in a [`Wire`] and says which bytes of a packet belong to a ClientHello or ServerHello. What they mean, user
//! space says.

mod opening;
pub mod packet;
pub mod raw;
pub mod record;
pub mod state;
pub mod walk;

pub use opening::begins_hello;
pub use packet::{Direction, Due, Next, Payload, Segment};
pub use raw::{Excerpt, Sighting};
pub use record::{Mark, Record};
pub use state::{Ending, Wire};
pub use walk::{closed, walk};
