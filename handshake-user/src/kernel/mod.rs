//! What talks to the kernel: its type information ([`btf`]), the programs in it ([`probe`]), and what they send ([`ring`]).

pub mod btf;
pub mod probe;
pub mod ring;
