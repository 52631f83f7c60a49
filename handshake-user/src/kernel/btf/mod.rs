//! Finds the kernel's structure members: `/sys/kernel/btf/vmlinux` in, [`Layout`] out.

mod error;
mod function;
mod types;

use std::{cell::RefCell, convert::Infallible};

use handshake_common::layout::{ABSENT, Bit, Layout};

pub use self::{
    error::BtfError,
    function::{Prototype, PrototypeError, arity_of},
    types::Btf,
};

/// Where the kernel describes its types.
pub const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Members that not every kernel has; a bit that is absent reads as clear.
const OPTIONAL: &[&str] = &[
    "tcp_usec_ts",
    "tw_entry_stamp",
    "packets_out",
    "tsorted_sent_queue",
    "sk_ack_backlog",
    "sk_max_ack_backlog",
    "sk_drops",
    "task_run_delay",
    "task_cgroups",
    "css_set_cgroup",
    "cgroup_node",
    "node_id",
    "mptcp_first",
];

/// Finds every member that the eBPF programs read.
///
/// # Errors
/// When the BTF is damaged or the kernel lacks a member.
pub fn layout(btf: &Btf) -> Result<Layout, BtfError> {
    Layout::resolve_with(
        |name, structure, path| match member_bits(btf, structure, path) {
            Ok(bits) => Ok(bits / 8),
            Err(BtfError::Missing { .. }) if OPTIONAL.contains(&name) => Ok(ABSENT),
            Err(error) => Err(error),
        },
        |name, structure, path| match member_bits(btf, structure, path) {
            Ok(bits) => Ok(Bit { offset: bits / 8, mask: 1 << (bits % 8) }),
            Err(BtfError::Missing { .. }) if OPTIONAL.contains(&name) => Ok(Bit::ABSENT),
            Err(error) => Err(error),
        },
    )
}

/// The members that [`layout`] looks for, and those that are missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// How many members are looked for.
    pub members: usize,
    /// Those that cannot be found, as `structure.member`.
    pub missing: Vec<String>,
}

/// Looks for every member that the eBPF programs read; [`layout`] stops at the first that is missing.
#[must_use]
pub fn audit(btf: &Btf) -> Audit {
    let audit = RefCell::new(Audit::default());
    let look = |name: &str, structure, path| -> Result<(), Infallible> {
        let mut audit = audit.borrow_mut();
        audit.members += 1;
        if member_bits(btf, structure, path).is_err() && !OPTIONAL.contains(&name) {
            audit.missing.push(format!("{structure}.{path}"));
        }
        Ok(())
    };
    let Ok(_) = Layout::resolve_with(
        |name, structure, path| look(name, structure, path).map(|()| 0),
        |name, structure, path| look(name, structure, path).map(|()| Bit::ABSENT),
    );
    audit.into_inner()
}

/// Whether the kernel offers a raw tracepoint with typed arguments of this name.
#[must_use]
pub fn has_tracepoint(btf: &Btf, name: &str) -> bool {
    btf.has_typedef(&format!("btf_trace_{name}"))
}

/// Offset in bits of a member named by a dotted path.
fn member_bits(btf: &Btf, structure: &'static str, path: &'static str) -> Result<u32, BtfError> {
    btf.structures(structure)
        .iter()
        .find_map(|&outer| {
            let mut budget = MAX_MEMBERS;
            path.split('.').try_fold((outer, 0_u32), |(outer, base), name| {
                let (inner, bits) = find(btf, outer, name.as_bytes(), MAX_DEPTH, &mut budget)?;
                Some((inner, base.checked_add(bits)?))
            })
        })
        .map(|(_, bits)| bits)
        .ok_or(BtfError::Missing { structure, path })
}

/// More members than the search for any path of the kernel visits: a structure that contains itself ends
/// here.
const MAX_MEMBERS: u32 = 20_000;
/// Deepest nesting of anonymous structures.
const MAX_DEPTH: u32 = 16;

