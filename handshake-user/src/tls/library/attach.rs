//! Attaches the uprobes of one library file, and lets go of them.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::AsFd as _,
    path::Path,
    sync::PoisonError,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{
        UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use handshake_common::{
    Library,
    tls::library::target::{MAP, MAX_TARGETS, Target},
};

use super::{
    budget::Budget,
    inspect::{Inspection, ProbeKind},
};
use crate::kernel::probe::{LoadedPrograms, chain, is_permission_denied, load, shorten};

/// The probes of one file.
#[derive(Debug)]
pub struct Probed {
    index: u32,
    /// Whose budget they take; `None` in the system's own places.
    owner: Option<u32>,
    /// Dropping a link detaches it.
    links: Vec<UProbeLink>,
}

impl Probed {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

/// Hands out places in the table of targets and attaches programs.
pub struct Attacher {
    targets: Array<MapData, Target>,
    next: u32,
    free: VecDeque<u32>,
    /// Files that are let go, probe by probe.
    going: VecDeque<Probed>,
    budget: Budget,
    loaded: HashSet<&'static str>,
    programs: LoadedPrograms,
}

impl Attacher {
    /// Takes the table of targets out of the object; what is loaded is added to `programs`.
    ///
    /// # Errors
    /// When the object has none.
    pub fn new(ebpf: &mut Ebpf, programs: LoadedPrograms) -> Result<Self, String> {
        let targets = ebpf.take_map(MAP).ok_or("the eBPF object lacks its table of TLS libraries")?;
        let targets = Array::try_from(targets).map_err(|error| error.to_string())?;
        let (free, going) = (VecDeque::new(), VecDeque::new());
        let (budget, loaded) = (Budget::default(), HashSet::new());
        Ok(Self { targets, next: 0, free, going, budget, loaded, programs })
    }

    /// Attaches every point of a file of this owner, unless it stands in the system's own places; `None` when it has none.
    ///
    /// # Errors
    /// Why not. Then what is attached of it is let go of.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        path: &Path,
        owner: Option<u32>,
        inspection: &Inspection,
    ) -> Result<Option<Probed>, String> {
        if inspection.points.is_empty() {
            return Ok(None);
        }
        let index = self.index()?;
        self.targets.set(index, inspection.target, 0).map_err(|error| error.to_string())?;
        let mut probed = Probed { index, owner, links: Vec::new() };
        for point in &inspection.points {
            let name = program(inspection.library, point.hook);
            let cookie = u64::from(index) | point.cookie_flags();
            match self.attach_one(ebpf, name, path, point.offset, cookie) {
                Ok(link) => {
                    probed.links.push(link);
                    owner.inspect(|owner| self.budget.add(*owner));
                }
                Err(reason) => {
                    self.detach(probed);
                    return Err(format!("cannot probe it: {reason}"));
                }
            }
        }
        Ok(Some(probed))
    }

    /// More has become known of a file.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn update(&mut self, probed: &Probed, inspection: &Inspection) -> Result<(), String> {
        self.targets.set(probed.index, inspection.target, 0).map_err(|error| error.to_string())
    }

    /// Lets go of a file, by and by: see [`Attacher::go_on`].
    pub fn detach(&mut self, probed: Probed) {
        self.going.push_back(probed);
    }

    /// Lets go of one more probe, which takes the kernel up to a tenth of a second; false when there is none to let go of.
    pub fn go_on(&mut self) -> bool {
        let Some(probed) = self.going.front_mut() else { return false };
        if let Some(link) = probed.links.pop() {
            drop(link);
            probed.owner.inspect(|owner| self.budget.remove(*owner));
        }
        let is_last = probed.links.is_empty();
        if is_last && let Some(probed) = self.going.pop_front() {
            self.free.push_back(probed.index);
        }
        true
    }

    /// Whether probes wait to be let go of.
    #[must_use]
    pub fn is_letting_go(&self) -> bool {
        !self.going.is_empty()
    }

    /// What the files of each user may have.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The same, to count files; their probes are counted already.
    pub const fn budget_mut(&mut self) -> &mut Budget {
        &mut self.budget
    }

    /// How many probes wait to be let go of.
    #[must_use]
    pub fn going(&self) -> usize {
        self.going.iter().map(Probed::len).sum()
    }

    /// Whether there is no place for one more file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.next >= MAX_TARGETS && self.free.is_empty()
    }

    fn index(&mut self) -> Result<u32, String> {
        if self.next < MAX_TARGETS {
            self.next += 1;
            return Ok(self.next - 1);
        }
        let most = || format!("more than {MAX_TARGETS} files of TLS libraries are in use");
        self.free.pop_front().ok_or_else(most)
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        path: &Path,
        offset: u64,
        cookie: u64,
    ) -> Result<UProbeLink, String> {
        let program = ebpf.program_mut(name).ok_or_else(|| format!("the eBPF object lacks {name}"))?;
        let program: &mut UProbe = program.try_into().map_err(|error| format!("{name}: {error}"))?;
        let newly = self.loaded.insert(name);
        if newly && let Err(error) = load(|| program.load()) {
            self.loaded.remove(name);
            let whole = chain(&error);
            for line in whole.lines() {
                tracing::debug!(program = name, "{line}");
            }
            return Err(if aya::features().bpf_cookie() {
                format!("{name}: {}", shorten(&whole))
            } else {
                "this kernel gives uprobes no cookie (Linux 5.15): its handshakes are seen on the wire alone"
                    .to_owned()
            });
        }
        if newly && let Some(fd) = program.fd().ok().and_then(|fd| fd.as_fd().try_clone_to_owned().ok()) {
            self.programs.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), fd));
        }
        let location = UProbeAttachLocation::AbsoluteOffset(offset);
        let point = UProbeAttachPoint { location, cookie: Some(cookie) };
        let attached = program.attach(point, path, UProbeScope::AllProcesses);
        attached.and_then(|link| program.take_link(link)).map_err(|error| {
            // `perf_uprobe_event_init`: CAP_PERFMON was enough from 5.8 to 6.15.
            let hint = if is_permission_denied(&error) { ": uprobes take CAP_SYS_ADMIN" } else { "" };
            format!("{}{hint}", chain(&error))
        })
    }
}

/// The program for a hook: every library has its own reading of what a call says.
const fn program(library: Library, hook: ProbeKind) -> &'static str {
    match (library, hook) {
        (Library::OpenSsl, ProbeKind::Enter) => "openssl_enter",
        (Library::OpenSsl, ProbeKind::Leave) => "openssl_leave",
        (Library::OpenSsl, ProbeKind::Free) => "openssl_free",
        (Library::GnuTls, ProbeKind::Enter) => "gnutls_enter",
        (Library::GnuTls, ProbeKind::Leave) => "gnutls_leave",
        (_, ProbeKind::GoEnter) => "go_enter",
        (_, ProbeKind::GoLeave) => "go_leave",
        (_, ProbeKind::Enter) => "tls_enter",
        (_, ProbeKind::Leave) => "tls_leave",
        (_, ProbeKind::Free) => "tls_free",
        (_, ProbeKind::Error) => "openssl_error",
        (_, ProbeKind::ErrorPut) => "openssl_put_error",
    }
}
