//! Any bytes as the unwind table of a library.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|frames: &[u8]| {
    handshake_fuzz::elf::inspect(&handshake_fuzz::library::with_frames(frames));
});
