//! One file a tracepoint. Each has a BTF-typed program and a twin on the perf tracepoint; both share one
//! body.

mod destroy;
mod reset;
mod retransmit;
mod state;

/// Offset of a member in a perf tracepoint's record, filled in by user space from the `format` file.
macro_rules! perf_field {
    ($name:ident) => {{
        #[unsafe(no_mangle)]
        static $name: u32 = 8;
        crate::kernel::constant(&$name) as usize
    }};
}
pub(crate) use perf_field;
pub(crate) use state::{adopt_in_place, adopt_now};
