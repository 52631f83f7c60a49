//! Connection establishment.

mod established;
mod failed;
mod fast_open;
mod final_ack;
mod lost;
