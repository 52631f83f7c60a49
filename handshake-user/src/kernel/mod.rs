//! What talks to the kernel: its type information ([`btf`]), the programs in it ([`probe`]), the records that
//! they write ([`raw_record`]) to a ring buffer ([`ring`]), those that one asks for ([`iterator`]), and what
//! they tell of its listening sockets ([`listeners`]) and of who has them open ([`open_files`]).

pub mod btf;
pub mod iterator;
pub mod listeners;
mod open_files;
pub mod probe;
pub mod raw_record;
pub mod ring;
pub(crate) mod syscall;
