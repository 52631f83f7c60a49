//! Uprobes at many places of a file with one link (`BPF_TRACE_UPROBE_MULTI`, Linux 6.6).
//!
//! Of single uprobes the kernel detaches one after another, and waits for several grace periods of RCU for
//! each; of a link it detaches all, and waits once. aya knows neither these links nor the attach type that
//! their programs need: here the programs are relocated by aya's own object crate, against the maps that aya
//! created.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::{Arc, LazyLock},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, ProgramSection, generated::bpf_insn};

use super::load::load as load_program;
use crate::{
    kernel::syscall::{BPF_LINK_CREATE, BPF_PROG_LOAD, bpf},
    settings::AttachMode,
};

/// `include/uapi/linux/bpf.h`.
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
    /// What the program is told.
    pub(crate) cookie: u64,
}

/// Loads uprobe programs, each when it is first needed, and attaches them.
pub struct UprobeLinks {
    /// All maps, since some are taken out of the object before a program is needed; from then on those that
    /// the programs use.
    maps: HashMap<String, OwnedFd>,
    /// `None` before the first program is needed.
    object: Option<Object>,
    programs: HashMap<&'static str, Arc<OwnedFd>>,
    is_refused: bool,
}

impl UprobeLinks {
    /// For the object of which aya has created the maps, all of which must still be there. Where tracepoints
    /// are attached as perf events (`AttachMode::Tracepoint`), uprobes are as well.
    pub(super) fn new(ebpf: &Ebpf, mode: AttachMode) -> Self {
        let maps = ebpf.maps().filter_map(|(name, map)| {
            let fd = data(map)?.fd().as_fd();
            Some((name.to_owned(), fd.try_clone_to_owned().ok()?))
        });
        let (maps, programs) = (maps.collect(), HashMap::new());
        Self { maps, object: None, programs, is_refused: mode == AttachMode::Tracepoint }
    }

    /// Whether this kernel is known not to have such links.
    pub(crate) const fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Attaches a program to places of a file. Returns the link, and the program if it has been loaded for
    /// that, or `None` if this kernel has no such links.
    ///
    /// # Errors
    /// Why a place cannot be probed; nothing is attached then.
    pub(crate) fn attach(
        &mut self,
        name: &'static str,
        path: &Path,
        places: &[Place],
    ) -> io::Result<Option<(OwnedFd, Option<Arc<OwnedFd>>)>> {
        let is_loaded = self.programs.contains_key(name);
        let Some(program) = self.program(name) else { return Ok(None) };
        let link = create_link(program.as_fd(), path, places)?;
        Ok(Some((link, (!is_loaded).then_some(program))))
    }

    /// Returns `None` if there are no such links here, or no such program.
    fn program(&mut self, name: &'static str) -> Option<Arc<OwnedFd>> {
        if self.is_refused {
            return None;
        }
        if !self.programs.contains_key(name) {
            match self.load(name) {
                Ok(program) => drop(self.programs.insert(name, Arc::new(program))),
                Err(reason) => {
                    tracing::debug!(program = name, reason, "no uprobe links");
                    self.is_refused = true;
                    return None;
                }
            }
        }
        self.programs.get(name).cloned()
    }

    fn load(&mut self, name: &str) -> Result<OwnedFd, String> {
        let object = match &mut self.object {
            Some(object) => object,
            none => {
                let object = relocate(&self.maps)?;
                let used = used(&object);
                self.maps.retain(|_, fd| used.contains(&fd.as_raw_fd()));
                none.insert(object)
            }
        };
        let program = object.programs.get(name).ok_or("the eBPF object lacks the program")?;
        let function = object.functions.get(&program.function_key()).ok_or("the program has no code")?;
        if self.programs.is_empty() {
            // Not with a real one: from the first program on, the array of programs that all of these refer
            // to belongs to one type of attachment.
            let empty = load_program(|| load("empty", &program.license, &EMPTY[..]));
            if !has_links(empty.map_err(|error| error.to_string())?.as_fd()) {
                return Err("this kernel has none (Linux 6.6)".to_owned());
            }
        }
        load_program(|| load(name, &program.license, &function.instructions))
            .map_err(|error| error.to_string())
    }
}

