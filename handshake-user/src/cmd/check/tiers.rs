//! Program types that later versions will use: whether an empty program of each attaches.

use std::error::Error;

use aya::{
    Ebpf,
    programs::{FEntry, KProbe},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use super::{
    probes::NEEDS_ROOT,
    report::{Finding, Tier},
};
use crate::kernel::probe::{Kernel, LoadError, chain, is_permission_denied, load, shorten};

/// Runs for each segment that a time-wait minisocket receives; every kernel since 2.6 has it.
const FUNCTION: &str = "tcp_timewait_state_process";

/// Section names, which give the loader the program type.
const FENTRY: &str = "fentry/tcp_timewait_state_process";
const KPROBE: &str = "kprobe/tcp_timewait_state_process";

/// `mov r0, 0; exit`: `BPF_ALU64 | BPF_MOV | BPF_K`, and `BPF_JMP | BPF_EXIT`.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Tries every tier.
pub(super) fn look(kernel: &Result<Kernel, LoadError>) -> Vec<Tier> {
    let finding = |result: Result<(), Box<dyn Error>>| match result {
        Ok(()) => Finding::AVAILABLE,
        Err(error) => judge(error.as_ref()),
    };
    vec![
        Tier {
            name: "fentry",
            finding: finding(fentry(kernel)),
            adds: "the peer's FIN that reaches a time-wait minisocket, the time in TIME_WAIT, SYN cookies",
        },
        Tier { name: "kprobe", finding: finding(kprobe()), adds: "what fentry adds, at a higher cost" },
    ]
}

/// For a user who may load programs, `EPERM` is about this program type; for any other it is about
/// everything.
fn judge(error: &(dyn Error + 'static)) -> Finding {
    if is_permission_denied(error) && !may_load() {
        Finding::not_tested(NEEDS_ROOT)
    } else {
        Finding::refused(shorten(&chain(error)))
    }
}

/// Whether the simplest eBPF program loads.
fn may_load() -> bool {
    let load = || -> Result<(), Box<dyn Error>> {
        let mut ebpf = Ebpf::load(&object("tracepoint/sock/inet_sock_set_state")?)?;
        let program: &mut aya::programs::TracePoint =
            ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
        Ok(load(|| program.load())?)
    };
    load().is_ok()
}

fn fentry(kernel: &Result<Kernel, LoadError>) -> Result<(), Box<dyn Error>> {
    let kernel = kernel.as_ref().map_err(ToString::to_string)?;
    let mut ebpf = Ebpf::load(&object(FENTRY)?)?;
    let program: &mut FEntry = ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
    load(|| program.load(FUNCTION, kernel.loader_btf()))?;
    program.attach()?;
    Ok(())
}

fn kprobe() -> Result<(), Box<dyn Error>> {
    let mut ebpf = Ebpf::load(&object(KPROBE)?)?;
    let program: &mut KProbe = ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
    load(|| program.load())?;
    program.attach(FUNCTION, 0)?;
    Ok(())
}

const PROGRAM: &str = "attempt";

/// An object file with one program that does nothing. It is assembled by hand because loading the real object
/// would create all of its maps for each attempt.
fn object(section: &str) -> Result<Vec<u8>, object::write::Error> {
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, endianness);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Dual MIT/GPL\0", 1);
    let text = object.add_section(Vec::new(), section.as_bytes().to_vec(), SectionKind::Text);
    object.append_section_data(text, &CODE, 8);
    object.add_symbol(Symbol {
        name: PROGRAM.as_bytes().to_vec(),
        value: 0,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    object.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_reads_the_object() {
        for section in [FENTRY, KPROBE] {
            let bytes = object(section).unwrap();
            let parsed = aya_parses(&bytes);
            assert_eq!(parsed, [PROGRAM], "{section}");
        }
    }

    /// The names of the programs. Loads nothing into the kernel, so it needs no root.
    fn aya_parses(bytes: &[u8]) -> Vec<String> {
        let ebpf = aya::EbpfLoader::new().btf(None).load(bytes).unwrap();
        ebpf.programs().map(|(name, _)| name.to_owned()).collect()
    }
}
