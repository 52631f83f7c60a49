//! Fuzzes the parser of `ld.so.cache` with arbitrary bytes.
#![no_main]

use handshake::fuzzing::ld_cache;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|cache: &[u8]| {
    let paths = ld_cache(cache);
    assert!(paths.len() <= cache.len() / 24, "more libraries than entries");
    assert!(paths.iter().all(|path| path.is_absolute() && path.as_os_str().len() < 4096));
});
