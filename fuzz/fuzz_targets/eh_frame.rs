//! Fuzzes the inspection of a library with an arbitrary unwind table.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|frames: &[u8]| {
    handshake_fuzz::elf::inspect(&handshake_fuzz::library::with_frames(frames));
});
