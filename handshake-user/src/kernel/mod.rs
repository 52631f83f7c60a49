//! What talks to the kernel: its type information ([`btf`]), the programs in it ([`probe`]), the records that
//! they write ([`raw_record`]) to a ring buffer ([`ring`]), and those that one asks for ([`iterator`]).

pub mod btf;
pub mod iterator;
pub mod probe;
pub mod raw_record;
pub mod ring;
pub(crate) mod syscall;
