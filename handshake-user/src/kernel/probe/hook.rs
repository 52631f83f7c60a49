//! The table of hooks: where the kernel side's programs are attached, and what is unknown without each.

use crate::settings::AttachMode;

/// The program type of the wire view's programs.
pub const CGROUP_SKB: &str = "cgroup_skb";

/// A member of a perf tracepoint's record, and the global that carries its offset.
#[derive(Debug, PartialEq, Eq)]
pub struct PerfField {
    /// Symbol in the eBPF object.
    pub global: &'static str,
    /// Name in the tracepoint's `format` file.
    pub field: &'static str,
}

/// A place in the kernel where programs are attached: a tracepoint, or the packets of a cgroup.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// The tracepoint, and the BTF-typed program on it; the name of its perf variant ends in `_perf`.
    pub name: &'static str,
    /// The folder of the perf tracepoint.
    pub category: &'static str,
    /// Without it nothing can be measured.
    pub required: bool,
    /// What is unknown without it.
    pub lost_without: &'static str,
    /// What the perf variant reads.
    pub perf_fields: &'static [PerfField],
}

impl Hook {
    /// How it is attached when tracepoints are attached in this mode.
    #[must_use]
    pub fn kind(&self, mode: AttachMode) -> &'static str {
        if self.category == CGROUP_SKB { CGROUP_SKB } else { mode.as_str() }
    }
}

macro_rules! fields {
    ($($global:literal = $field:literal),*) => { &[$(PerfField { global: $global, field: $field }),*] };
}

/// Both tracepoints are of one event class.
const SOCK_LENGTH: &[PerfField] =
    fields!("SOCK_LENGTH_SK" = "sk", "SOCK_LENGTH_RET" = "ret", "SOCK_LENGTH_FLAGS" = "flags");

/// Every hook, in the order of a connection's life: they are attached in the reverse order.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "inet_sock_set_state",
        category: "sock",
        required: true,
        lost_without: "everything: connections are not seen to open or close",
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
        lost_without: "retransmitted SYNs of connections that are still opening, and when a deferred SYN left",
        perf_fields: fields!("RETRANSMIT_SKB_SKADDR" = "skaddr"),
    },
    Hook {
        name: "tcp_retransmit_synack",
        category: "tcp",
        required: false,
        lost_without: "how long a server's connection took to open when its SYN-ACK was retransmitted",
        perf_fields: fields!("RETRANSMIT_SYNACK_REQ" = "req"),
    },
    Hook {
        name: "tcp_send_reset",
        category: "tcp",
        required: false,
        lost_without: "how connections closed that this host reset",
        perf_fields: fields!("SEND_RESET_SKADDR" = "skaddr", "SEND_RESET_SKBADDR" = "skbaddr"),
    },
    Hook {
        name: "tcp_receive_reset",
        category: "tcp",
        required: false,
        lost_without: "how connections closed that the peer reset",
        perf_fields: fields!("RECEIVE_RESET_SKADDR" = "skaddr"),
    },
    Hook {
        name: "sock_send_length",
        category: "sock",
        required: false,
        lost_without: "the connection of TLS handshakes whose library has no socket, and their flights (Linux 6.3)",
        perf_fields: SOCK_LENGTH,
    },
    Hook {
        name: "sock_recv_length",
        category: "sock",
        required: false,
        lost_without: "when the ClientHello reached a TLS server, and how long the server computed (Linux 6.3)",
        perf_fields: SOCK_LENGTH,
    },
    Hook {
        name: "tcp_destroy_sock",
        category: "tcp",
        required: true,
        lost_without: "the end of sockets: state would stay behind, and the end of a close would be unknown",
        perf_fields: fields!("DESTROY_SKADDR" = "skaddr"),
    },
];

/// The wire view: two programs on the packets of every cgroup.
pub static TLS_WIRE: Hook = Hook {
    name: "tls_wire",
    category: CGROUP_SKB,
    required: false,
    lost_without: "TLS handshakes of programs whose library is not known; server names, HelloRetryRequests and a \
                   ClientHello in the SYN",
    perf_fields: &[],
};
