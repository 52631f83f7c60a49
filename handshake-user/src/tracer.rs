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

use crate::{
    kernel::listeners::Listeners,
    kernel::probe::{self, Attachment, Kernel, LoadError, Probes},
    settings::{ProbeSettings, Switch},
    tls::{
        discover::VmaIterator,
        library::{
            libraries::{self, Libraries, LibraryCounts},
            skipped::Skipped,
            worker::Worker,
        },
    },
};

/// How long to wait for the libraries that are already in use; the others are probed while records come.
const SETTLE: Duration = Duration::from_secs(10);

/// The running kernel side. Dropping it detaches everything.
#[derive(Debug)]
pub struct Tracer {
    /// The hooks, and their counters.
    pub probes: Probes,
    /// The listening sockets; an error: why they are known only as far as they began to listen since.
    pub listeners: Result<Listeners, String>,
    libraries: TlsLibraries,
}

/// Who has the TLS libraries, and the object with their programs.
enum TlsLibraries {
    /// This thread. `None`: not asked for; an error: why they cannot be probed.
    Here(Ebpf, Option<Result<Box<Libraries>, String>>),
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
    /// Loads and attaches everything; returns the ring that the records come from as well.
    ///
    /// # Errors
    /// When a required hook cannot be attached in any mode that the settings allow.
    pub fn attach(kernel: &Kernel, settings: &ProbeSettings) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let attachment = probe::attach(kernel, settings, |ebpf, programs| {
            (settings.tls_libraries == Switch::On).then(|| {
                let mut libraries = Libraries::new(ebpf, kernel.loader_btf(), Arc::clone(programs))?;
                libraries.settle(ebpf, Instant::now() + SETTLE);
                Ok(Box::new(libraries))
            })
        })?;
        let Attachment { mut ebpf, probes, ring, prepared } = attachment;
        let listeners = Listeners::load(&mut ebpf, kernel.loader_btf());
        Ok((Self { probes, listeners, libraries: TlsLibraries::Here(ebpf, prepared) }, ring))
    }

    /// The TLS libraries of the host, or why they are not probed. Returns `None` if they were not asked for,
    /// or a worker has them.
    #[must_use]
    pub fn libraries(&self) -> Option<Result<&Libraries, &str>> {
        match &self.libraries {
            TlsLibraries::Here(_, libraries) => {
                libraries.as_ref().map(|libraries| libraries.as_deref().map_err(String::as_str))
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

    /// Loads the iterator over the mappings of this host.
    ///
    /// # Errors
    /// When this kernel cannot run it, with the reason.
    pub fn mappings(&mut self, kernel: &Kernel) -> Result<VmaIterator, String> {
        match &mut self.libraries {
            TlsLibraries::Here(ebpf, _) => libraries::mappings(ebpf, kernel.loader_btf()),
            TlsLibraries::Worker(_) => Err("the worker has the eBPF object".to_owned()),
        }
    }
}
