//! Fuzzes the daemon's configuration with arbitrary text.
#![no_main]

use std::path::Path;

use handshake::fuzzing::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match config(text, Path::new("handshake.toml")) {
        Ok(config) => {
            let buckets = config.metrics.buckets.kernel_bounds();
            assert!(
                !buckets.is_empty() && buckets.is_sorted() && buckets.iter().all(|bound| bound.is_finite())
            );
            assert!(config.metrics.remote_net.0 <= 32 && config.metrics.remote_net.1 <= 128);
            assert!(config.probes.ring_kib >= 4 && config.probes.max_connections >= 1);
        }
        Err(error) => {
            let error = format!("{error:#}");
            assert!(error.starts_with("handshake.toml, line "), "{error}");
            assert!(!error.contains('\n'), "an error is one line");
        }
    }
});
