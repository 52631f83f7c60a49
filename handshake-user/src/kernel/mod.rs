//! What talks to the kernel: its type information ([`btf`]), the programs in it ([`probe`]), and the records
//! that they write ([`raw_record`]) to a ring buffer ([`ring`]).

pub mod btf;
pub mod probe;
pub mod raw_record;
pub mod ring;
pub(crate) mod syscall;
