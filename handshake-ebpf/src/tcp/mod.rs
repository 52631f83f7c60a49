//! One file per tracepoint. Each has a BTF-typed program and one on the perf tracepoint, which share one
//! body.

pub(crate) mod adopt;
mod destroy;
pub(crate) mod listener;
mod listener_iterators;
pub(crate) mod minisocket;
pub(crate) mod owner;
mod reset;
mod retransmit;
mod state;
pub(crate) mod time_wait;

/// Offset of a member in a perf tracepoint's record, filled in by user space from the `format` file.
macro_rules! perf_field {
    ($name:ident) => {{
        #[unsafe(no_mangle)]
        static $name: u32 = 8;
        crate::kernel::constant(&$name) as usize
    }};
}
pub(crate) use perf_field;
