//! TLS, by view: the libraries that make handshakes ([`library`]), where they are found ([`discover`]), and the bytes on
//! the wire ([`wire`]).

pub mod discover;
pub mod library;
pub mod wire;
