//! What to attach. Pure: facts about the kernel in, plan out.

use super::{
    error::HookError,
    hook::{HOOKS, Hook, PerfField},
};
use crate::settings::AttachMode;

/// What this kernel offers for one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The kernel's BTF types this tracepoint.
    pub typed: bool,
    /// The perf tracepoint's `format` file, where tracefs can be read.
    pub format: Option<String>,
}

/// The value of a global in the eBPF object: where a perf tracepoint's record has a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Symbol in the eBPF object.
    pub global: &'static str,
    /// Bytes from the start of the record.
    pub bytes: u32,
}

/// A hook and how it is attached, or why not.
#[derive(Debug)]
pub struct Planned {
    /// Which one.
    pub hook: &'static Hook,
    /// The offsets that the perf variant needs; the typed program needs none.
    pub offsets: Result<Vec<Offset>, HookError>,
}

/// Plans an attach mode for every hook: a kernel that refuses one typed program refuses them all.
#[must_use]
pub fn plan(mode: AttachMode, offer: impl Fn(&Hook) -> Offer) -> Vec<Planned> {
    HOOKS
        .iter()
        .map(|hook| {
            let offer = offer(hook);
            let offsets = match mode {
                AttachMode::TpBtf if offer.typed => Ok(Vec::new()),
                AttachMode::TpBtf => Err(HookError::NotInBtf { tracepoint: hook.name }),
                AttachMode::Tracepoint => match &offer.format {
                    Some(format) => perf_offsets(hook, format),
                    None => Err(HookError::NotInTracefs { category: hook.category, tracepoint: hook.name }),
                },
            };
            Planned { hook, offsets }
        })
        .collect()
}

/// Reads the offsets of a hook's fields from the tracepoint's `format` file.
fn perf_offsets(hook: &Hook, format: &str) -> Result<Vec<Offset>, HookError> {
    let Hook { category, name: tracepoint, .. } = *hook;
    hook.perf_fields
        .iter()
        .map(|&PerfField { global, field }| match field_offset(format, field) {
            Some(bytes) => Ok(Offset { global, bytes }),
            None => Err(HookError::NoField { category, tracepoint, field }),
        })
        .collect()
}

/// The offset of a field. Returns `None` if the record has no such field. Lines look like `field:const void *
/// skaddr; offset:8; size:8; signed:0;`.
fn field_offset(format: &str, name: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        let declared = declaration.rsplit([' ', '*']).next()?;
        if declared != name {
            return None;
        }
        parts.find_map(|part| part.strip_prefix("offset:"))?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: tcp_destroy_sock\nID: 1\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n";

    #[test]
    fn offsets_are_read_from_the_format_file() {
        assert_eq!(field_offset(FORMAT, "skaddr"), Some(8));
        assert_eq!(field_offset(FORMAT, "sport"), Some(24));
        assert_eq!(field_offset(FORMAT, "nothing"), None);
        assert_eq!(field_offset("field:;offset:x", ""), None);
    }

    #[test]
    fn missing_tracepoint_is_planned_with_the_reason() {
        let plan = plan(AttachMode::Tracepoint, |hook| Offer {
            typed: true,
            format: (hook.name == "tcp_destroy_sock").then(|| FORMAT.to_owned()),
        });
        assert_eq!(plan.len(), HOOKS.len());
        for planned in plan {
            match planned.hook.name {
                "tcp_destroy_sock" => {
                    let expected = Offset { global: "DESTROY_SKADDR", bytes: 8 };
                    assert_eq!(planned.offsets.unwrap(), [expected]);
                }
                _ => assert!(matches!(planned.offsets, Err(HookError::NotInTracefs { .. }))),
            }
        }
    }

    #[test]
    fn typed_tracepoints_need_no_tracefs() {
        let plan = plan(AttachMode::TpBtf, |_| Offer { typed: true, format: None });
        assert!(plan.iter().all(|planned| planned.offsets.as_ref().is_ok_and(Vec::is_empty)));
    }
}
