//! TLS handshakes of real programs: what the tracer says of them, beside what the link carried.

mod certificate;
mod hello;
mod programs;
mod row;
mod scenario;
mod settings;
mod wire;
mod witness;

mod classes;
mod early_data;
mod failed;
mod table;
mod traps;