/// `r0 = 0` and `exit`.
static EMPTY: LazyLock<[bpf_insn; 2]> = LazyLock::new(|| {
    [0xb7, 0x95].map(|code| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    })
});

/// A map's descriptor and definition. Returns `None` for kinds that the object does not have.
const fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::Unsupported(data) => Some(data),
        _ => None,
    }
}

/// The object with the descriptors of its maps in its instructions.
fn relocate(maps: &HashMap<String, OwnedFd>) -> Result<Object, String> {
    let mut object = Object::parse(super::load::OBJECT).map_err(|error| error.to_string())?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let defined: Vec<_> = object.maps.drain().collect();
    // Of a map that is missing, aya's crate would take another one's place for granted.
    let with_fds = defined.iter().map(|(name, map)| match maps.get(name) {
        Some(fd) => Ok((name.as_str(), fd.as_raw_fd(), map)),
        None => Err(format!("the map {name} is not open")),
    });
    let with_fds = with_fds.collect::<Result<Vec<_>, _>>()?;
    object.relocate_maps(with_fds.into_iter(), &text).map_err(|error| error.to_string())?;
    object.relocate_calls(&text).map_err(|error| error.to_string())?;
    Ok(object)
}

/// The descriptors in the instructions of the uprobe programs.
fn used(object: &Object) -> HashSet<RawFd> {
    /// `BPF_LD | BPF_IMM | BPF_DW`, and the kinds of it that refer to a map: `BPF_PSEUDO_MAP_FD`, `…_VALUE`.
    const LOAD: u8 = 0x18;
    const OF_MAPS: [u8; 2] = [1, 2];
    let programs = object.programs.values();
    programs
        .filter(|program| matches!(program.section, ProgramSection::UProbe { .. }))
        .filter_map(|program| object.functions.get(&program.function_key()))
        .flat_map(|function| &function.instructions)
        .filter(|load| load.code == LOAD && OF_MAPS.contains(&load.src_reg()))
        .map(|load| load.imm)
        .collect()
}

fn load(name: &str, license: &CStr, code: &[bpf_insn]) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
    #[repr(C)]
    struct ProgLoad {
        program_type: u32,
        length: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    // As long as the kernel allows, with a zero at its end.
    let mut short = [0; 16];
    for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let attr = ProgLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        length: u32::try_from(code.len()).map_err(io::Error::other)?,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: short,
        interface: 0,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
    };
    // SAFETY: code and license outlive the call; the license ends with a zero, and the code has the length
    // given.
    unsafe { bpf(BPF_PROG_LOAD, &attr) }
}

fn create_link(program: BorrowedFd<'_>, path: &Path, places: &[Place]) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that `BPF_LINK_CREATE` reads.
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        path: u64,
        offsets: u64,
        reference_counters: u64,
        cookies: u64,
        count: u32,
        uprobe_flags: u32,
        /// 0: every process.
        pid: u32,
        padding: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
    let cookies: Vec<u64> = places.iter().map(|place| place.cookie).collect();
    let attr = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        target: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        reference_counters: 0,
        cookies: cookies.as_ptr() as u64,
        count: u32::try_from(places.len()).map_err(io::Error::other)?,
        uprobe_flags: 0,
        pid: 0,
        padding: 0,
    };
    // SAFETY: path and arrays outlive the call; the path ends with a zero, and the arrays have the length
    // given.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }
}

/// Whether the kernel knows such links: it refuses a folder as one that is no file (`EBADF`), and anything of
/// which it does not know the type as invalid (`EINVAL`).
fn has_links(program: BorrowedFd<'_>) -> bool {
    let place = Place { offset: 0, cookie: 0 };
    matches!(create_link(program, Path::new("/"), &[place]), Err(error) if error.raw_os_error() == Some(libc::EBADF))
}
