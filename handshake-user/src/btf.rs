//! Finds the kernel's structure members: `/sys/kernel/btf/vmlinux` in, [`Layout`] out.

use std::{cell::RefCell, convert::Infallible};

use btf_rs::{Btf, Type};
use handshake_common::layout::{Bit, Layout};
use thiserror::Error;

/// Why a member cannot be found.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel does not say.
    #[error("the kernel's BTF has no {structure}.{path}")]
    Missing {
        /// Structure of the kernel.
        structure: &'static str,
        /// Dotted path within it.
        path: &'static str,
    },
    /// The data is damaged, or newer than this program.
    #[error("cannot read the kernel's BTF: {0}")]
    Malformed(String),
}

/// Members that not every kernel has; a bit that is absent reads as clear.
const OPTIONAL: &[&str] = &["tcp_usec_ts"];

/// Resolves every member that the eBPF programs read.
///
/// # Errors
/// When the BTF is damaged or the kernel lacks a member.
pub fn layout(btf: &Btf) -> Result<Layout, BtfError> {
    Layout::resolve_with(
        |_, structure, path| {
            let bits = member_bits(btf, structure, path)?;
            Ok(bits / 8)
        },
        |name, structure, path| match member_bits(btf, structure, path) {
            Ok(bits) => Ok(Bit { offset: bits / 8, mask: 1 << (bits % 8) }),
            Err(BtfError::Missing { .. }) if OPTIONAL.contains(&name) => Ok(Bit::ABSENT),
            Err(error) => Err(error),
        },
    )
}

/// What [`layout`] looks for, and what of it is not there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// How many members are looked for.
    pub members: usize,
    /// Those that cannot be found, as `structure.member`.
    pub missing: Vec<String>,
}

/// Looks for every member that the eBPF programs read, where [`layout`] ends at the first that is missing.
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
    btf.resolve_ids_by_name(&format!("btf_trace_{name}")).is_ok_and(|ids| !ids.is_empty())
}

/// Offset in bits of a member named by a dotted path.
fn member_bits(btf: &Btf, structure: &'static str, path: &'static str) -> Result<u32, BtfError> {
    let missing = || BtfError::Missing { structure, path };
    let candidates = btf.resolve_types_by_name(structure).map_err(|_| missing())?;
    for candidate in candidates {
        if !matches!(candidate, Type::Struct(_)) {
            continue;
        }
        let mut here = Some((candidate, 0));
        for name in path.split('.') {
            here = match here {
                Some((outer, bits)) => find(btf, &outer, name, bits, 0)?,
                None => None,
            };
        }
        if let Some((_, bits)) = here {
            return Ok(bits);
        }
    }
    Err(missing())
}

/// Looks for `name` among the members of `outer`, and inside its anonymous members.
fn find(btf: &Btf, outer: &Type, name: &str, base: u32, depth: u32) -> Result<Option<(Type, u32)>, BtfError> {
    /// Deeper than any structure of the kernel: a loop in damaged data ends here.
    const DEEPEST: u32 = 16;
    let malformed = |error: btf_rs::Error| BtfError::Malformed(error.to_string());
    let (Type::Struct(members) | Type::Union(members)) = outer else { return Ok(None) };
    for member in &members.members {
        let bits = base.saturating_add(member.bit_offset());
        let member_name = btf.resolve_name(member).unwrap_or_default();
        if member_name == name {
            return Ok(Some((resolve(btf, member).map_err(malformed)?, bits)));
        }
        if member_name.is_empty() && depth < DEEPEST {
            let inner = resolve(btf, member).map_err(malformed)?;
            if let Some(found) = find(btf, &inner, name, bits, depth + 1)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// The member's type behind its typedefs and qualifiers.
fn resolve(btf: &Btf, member: &dyn btf_rs::BtfType) -> Result<Type, btf_rs::Error> {
    let mut resolved = btf.resolve_chained_type(member)?;
    // Chains are short; the bound is for damaged data.
    for _ in 0..32 {
        resolved = match &resolved {
            Type::Typedef(inner) => btf.resolve_chained_type(inner)?,
            Type::Const(inner) | Type::Volatile(inner) | Type::Restrict(inner) => {
                btf.resolve_chained_type(inner)?
            }
            Type::TypeTag(inner) => btf.resolve_chained_type(inner)?,
            _ => break,
        };
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_data_is_an_error_not_a_panic() {
        assert!(Btf::from_bytes(b"").is_err());
        assert!(Btf::from_bytes(&[0xff; 64]).is_err());
    }

    #[test]
    fn the_running_kernel_has_every_member() {
        let path = "/sys/kernel/btf/vmlinux";
        let Ok(bytes) = std::fs::read(path) else {
            assert!(std::env::var_os("CI").is_none(), "{path} cannot be read, and CI must not skip this");
            eprintln!("left out: {path} cannot be read here");
            return;
        };
        let btf = Btf::from_bytes(&bytes).expect("the kernel's own BTF");
        let layout = layout(&btf).expect("every member");
        assert_eq!(audit(&btf).missing, Vec::<String>::new());
        assert_eq!(layout.syn_data.mask.count_ones(), 1);
        assert!(layout.snd_nxt > layout.inet_sport, "tcp_sock begins with the inet_sock");
        assert!(has_tracepoint(&btf, "inet_sock_set_state"));
        assert!(!has_tracepoint(&btf, "no_such_tracepoint"));
    }
}
