//! The load: groups of connections, each with its own network namespace, its own copies of OpenSSL's
//! libraries and processes that map them. A group lives for some seconds, then another takes its place.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use rustix::net::sockopt::set_socket_linger;

use crate::{
    bench::load::make_namespace,
    process::{self, dies_with_its_parent},
};

/// Addresses of the connections without TLS and with it: in the networks for benchmarks (RFC 2544), so that
/// their records differ from those of others.
pub(super) const TCP: Ipv4Addr = Ipv4Addr::new(198, 18, 88, 1);
const TLS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 18, 89, 1)), 4433);

/// Groups at a time.
const GROUPS: usize = 2;
/// The shortest and the longest life of a group, in seconds.
const LIFE: std::ops::RangeInclusive<f64> = 8.0..=14.0;
/// The pause between two connections of a group.
const PACE: Duration = Duration::from_millis(10);
/// Every n-th connection is refused, is reset, stays open until its group ends, or is a TLS handshake by a
/// new process.
const REFUSED: u64 = 23;
const RESET: u64 = 17;
const HELD: u64 = 31;
const WITH_TLS: u64 = 50;
/// How long a program may take to start or to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the load has made so far.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Those of them without TLS; all are closed when their group has ended.
    pub(super) established: AtomicU64,
    pub(super) without_tls: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) tls: AtomicU64,
    pub(super) processes: AtomicU64,
    /// Groups, each with a namespace and a set of library files.
    pub(super) groups: AtomicU64,
    namespaces: Mutex<HashSet<u64>>,
}

impl Made {
    /// The inodes of all network namespaces that were made.
    pub(super) fn namespaces(&self) -> HashSet<u64> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What every group needs.
pub(super) struct Supplies {
    openssl: PathBuf,
    libraries: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

impl Supplies {
    /// Finds OpenSSL and makes a certificate.
    pub(super) fn new() -> Result<Self> {
        let openssl = process::find_program("openssl")
            .context("`openssl` is not on PATH: install the package of that name")?;
        let linked =
            process::read(Command::new("ldd").arg(&openssl), "`ldd` of openssl", "is it installed?")?;
        let libraries: Vec<_> = linked.lines().filter_map(tls_library).map(PathBuf::from).collect();
        ensure!(
            !libraries.is_empty(),
            "{} is not linked with a shared libssl that could be copied: use the distribution's",
            openssl.display()
        );
        let folder =
            tempfile::Builder::new().prefix("handshake-soak-").tempdir().context("is the disk full?")?;
        let supplies = Self { openssl, libraries, folder };
        let mut make = Command::new(&supplies.openssl);
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-subj", "/CN=soak.example.org", "-keyout"])
            .arg(supplies.key())
            .arg("-out")
            .arg(supplies.certificate());
        process::read(&mut make, "making a certificate", "see openssl's message")?;
        Ok(supplies)
    }

    /// The folder of its files.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn openssl(&self, libraries: &Path) -> Command {
        let mut command = Command::new(&self.openssl);
        command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null()).stdout(Stdio::null());
        dies_with_its_parent(&mut command);
        command
    }
}

/// The path in a line of `ldd`. Returns `None` if it is not one of OpenSSL's libraries.
fn tls_library(line: &str) -> Option<&str> {
    let (name, rest) = line.trim().split_once(" => ")?;
    (name.starts_with("libssl.so") || name.starts_with("libcrypto.so")).then_some(())?;
    rest.split(" (").next()
}

/// The running load. Ends, with everything that it has made, when dropped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<thread::JoinHandle<Result<()>>>,
}

impl Load {
    pub(super) fn start(supplies: &Arc<Supplies>, made: &Arc<Made>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |number: usize| {
            let (stop, supplies, made) = (stop.clone(), supplies.clone(), made.clone());
            let mut rng = Rng::with_seed(seed.wrapping_add(number as u64));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    group(&supplies, &made, &mut rng, &stop)?;
                }
                Ok(())
            })
        };
        Self { workers: (0..GROUPS).map(worker).collect(), stop }
    }

    /// Whether a worker has failed; [`Load::stop`] returns why.
    pub(super) fn has_failed(&self) -> bool {
        self.workers.iter().any(thread::JoinHandle::is_finished)
    }

    /// Ends it; every connection is closed afterwards.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ends = self
            .workers
            .drain(..)
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a thread of the load panicked")));
        ends.collect::<Vec<_>>().into_iter().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("xtask: the load failed: {error:#}");
        }
    }
}

/// Runs one group to its end, in a thread of its own: the network namespace belongs to the thread.
pub(super) fn group(supplies: &Supplies, made: &Made, rng: &mut Rng, stop: &AtomicBool) -> Result<()> {
    thread::scope(|scope| {
        let group = scope.spawn(|| {
            make_namespace()?;
            for address in [TCP.to_string(), TLS.ip().to_string()] {
                let mut add = Command::new("ip");
                add.args(["address", "add", &format!("{address}/32"), "dev", "lo"]);
                process::read(&mut add, "`ip address add`", "see its message")?;
            }
            let namespace = fs::metadata("/proc/thread-self/ns/net").context("is /proc mounted?")?.ino();
            made.namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace);
            churn(supplies, made, rng, stop)
        });
        group.join().unwrap_or_else(|_| bail!("a group of the load panicked"))
    })
}

