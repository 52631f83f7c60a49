//! TLS handshakes by the calls of their libraries: one file a library, and `call.rs`, which they share.
//!
//! A library's file knows when a call begins a handshake and what to read from the object at its end;
//! [`call`] keeps the session in between, and [`socket`] sees which socket the call uses.

pub(crate) mod call;
mod fd;
mod gnutls;
mod go;
mod join;
mod maps;
mod object;
mod openssl;
mod returns;
mod socket;
