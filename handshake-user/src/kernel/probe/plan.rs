//! What to attach, and what is lost without it. Pure: kernel facts in, plan out.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::wire;

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// BTF-typed raw tracepoints. The cheapest.
    TpBtf,
    /// Perf tracepoints, for kernels that refuse the former.
    Tracepoint,
}

impl Attach {
    /// The word for metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// A member of a perf tracepoint's record, and the global that carries its offset.
#[derive(Debug, PartialEq, Eq)]
pub struct PerfField {
    /// Symbol in the eBPF object.
    pub global: &'static str,
    /// Name in the tracepoint's `format` file.
    pub field: &'static str,
}

/// A tracepoint that the program hooks.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// The tracepoint, and the BTF-typed program on it; its twin ends in `_perf`.
    pub name: &'static str,
    /// The folder of the perf tracepoint.
    pub category: &'static str,
    /// Without it nothing can be measured.
    pub required: bool,
    /// What is unknown without it.
    pub lost_without: &'static str,
    /// What the twin reads.
    pub perf_fields: &'static [PerfField],
}

impl Hook {
    /// How it is attached, where tracepoints are attached in this way.
    #[must_use]
    pub fn kind(&self, way: Attach) -> &'static str {
        // Of those that are no tracepoints, the category says it.
        if self.category == wire::CATEGORY { self.category } else { way.as_str() }
    }
}

macro_rules! fields {
    ($($global:literal = $field:literal),*) => { &[$(PerfField { global: $global, field: $field }),*] };
}

/// Both tracepoints are of one class.
const SOCK_LENGTH: &[PerfField] =
    fields!("SOCK_LENGTH_SK" = "sk", "SOCK_LENGTH_RET" = "ret", "SOCK_LENGTH_FLAGS" = "flags");

/// Every hook, in the order of a connection's life.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "inet_sock_set_state",
        category: "sock",
        required: true,
        lost_without: "everything: openings and closings are not seen",
        perf_fields: fields!(
            "SET_STATE_SKADDR" = "skaddr",
            "SET_STATE_OLDSTATE" = "oldstate",
            "SET_STATE_NEWSTATE" = "newstate"
        ),
    },
    Hook {
        name: "tcp_retransmit_skb",
        category: "tcp",
        required: false,
        lost_without: "retransmitted SYNs of openings that are still under way, and when a deferred SYN left",
        perf_fields: fields!("RETRANSMIT_SKB_SKADDR" = "skaddr"),
    },
    Hook {
        name: "tcp_retransmit_synack",
        category: "tcp",
        required: false,
        lost_without: "the duration of server openings whose SYN-ACK was sent again",
        perf_fields: fields!("RETRANSMIT_SYNACK_REQ" = "req"),
    },
    Hook {
        name: "tcp_send_reset",
        category: "tcp",
        required: false,
        lost_without: "closings by a RST of this host: their style is unknown",
        perf_fields: fields!("SEND_RESET_SKADDR" = "skaddr", "SEND_RESET_SKBADDR" = "skbaddr"),
    },
    Hook {
        name: "tcp_receive_reset",
        category: "tcp",
        required: false,
        lost_without: "closings by a RST of the peer: their style is unknown",
        perf_fields: fields!("RECEIVE_RESET_SKADDR" = "skaddr"),
    },
    Hook {
        name: "sock_send_length",
        category: "sock",
        required: false,
        lost_without: "the connection of TLS handshakes whose library keeps no socket, and their flights (Linux 6.3)",
        perf_fields: SOCK_LENGTH,
    },
    Hook {
        name: "sock_recv_length",
        category: "sock",
        required: false,
        lost_without: "when the ClientHello arrived at a TLS server, and what of its time was computing (Linux 6.3)",
        perf_fields: SOCK_LENGTH,
    },
    Hook {
        name: "tcp_destroy_sock",
        category: "tcp",
        required: true,
        lost_without: "the end of sockets: state would stay behind and closings could not be finished",
        perf_fields: fields!("DESTROY_SKADDR" = "skaddr"),
    },
];

/// What this kernel offers for one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The kernel's BTF types this tracepoint.
    pub typed: bool,
    /// The perf tracepoint's `format` file, where tracefs can be read.
    pub format: Option<String>,
}

/// A hook and how it is attached, or why not.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    /// Which one.
    pub hook: &'static Hook,
    /// How, with the offsets for a perf twin.
    pub attach: Result<Vec<(&'static str, u32)>, String>,
}

/// Plans one way of attaching for every hook: whoever refuses one typed program refuses them all.
#[must_use]
pub fn plan(way: Attach, offer: impl Fn(&Hook) -> Offer) -> Vec<Planned> {
    HOOKS
        .iter()
        .map(|hook| {
            let offer = offer(hook);
            let attach = match way {
                Attach::TpBtf if offer.typed => Ok(Vec::new()),
                Attach::TpBtf => Err(format!("the kernel's BTF does not know the tracepoint {}", hook.name)),
                Attach::Tracepoint => match &offer.format {
                    Some(format) => perf_offsets(hook, format),
                    None => Err(format!(
                        "tracefs has no {}/{}: the kernel lacks it, or tracefs is not mounted \
                         (mount -t tracefs tracefs /sys/kernel/tracing)",
                        hook.category, hook.name
                    )),
                },
            };
            Planned { hook, attach }
        })
        .collect()
}

/// Reads the offsets of a hook's fields out of the tracepoint's `format` file.
fn perf_offsets(hook: &Hook, format: &str) -> Result<Vec<(&'static str, u32)>, String> {
    hook.perf_fields
        .iter()
        .map(|wanted| {
            field_offset(format, wanted.field).map(|offset| (wanted.global, offset)).ok_or_else(|| {
                format!("the tracepoint {}/{} has no field {}", hook.category, hook.name, wanted.field)
            })
        })
        .collect()
}

/// The offset of a field: lines look like `field:const void * skaddr; offset:8; size:8; signed:0;`.
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
    fn offsets_come_from_the_format() {
        assert_eq!(field_offset(FORMAT, "skaddr"), Some(8));
        assert_eq!(field_offset(FORMAT, "sport"), Some(24));
        assert_eq!(field_offset(FORMAT, "nothing"), None);
        assert_eq!(field_offset("field:;offset:x", ""), None);
    }

    #[test]
    fn a_missing_tracepoint_is_planned_as_missing_with_the_reason() {
        let plan = plan(Attach::Tracepoint, |hook| Offer {
            typed: true,
            format: (hook.name == "tcp_destroy_sock").then(|| FORMAT.to_owned()),
        });
        assert_eq!(plan.len(), HOOKS.len());
        for planned in plan {
            match planned.hook.name {
                "tcp_destroy_sock" => assert_eq!(planned.attach, Ok(vec![("DESTROY_SKADDR", 8)])),
                _ => assert!(planned.attach.unwrap_err().contains("tracefs")),
            }
        }
    }

    #[test]
    fn typed_tracepoints_need_no_tracefs() {
        let plan = plan(Attach::TpBtf, |_| Offer { typed: true, format: None });
        assert!(plan.iter().all(|planned| planned.attach == Ok(Vec::new())));
    }
}