fn churn(supplies: &Supplies, made: &Made, rng: &mut Rng, stop: &AtomicBool) -> Result<()> {
    let folder = tempfile::tempdir_in(supplies.folder.path()).context("is the disk full?")?;
    for library in &supplies.libraries {
        let to = folder.path().join(library.file_name().unwrap_or_default());
        fs::copy(library, &to)
            .with_context(|| format!("cannot copy to {}: is the disk full?", to.display()))?;
    }
    made.groups.fetch_add(1, Ordering::Relaxed);
    let mut folder = Some(folder);
    let library_path = folder.as_ref().map(|folder| folder.path().to_owned()).unwrap_or_default();

    let mut server = Program::start(
        supplies
            .openssl(&library_path)
            .args(["s_server", "-quiet", "-www", "-accept", &TLS.to_string(), "-key"])
            .arg(supplies.key())
            .arg("-cert")
            .arg(supplies.certificate()),
        made,
    )?;
    server.await_listener()?;
    let listener = TcpListener::bind((TCP, 0))?;
    let refusing = {
        let closed = TcpListener::bind((TCP, 0))?;
        closed.local_addr()?
    };

    let mut held = Vec::new();
    let begin = Instant::now();
    let life = Duration::from_secs_f64(LIFE.start() + rng.f64() * (LIFE.end() - LIFE.start()));
    // Files are deleted while in use, as a system update does.
    let deletion = life.mul_f64(rng.f64() * 1.2);
    for turn in 1_u64.. {
        if begin.elapsed() >= life || stop.load(Ordering::Relaxed) {
            break;
        }
        if begin.elapsed() >= deletion {
            folder.take();
        }
        if turn.is_multiple_of(REFUSED) {
            ensure!(TcpStream::connect(refusing).is_err(), "somebody listens on {refusing}");
            made.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            let pair = establish(&listener, made)?;
            if turn.is_multiple_of(HELD) {
                held.push(pair);
            } else if turn.is_multiple_of(RESET) {
                reset(pair)?;
            } else {
                close(pair)?;
            }
        }
        if turn.is_multiple_of(WITH_TLS) {
            // Half of them use the system's files, and all of them once the copies are deleted.
            let own = if folder.is_some() && rng.bool() { library_path.as_path() } else { Path::new("") };
            handshake(supplies, own, made)?;
        }
        thread::sleep(PACE);
    }
    for pair in held {
        close(pair)?;
    }
    server.end();
    Ok(())
}

/// Both ends of a new connection.
fn establish(listener: &TcpListener, made: &Made) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?).context("the load cannot connect")?;
    made.established.fetch_add(1, Ordering::Relaxed);
    made.without_tls.fetch_add(1, Ordering::Relaxed);
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(TIMEOUT))?;
    }
    Ok((client, server))
}

/// A request, a response, and a FIN from each end, the client's first.
fn close((mut client, mut server): (TcpStream, TcpStream)) -> Result<()> {
    let mut buffer = [0; 64];
    client.write_all(b"a request")?;
    ensure!(server.read(&mut buffer)? > 0, "a request was lost");
    server.write_all(b"a response")?;
    client.shutdown(Shutdown::Write)?;
    ensure!(server.read(&mut buffer)? == 0, "a request was too long");
    drop(server);
    while client.read(&mut buffer)? > 0 {}
    Ok(())
}

fn reset((client, server): (TcpStream, TcpStream)) -> Result<()> {
    set_socket_linger(&client, Some(Duration::ZERO))?;
    drop(client);
    drop(server);
    Ok(())
}

/// A process that makes one TLS handshake.
fn handshake(supplies: &Supplies, libraries: &Path, made: &Made) -> Result<()> {
    let mut client = supplies.openssl(libraries);
    client.args(["s_client", "-brief", "-connect", &TLS.to_string()]);
    // An empty library path would be the current folder.
    if libraries.as_os_str().is_empty() {
        client.env_remove("LD_LIBRARY_PATH");
    }
    let mut client = Program::start(&mut client, made)?;
    client.await_success()?;
    made.established.fetch_add(1, Ordering::Relaxed);
    made.tls.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A program of the load; killed when dropped.
struct Program {
    child: Child,
    errors: Option<thread::JoinHandle<String>>,
}

impl Program {
    fn start(command: &mut Command, made: &Made) -> Result<Self> {
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        made.processes.fetch_add(1, Ordering::Relaxed);
        let errors = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).ok();
                text
            })
        });
        Ok(Self { child, errors })
    }

    /// Asks the kernel: a connection made to find out would have to be counted, too.
    fn await_listener(&mut self) -> Result<()> {
        let port = format!(":{:04X}", TLS.port());
        let path = format!("/proc/{}/net/tcp", self.child.id());
        let deadline = Instant::now() + TIMEOUT;
        while !fs::read_to_string(&path).unwrap_or_default().lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        }) {
            if let Some(status) = self.child.try_wait()? {
                bail!("`openssl s_server` ended ({status}): {}", self.errors());
            }
            ensure!(Instant::now() < deadline, "`openssl s_server` does not listen after {TIMEOUT:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn await_success(&mut self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("`openssl s_client` failed ({status}): {}", self.errors()),
                None => ensure!(Instant::now() < deadline, "`openssl s_client` hangs"),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn errors(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }

    fn end(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_output_of_ldd() {
        let line = "\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x00007f50ae45d000)";
        assert_eq!(tls_library(line), Some("/lib/x86_64-linux-gnu/libssl.so.3"));
        assert_eq!(tls_library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f50adc1e000)"), None);
        assert_eq!(tls_library("\tlinux-vdso.so.1 (0x00007f50ae607000)"), None);
    }
}
