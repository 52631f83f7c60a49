//! Fuzzes the parsers of kernel text that contains names of files, mounts and processes chosen by others. The
//! first byte selects the parser.
#![no_main]

use handshake::{
    fuzzing::{connections, cpus, maps_line, mounts},
    kernel::probe::{
        hook::HOOKS,
        plan::{Offer, plan},
    },
    settings::AttachMode,
};
use handshake_common::tls::discover::{self, Mapping};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 6 {
        0 => {
            for line in bytes.split(|byte| *byte == b'\n') {
                if let Some(path) = maps_line(line) {
                    assert!(path.is_absolute() && path.as_os_str().len() < line.len());
                }
            }
        }
        1 => {
            for kind in ["tracefs", "cgroup2"] {
                assert!(mounts(&text, kind).len() <= text.lines().count());
            }
        }
        2 => assert!(connections(&text) <= text.lines().count() as i64),
        3 => assert!(cpus(&text, 10_000).len() <= 10_000),
        4 => {
            let plan = plan(AttachMode::Tracepoint, |_| Offer {
                typed: false,
                format: Some(text.clone().into_owned()),
            });
            assert_eq!(plan.len(), HOOKS.len());
            for (planned, hook) in plan.iter().zip(HOOKS) {
                assert!(
                    planned.offsets.as_ref().is_ok_and(|offsets| offsets.len() == hook.perf_fields.len())
                        || planned.offsets.is_err()
                );
            }
        }
        _ => {
            let records = bytes.chunks(discover::SIZE as usize).filter_map(Mapping::from_bytes);
            assert_eq!(records.count(), bytes.len() / discover::SIZE as usize);
        }
    }
});
