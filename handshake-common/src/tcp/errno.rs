//! Error numbers of Linux (`include/uapi/asm-generic/errno.h`) that end connections.
#![expect(missing_docs, reason = "the names are the kernel's")]

pub const EACCES: u16 = 13;
pub const EPIPE: u16 = 32;
pub const ENONET: u16 = 64;
pub const ENOPROTOOPT: u16 = 92;
pub const ENETUNREACH: u16 = 101;
pub const ECONNABORTED: u16 = 103;
pub const ECONNRESET: u16 = 104;
pub const ETIMEDOUT: u16 = 110;
pub const ECONNREFUSED: u16 = 111;
pub const EHOSTDOWN: u16 = 112;
pub const EHOSTUNREACH: u16 = 113;
