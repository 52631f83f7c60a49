//! TLS, by view: the libraries that make handshakes ([`library`]), where they are found ([`discover`]), and the bytes on
//! the wire ([`wire`]). What all of them count round trips by is in [`handshake_path`].

pub mod discover;
pub mod handshake_path;
pub mod library;
pub mod reader;
pub mod wire;
