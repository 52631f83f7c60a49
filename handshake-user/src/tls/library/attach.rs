//! Attaches the uprobes of a library file, and detaches them.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::AsFd as _,
    path::Path,
    sync::PoisonError,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError},
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use handshake_common::{
    Library,
    tls::library::target::{MAP, MAX_TARGETS, Target},
};
use thiserror::Error;

use super::{
    budget::Budget,
    inspect::{Inspection, ProbeKind},
};
use crate::kernel::probe::{LoadedPrograms, chain, is_permission_denied, load, shorten};

/// Why the files of TLS libraries, or one of them, cannot be probed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The object is not the one that this program was built with.
    #[error("the eBPF object lacks its table of TLS libraries")]
    NoTable,
    /// The table cannot be used.
    #[error("cannot use the table of TLS libraries: {}", chain(.0))]
    Table(#[from] MapError),
    /// Every entry of the table is taken.
    #[error("more than {MAX_TARGETS} files of TLS libraries are in use")]
    TableFull,
    /// The object lacks a program.
    #[error("the eBPF object lacks {0}")]
    NoProgram(&'static str),
    /// The object has a program of this name for something else, or the kernel refused to load it.
    #[error("cannot load {program}: {}", shorten(&chain(error)))]
    Program {
        /// Its name.
        program: &'static str,
        /// Why not.
        error: ProgramError,
    },
    /// The kernel does not tell a program which of its uprobes was hit.
    #[error("this kernel gives uprobes no cookie (Linux 5.15): its handshakes are seen on the wire alone")]
    NoCookie,
    /// The kernel refused the uprobe.
    // `perf_uprobe_event_init`: CAP_PERFMON was enough from 5.8 to 6.15.
    #[error(
        "cannot probe it: {}{}",
        chain(.0),
        if is_permission_denied(.0) { ": uprobes require CAP_SYS_ADMIN" } else { "" }
    )]
    Uprobe(ProgramError),
}

/// The probes of one file.
#[derive(Debug)]
pub struct Probed {
    index: u32,
    /// The user whose budget they count against. `None` if the file has a standard path.
    owner: Option<u32>,
    /// Dropping a link detaches it.
    links: Vec<UProbeLink>,
}

impl Probed {
    /// The number of probes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are no probes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

/// Allocates entries in the table of targets, and attaches the programs.
pub struct Attacher {
    targets: Array<MapData, Target>,
    next: u32,
    free: VecDeque<u32>,
    /// Files that are being detached, probe by probe.
    detaching: VecDeque<Probed>,
    budget: Budget,
    loaded: HashSet<&'static str>,
    programs: LoadedPrograms,
}

impl Attacher {
    /// Takes the table of targets out of the object. Programs are added to `programs` when they are loaded.
    ///
    /// # Errors
    /// If the object lacks it.
    pub fn new(ebpf: &mut Ebpf, programs: LoadedPrograms) -> Result<Self, AttachError> {
        let targets = Array::try_from(ebpf.take_map(MAP).ok_or(AttachError::NoTable)?)?;
        let (free, detaching) = (VecDeque::new(), VecDeque::new());
        let (budget, loaded) = (Budget::default(), HashSet::new());
        Ok(Self { targets, next: 0, free, detaching, budget, loaded, programs })
    }

    /// Attaches a probe to every point of a file. Returns `None` if it has no points. `owner` is `None` if
    /// the file has a standard path.
    ///
    /// # Errors
    /// If a probe cannot be attached. The others are then detached.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        path: &Path,
        owner: Option<u32>,
        inspection: &Inspection,
    ) -> Result<Option<Probed>, AttachError> {
        if inspection.points.is_empty() {
            return Ok(None);
        }
        let index = self.index()?;
        self.targets.set(index, inspection.target, 0)?;
        let mut probed = Probed { index, owner, links: Vec::new() };
        for point in &inspection.points {
            let name = program(inspection.library, point.hook);
            let cookie = u64::from(index) | point.cookie_flags();
            match self.attach_one(ebpf, name, path, point.offset, cookie) {
                Ok(link) => {
                    probed.links.push(link);
                    owner.inspect(|owner| self.budget.add(*owner));
                }
                Err(error) => {
                    self.detach(probed);
                    return Err(error);
                }
            }
        }
        Ok(Some(probed))
    }

