//! Attaches the uprobes of a library file, and detaches them.

use std::{
    collections::{HashSet, VecDeque},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
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
    inspect::{Inspection, Point, ProbeKind},
};
use crate::kernel::probe::{LoadedPrograms, Place, UprobeLinks, chain, is_permission_denied, load, shorten};

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
    /// The kernel refused a link of many uprobes.
    #[error("cannot probe it: {0}")]
    UprobeLink(io::Error),
}

/// The probes of one file.
#[derive(Debug)]
pub struct Probed {
    index: u32,
    /// The user whose budget they count against. `None` if the file has a standard path.
    owner: Option<u32>,
    links: Vec<Link>,
}

/// What keeps probes attached. Dropping it detaches them, which takes the kernel up to a tenth of a second.
#[derive(Debug)]
#[expect(dead_code, reason = "held until dropped")]
enum Link {
    /// One probe.
    Single(UProbeLink),
    /// All probes of a file with the same program.
    Multi(OwnedFd),
}

impl Probed {
    /// The number of links.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are no links.
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
    /// Files that are being detached, link by link.
    detaching: VecDeque<Probed>,
    budget: Budget,
    links: UprobeLinks,
    /// Programs for single probes.
    loaded: HashSet<&'static str>,
    programs: LoadedPrograms,
}

impl Attacher {
    /// Takes the table of targets out of the object. Programs are added to `programs` when they are loaded.
    ///
    /// # Errors
    /// If the object lacks it.
    pub fn new(ebpf: &mut Ebpf, links: UprobeLinks, programs: LoadedPrograms) -> Result<Self, AttachError> {
        let targets = Array::try_from(ebpf.take_map(MAP).ok_or(AttachError::NoTable)?)?;
        let (free, detaching) = (VecDeque::new(), VecDeque::new());
        let (budget, loaded) = (Budget::default(), HashSet::new());
        Ok(Self { targets, next: 0, free, detaching, budget, links, loaded, programs })
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
        let places = |points: &[&Point]| {
            let place = |point: &&Point| Place {
                offset: point.offset,
                cookie: u64::from(index) | point.cookie_flags(),
            };
            points.iter().map(place).collect::<Vec<_>>()
        };
        for (name, points) in by_program(inspection) {
            let before = probed.links.len();
            let attached = self.attach_all(ebpf, name, path, &places(&points), &mut probed.links);
            for _ in before..probed.links.len() {
                owner.inspect(|owner| self.budget.add(*owner));
            }
            if let Err(error) = attached {
                self.detach(probed);
                return Err(error);
            }
        }
        Ok(Some(probed))
    }

    /// How many links the probes of a file take.
    #[must_use]
    pub fn links(&self, inspection: &Inspection) -> usize {
        if self.links.is_refused() { inspection.points.len() } else { by_program(inspection).len() }
    }

    /// Updates the target of a file that was completed by its companion.
    ///
    /// # Errors
    /// If the table cannot be written.
    pub fn update(&mut self, probed: &Probed, inspection: &Inspection) -> Result<(), AttachError> {
        Ok(self.targets.set(probed.index, inspection.target, 0)?)
    }

    /// Has the probes of a file detached, one link by each call of [`Attacher::detach_one`].
    pub fn detach(&mut self, probed: Probed) {
        self.detaching.push_back(probed);
    }

    /// Detaches one link. Returns whether there was one.
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

    /// Detaches files and all that waits to be detached, in many threads: the kernel makes each wait for
    /// grace periods of RCU, which all of them share.
    pub fn detach_all(&mut self, files: impl Iterator<Item = Probed>) {
        /// `TasksMax` of the systemd unit allows for them.
        const THREADS: usize = 64;
        let links = self.detaching.drain(..).chain(files).flat_map(|probed| probed.links);
        let links: Vec<_> = links.collect();
        let helpers = links.len().saturating_sub(1).min(THREADS);
        let links = Mutex::new(links);
        let next = || links.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = || while next().is_some() {};
        thread::scope(|scope| {
            for _ in 0..helpers {
                // Without it the others take longer.
                thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, work).ok();
            }
            work();
        });
    }

    /// Whether links wait to be detached.
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

    /// The number of links that wait to be detached.
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

    /// Attaches a program to some places of a file; adds to the links what is attached, even if not all can
    /// be.
    fn attach_all(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        path: &Path,
        places: &[Place],
        links: &mut Vec<Link>,
    ) -> Result<(), AttachError> {
        if let Some((link, loaded)) =
            self.links.attach(name, path, places).map_err(AttachError::UprobeLink)?
        {
            if let Some(program) = loaded {
                remember(&self.programs, name, program);
            }
            links.push(Link::Multi(link));
            return Ok(());
        }
        for place in places {
            links.push(Link::Single(self.attach_one(ebpf, name, path, *place)?));
        }
        Ok(())
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        path: &Path,
        Place { offset, cookie }: Place,
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
        if newly && let Ok(Ok(fd)) = program.fd().map(|fd| fd.as_fd().try_clone_to_owned()) {
            remember(&self.programs, name, Arc::new(fd));
        }
        let location = UProbeAttachLocation::AbsoluteOffset(offset);
        let point = UProbeAttachPoint { location, cookie: Some(cookie) };
        let attached = program.attach(point, path, UProbeScope::AllProcesses);
        attached.and_then(|link| program.take_link(link)).map_err(AttachError::Uprobe)
    }
}

/// The points of a file by the program for each.
fn by_program(inspection: &Inspection) -> Vec<(&'static str, Vec<&Point>)> {
    let mut programs: Vec<(&'static str, Vec<&Point>)> = Vec::new();
    for point in &inspection.points {
        let name = program(inspection.library, point.hook);
        match programs.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push(point),
            None => programs.push((name, vec![point])),
        }
    }
    programs
}

/// Keeps a descriptor of a program, by which its missed runs are counted.
fn remember(programs: &LoadedPrograms, name: &str, program: Arc<OwnedFd>) {
    programs.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), program));
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
