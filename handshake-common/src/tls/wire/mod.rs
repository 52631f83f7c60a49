//! TLS as it is on the wire: what can be known of a handshake from its bytes, whatever the library.
//!
//! In the kernel [`walk`] goes from record header to record header, packet by packet, until the handshake is over; it
//! keeps a log of records and says which bytes of a packet belong to a ClientHello or ServerHello.

pub mod record;
pub mod state;
pub mod walk;

pub use record::{Mark, Record};
pub use state::{Ending, Wire};
pub use walk::{Direction, Due, Next, Payload, Segment, closed, walk};