/// The type and the offset in bits of a member of `outer`, or of its anonymous members.
fn find(btf: &Btf, outer: u32, name: &[u8], depth: u32, budget: &mut u32) -> Option<(u32, u32)> {
    for member in btf.members(outer) {
        *budget = budget.checked_sub(1)?;
        if member.name == name {
            return Some((member.type_id, member.bits));
        }
        if member.name.is_empty()
            && depth > 0
            && let Some((inner, bits)) = find(btf, member.type_id, name, depth - 1, budget)
        {
            return Some((inner, member.bits.checked_add(bits)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A blob with `struct a { struct b { int x; }; int y:1; }` (b anonymous), and a structure that contains
    /// itself.
    fn blob() -> Vec<u8> {
        const STRINGS: &[u8] = b"\0a\0x\0y\0loop\0btf_trace_t\0";
        const STRUCT: u32 = 4 << 24;
        let types: Vec<u32> = [
            vec![0, 1 << 24, 4, 32],
            vec![0, STRUCT | 1, 8, 3, 1, 32],
            vec![1, 1 << 31 | STRUCT | 2, 16, 0, 2, 64, 5, 1, 0x0100_0081],
            vec![7, STRUCT | 2, 8, 0, 4, 0, 0, 4, 0],
            vec![12, 8 << 24, 1],
        ]
        .concat();
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let types = words(&types);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let header = [24, 0, length(&types), length(&types), length(STRINGS)];
        [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0], &words(&header), &types, STRINGS].concat()
    }

    #[test]
    fn members_of_anonymous_structures_and_bitfields_are_found() {
        let btf = Btf::from_bytes(blob()).unwrap();
        assert_eq!(member_bits(&btf, "a", "x").unwrap(), 96);
        assert_eq!(member_bits(&btf, "a", "y").unwrap(), 129);
        assert!(matches!(member_bits(&btf, "a", "z"), Err(BtfError::Missing { .. })));
        assert!(has_tracepoint(&btf, "t") && !has_tracepoint(&btf, "u"));
    }

    #[test]
    fn structure_that_contains_itself_is_an_error() {
        let btf = Btf::from_bytes(blob()).unwrap();
        assert!(member_bits(&btf, "loop", "x").is_err());
    }

    proptest! {
        #[test]
        fn damaged_data_does_not_panic(changes in prop::collection::vec((0_usize..240, any::<u8>()), 0..8), cut in 0_usize..240) {
            let mut bytes = blob();
            for (at, byte) in changes {
                if let Some(old) = bytes.get_mut(at) {
                    *old = byte;
                }
            }
            bytes.truncate(cut.max(24));
            if let Ok(btf) = Btf::from_bytes(bytes) {
                let _ = (member_bits(&btf, "a", "x"), member_bits(&btf, "loop", "y"), has_tracepoint(&btf, "t"));
            }
        }
    }

    #[test]
    fn data_without_magic_number_is_an_error() {
        assert!(Btf::from_bytes(*b"").is_err());
        assert!(Btf::from_bytes([0xff; 64]).is_err());
    }

    #[test]
    fn running_kernel_has_every_member() {
        let Ok(bytes) = std::fs::read(PATH) else {
            crate::skip_test::skip_test(&format!("{PATH} cannot be read"));
            return;
        };
        let btf = Btf::from_bytes(bytes).expect("the kernel's own BTF");
        let layout = layout(&btf).expect("every member");
        assert_eq!(audit(&btf).missing, Vec::<String>::new());
        assert_eq!(layout.syn_data.mask.count_ones(), 1);
        assert!(layout.snd_nxt > layout.inet_sport, "tcp_sock begins with the inet_sock");
        assert!(has_tracepoint(&btf, "inet_sock_set_state"));
        assert!(!has_tracepoint(&btf, "no_such_tracepoint"));
    }
}
