//! Everything that is attached: the kernel's hooks, and the functions of the TLS libraries.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use handshake_common::{
    histograms::Bounds,
    totals::{self, DropReason},
};

use crate::{
    join::{Joiner, time_wait::Look},
    kernel::{
        listeners::Listeners,
        probe::{self, Attachment, Kernel, LoadError, Probes},
    },
    minisockets::Watcher,
    settings::{ProbeSettings, Switch},
    tls::{
        discover::{IteratorError, VmaIterator},
        library::{
            attach::AttachError,
            libraries::{Libraries, LibraryCounts},
            skipped::Skipped,
            worker::Worker,
        },
    },
    untrusted::say,
};

/// How long to wait for the libraries that are already in use; the others are probed while records come.
const SETTLE: Duration = Duration::from_secs(10);

/// The running kernel side. Dropping it detaches everything.
#[derive(Debug)]
pub struct Tracer {
    /// The hooks, and their counters.
    pub probes: Probes,
    /// Who looks at time-wait minisockets, or why nobody can.
    pub minisockets: Result<Watcher, String>,
    /// The listening sockets; an error: why they are known only as far as they began to listen since.
    pub listeners: Result<Listeners, String>,
    libraries: TlsLibraries,
}

/// Who has the TLS libraries, and the object with their programs.
enum TlsLibraries {
    /// This thread. `None`: not asked for; an error: why they cannot be probed.
    Here(Ebpf, Option<Result<Box<Libraries>, AttachError>>),
    /// The worker.
    Worker(Worker),
}

impl std::fmt::Debug for TlsLibraries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here(..) => "Here",
            Self::Worker(_) => "Worker",
        })
    }
}

impl Tracer {
    /// Loads and attaches everything; returns the ring that the records come from as well. With bounds,
    /// [`Probes::histograms`] takes the place of the records of connections without TLS.
    ///
    /// # Errors
    /// When a required hook cannot be attached in any mode that the settings allow.
    pub fn attach(
        kernel: &Kernel,
        settings: &ProbeSettings,
        bounds: &Bounds,
    ) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let attachment = probe::attach(kernel, settings, bounds, |ebpf, links, programs| {
            let minisockets = Watcher::start(ebpf, kernel.loader_btf())
                .map_err(|error| probe::shorten(&format!("{error:#}")));
            let listeners = Listeners::load(ebpf, kernel.loader_btf())
                .map_err(|error| probe::shorten(&format!("{error:#}")));
            let libraries = (settings.tls_libraries == Switch::On).then(|| {
                let mut libraries = Libraries::new(ebpf, kernel.loader_btf(), links, Arc::clone(programs))?;
                libraries.settle(ebpf, Instant::now() + SETTLE);
                Ok(Box::new(libraries))
            });
            (minisockets, listeners, libraries)
        })?;
        let Attachment { ebpf, probes, ring, prepared: (minisockets, listeners, libraries) } = attachment;
        Ok((Self { probes, minisockets, listeners, libraries: TlsLibraries::Here(ebpf, libraries) }, ring))
    }

    /// The TLS libraries of the host, or why they are not probed. Returns `None` if they were not asked for,
    /// or a worker has them.
    #[must_use]
    pub fn libraries(&self) -> Option<Result<&Libraries, &AttachError>> {
        match &self.libraries {
            TlsLibraries::Here(_, libraries) => {
                libraries.as_ref().map(|libraries| libraries.as_ref().map(AsRef::as_ref))
            }
            TlsLibraries::Worker(_) => None,
        }
    }

    /// From now on a thread of its own follows which TLS libraries come into use and go, every `pace`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn follow_libraries(self, pace: Duration) -> io::Result<Self> {
        let libraries = match self.libraries {
            TlsLibraries::Here(ebpf, Some(Ok(libraries))) => {
                TlsLibraries::Worker(Worker::start(*libraries, ebpf, pace)?)
            }
            other => other,
        };
        Ok(Self { libraries, ..self })
    }

    /// Joins the records of this tracer.
    #[must_use]
    pub fn joiner(&self) -> Joiner {
        let mut joiner = Joiner::new(self.probes.wire_coverage);
        match &self.minisockets {
            Ok(watcher) => joiner.follow_time_wait(watcher.tick_ns(), self.probes.ids_are_cookies),
            Err(reason) => say(format_args!(
                "time-wait minisockets cannot be looked at, so late FINs and TIME_WAIT stay unknown: {reason}"
            )),
        }
        if let Err(reason) = &self.listeners {
            say(format_args!(
                "open files cannot be looked at, so who listens is known only of sockets that begin to listen from now on: {reason}"
            ));
        }
        joiner
    }

    /// The minisockets that were asked for, once they were looked at.
    #[must_use]
    pub fn take_look(&self) -> Option<Look> {
        let mut look = self.minisockets.as_ref().ok()?.take()?;
        // Unreadable totals count as a loss.
        look.lost = self.probes.totals().map_or(u64::MAX, |totals| {
            DropReason::ALL.iter().map(|&reason| totals.at(totals::lost(reason))).sum()
        });
        Some(look)
    }

    /// Asks for a look at the minisockets, if the joiner wants one.
    pub fn look_if_wanted(&self, joiner: &mut Joiner, now_ns: u64) {
        if let Ok(watcher) = &self.minisockets
            && let Some(wanted) = joiner.wants_look(now_ns)
        {
            watcher.ask(wanted);
        }
    }

    /// How many files of TLS libraries there are and what was skipped. Returns `None` if that is unchanged
    /// since the last call.
    #[must_use]
    pub fn library_news(&self) -> Option<(LibraryCounts, Skipped)> {
        match &self.libraries {
            TlsLibraries::Worker(worker) => worker.take_counts(),
            TlsLibraries::Here(..) => None,
        }
    }

    /// When the thread that follows the libraries last finished a turn; logs when that is too long ago.
    /// Returns `None` if there is no such thread.
    pub fn worker_turn(&mut self) -> Option<SystemTime> {
        match &mut self.libraries {
            TlsLibraries::Worker(worker) => Some(worker.last_turn()),
            TlsLibraries::Here(..) => None,
        }
    }

    /// How many files await their inspection by the thread that follows the libraries.
    #[must_use]
    pub fn inspection_queue(&self) -> usize {
        match &self.libraries {
            TlsLibraries::Worker(worker) => worker.queued(),
            TlsLibraries::Here(..) => 0,
        }
    }

    /// Loads the iterator over the mappings of this host.
    ///
    /// # Errors
    /// When this kernel cannot run it, or the worker has the eBPF object.
    pub fn mappings(&mut self, kernel: &Kernel) -> Result<VmaIterator, IteratorError> {
        match &mut self.libraries {
            TlsLibraries::Here(ebpf, _) => VmaIterator::load(ebpf, kernel.loader_btf()),
            TlsLibraries::Worker(_) => Err(IteratorError::NoProgram),
        }
    }
}
