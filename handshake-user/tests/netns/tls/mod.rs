//! TLS handshakes of real programs: the tracer's records, compared with what the link carried.

pub(crate) mod certificate;
mod hello;
pub(crate) mod programs;
mod row;
mod scenario;
pub(crate) mod settings;
mod wire;
mod witness;

mod agreed;
mod classes;
mod early_data;
mod failed;
mod relays;
mod roles;
mod short_lived;
mod stalls;
mod table;
mod traps;
