//! What talks to the kernel: its type information ([`btf`]), the programs in it ([`probe`]), the records
//! that they write ([`raw_record`]) to a ring buffer ([`ring`]), and what is asked of it now and then:
//! iterators over its objects, and its listening sockets ([`listeners`]).

pub mod btf;
pub(crate) mod iterator;
pub mod listeners;
pub mod probe;
pub mod raw_record;
pub mod ring;