    /// Updates the target of a file that was completed by its companion.
    ///
    /// # Errors
    /// If the table cannot be written.
    pub fn update(&mut self, probed: &Probed, inspection: &Inspection) -> Result<(), AttachError> {
        Ok(self.targets.set(probed.index, inspection.target, 0)?)
    }

    /// Has the probes of a file detached, one by each call of [`Attacher::detach_one`].
    pub fn detach(&mut self, probed: Probed) {
        self.detaching.push_back(probed);
    }

    /// Detaches one probe, which takes the kernel up to a tenth of a second. Returns whether there was one.
    pub fn detach_one(&mut self) -> bool {
        let Some(probed) = self.detaching.front_mut() else { return false };
        if let Some(link) = probed.links.pop() {
            drop(link);
            probed.owner.inspect(|owner| self.budget.remove(*owner));
        }
        let is_last = probed.links.is_empty();
        if is_last && let Some(probed) = self.detaching.pop_front() {
            self.free.push_back(probed.index);
        }
        true
    }

    /// Whether probes wait to be detached.
    #[must_use]
    pub fn is_detaching(&self) -> bool {
        !self.detaching.is_empty()
    }

    /// The budgets of users.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The budgets of users, to count files: their probes are counted here.
    pub const fn budget_mut(&mut self) -> &mut Budget {
        &mut self.budget
    }

    /// The number of probes that wait to be detached.
    #[must_use]
    pub fn detaching(&self) -> usize {
        self.detaching.iter().map(Probed::len).sum()
    }

    /// Whether there is no entry left for one more file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.next >= MAX_TARGETS && self.free.is_empty()
    }

    fn index(&mut self) -> Result<u32, AttachError> {
        if self.next < MAX_TARGETS {
            self.next += 1;
            return Ok(self.next - 1);
        }
        self.free.pop_front().ok_or(AttachError::TableFull)
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        path: &Path,
        offset: u64,
        cookie: u64,
    ) -> Result<UProbeLink, AttachError> {
        let program = ebpf.program_mut(name).ok_or(AttachError::NoProgram(name))?;
        let program: &mut UProbe =
            program.try_into().map_err(|error| AttachError::Program { program: name, error })?;
        let newly = self.loaded.insert(name);
        if newly && let Err(error) = load(|| program.load()) {
            self.loaded.remove(name);
            for line in chain(&error).lines() {
                tracing::debug!(program = name, "{line}");
            }
            return Err(if aya::features().bpf_cookie() {
                AttachError::Program { program: name, error }
            } else {
                AttachError::NoCookie
            });
        }
        if newly && let Some(fd) = program.fd().ok().and_then(|fd| fd.as_fd().try_clone_to_owned().ok()) {
            self.programs.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), fd));
        }
        let location = UProbeAttachLocation::AbsoluteOffset(offset);
        let point = UProbeAttachPoint { location, cookie: Some(cookie) };
        let attached = program.attach(point, path, UProbeScope::AllProcesses);
        attached.and_then(|link| program.take_link(link)).map_err(AttachError::Uprobe)
    }
}

/// The program for a probe: libraries differ in how a call is read.
const fn program(library: Library, hook: ProbeKind) -> &'static str {
    match (library, hook) {
        (Library::OpenSsl, ProbeKind::Enter) => "openssl_enter",
        (Library::OpenSsl, ProbeKind::Leave) => "openssl_leave",
        (Library::OpenSsl, ProbeKind::Free) => "openssl_free",
        (Library::GnuTls, ProbeKind::Enter) => "gnutls_enter",
        (Library::GnuTls, ProbeKind::Leave) => "gnutls_leave",
        (_, ProbeKind::GoEnter) => "go_enter",
        (_, ProbeKind::GoLeave) => "go_leave",
        (_, ProbeKind::GoHello) => "go_hello",
        (_, ProbeKind::Enter) => "tls_enter",
        (_, ProbeKind::Leave) => "tls_leave",
        (_, ProbeKind::Free) => "tls_free",
        (_, ProbeKind::Error) => "openssl_error",
        (_, ProbeKind::ErrorPut) => "openssl_put_error",
    }
}
