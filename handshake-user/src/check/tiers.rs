//! Ways of hooking that later versions will use: whether an empty program attaches that way.

use std::{error::Error, fs::File};

use aya::{
    Btf, Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, FEntry, KProbe},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use super::{
    probes::NEEDS_ROOT,
    report::{Finding, Tier},
};
use crate::probe::load;

/// Runs once for each segment that a time-wait minisocket gets; there in every kernel since 2.6.
const FUNCTION: &str = "tcp_timewait_state_process";

/// Names of the sections, which tell the loader the type of program.
const FENTRY: &str = "fentry/tcp_timewait_state_process";
const KPROBE: &str = "kprobe/tcp_timewait_state_process";
const CGROUP_SKB: &str = "cgroup_skb/ingress";

/// `mov r0, value; exit`, as the kernel stores instructions on this machine.
fn returns(value: i32) -> Vec<u8> {
    // BPF_ALU64 | BPF_MOV | BPF_K, and BPF_JMP | BPF_EXIT.
    [(0xb7_u8, value), (0x95, 0)]
        .into_iter()
        .flat_map(|(code, immediate)| {
            let [a, b, c, d] = immediate.to_ne_bytes();
            [code, 0, 0, 0, a, b, c, d]
        })
        .collect()
}

/// Tries every tier. `cgroup2` is where cgroup v2 is mounted.
pub fn look(cgroup2: Option<&str>) -> Vec<Tier> {
    let finding = |result: Result<(), Box<dyn Error>>| match result {
        Ok(()) => Finding::AVAILABLE,
        Err(error) => judge(&chain(error.as_ref())),
    };
    vec![
        Tier {
            name: "fentry",
            finding: finding(fentry()),
            adds: "the peer's FIN that reaches a time-wait minisocket, the time in TIME_WAIT, SYN cookies",
        },
        Tier { name: "kprobe", finding: finding(kprobe()), adds: "what fentry adds, at a higher cost" },
        Tier {
            name: "cgroup_skb",
            finding: match cgroup2 {
                Some(root) => finding(cgroup_skb(root)),
                None => Finding::not_tested("cgroup v2 is not mounted"),
            },
            adds: "the peer's FIN that reaches a time-wait minisocket, read from the packets",
        },
    ]
}

/// Root is told EPERM only where the kernel means this very thing; anybody else is told so of everything.
fn judge(error: &str) -> Finding {
    let told_no = error.contains("Operation not permitted") || error.contains("Permission denied");
    if told_no && !may_load() {
        Finding::not_tested(NEEDS_ROOT)
    } else {
        Finding::refused(crate::probe::shorten(error))
    }
}

/// Whether an eBPF program of the simplest kind loads: what else is refused is refused for its own sake.
fn may_load() -> bool {
    let load = || -> Result<(), Box<dyn Error>> {
        let mut ebpf = Ebpf::load(&object("tracepoint/sock/inet_sock_set_state", 0)?)?;
        let program: &mut aya::programs::TracePoint =
            ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
        Ok(load(|| program.load())?)
    };
    load().is_ok()
}

fn fentry() -> Result<(), Box<dyn Error>> {
    let mut ebpf = Ebpf::load(&object(FENTRY, 0)?)?;
    let program: &mut FEntry = ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
    let btf = Btf::from_sys_fs()?;
    load(|| program.load(FUNCTION, &btf))?;
    program.attach()?;
    Ok(())
}

fn kprobe() -> Result<(), Box<dyn Error>> {
    let mut ebpf = Ebpf::load(&object(KPROBE, 0)?)?;
    let program: &mut KProbe = ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
    load(|| program.load())?;
    program.attach(FUNCTION, 0)?;
    Ok(())
}

/// Lets every packet pass, for the moment that it is there. As a link it stands beside other programs, whatever the
/// mode; a kernel that knows links refuses any other mode with them.
fn cgroup_skb(root: &str) -> Result<(), Box<dyn Error>> {
    let mut ebpf = Ebpf::load(&object(CGROUP_SKB, 1)?)?;
    let program: &mut CgroupSkb = ebpf.program_mut(PROGRAM).ok_or("no program")?.try_into()?;
    load(|| program.load())?;
    program.attach(File::open(root)?, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)?;
    Ok(())
}

const PROGRAM: &str = "attempt";

/// An object file with one program that does nothing but return `value`.
fn object(section: &str, value: i32) -> Result<Vec<u8>, object::write::Error> {
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, endianness);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Dual MIT/GPL\0", 1);
    let text = object.add_section(Vec::new(), section.as_bytes().to_vec(), SectionKind::Text);
    let code = returns(value);
    object.append_section_data(text, &code, 8);
    object.add_symbol(Symbol {
        name: PROGRAM.as_bytes().to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    object.write()
}

/// An error with all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_reads_what_is_written() {
        for (section, value) in [(FENTRY, 0), (KPROBE, 0), (CGROUP_SKB, 1)] {
            let bytes = object(section, value).unwrap();
            let parsed = aya_parses(&bytes);
            assert_eq!(parsed, [PROGRAM], "{section}");
        }
    }

    /// Names of the programs; loading nothing into the kernel, so it needs no root.
    fn aya_parses(bytes: &[u8]) -> Vec<String> {
        let ebpf = aya::EbpfLoader::new().btf(None).load(bytes).unwrap();
        ebpf.programs().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn two_instructions() {
        let code = returns(1);
        assert_eq!(code.len(), 16);
        assert_eq!((code[0], code[8]), (0xb7, 0x95));
    }
}
