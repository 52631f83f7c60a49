//! Connection churn on loopback: request, response, close, as fast as the machine can. Its own threads, which
//! do nothing else, or a real server and client (http.rs).

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Pairs of one client and one server thread.
const PAIRS: u8 = 2;

/// Something that makes connections all the time.
pub(super) trait Load {
    /// How many it has made so far.
    ///
    /// # Errors
    /// If it has ended.
    fn connections(&self) -> Result<u64>;

    /// Lets it run for `time`; returns the connections made, and their number per second.
    fn rate_over(&self, time: Duration) -> Result<(u64, f64)> {
        let (before, begin) = (self.connections()?, Instant::now());
        thread::sleep(time);
        let made = self.connections()?.saturating_sub(before);
        let elapsed = begin.elapsed().as_secs_f64();
        ensure!(made > 0, "the load made no connection in {time:?}");
        #[expect(clippy::cast_precision_loss, reason = "a count of seconds' worth of connections")]
        Ok((made, made as f64 / elapsed))
    }
}

/// The load of threads, in a network namespace of its own. Ends when dropped.
pub(super) struct Churn {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Churn {
    /// Makes the namespace and starts the churn in it.
    pub(super) fn start() -> Result<Self> {
        let (ready, started) = mpsc::channel();
        let mut churn = Self {
            stop: Arc::new(AtomicBool::new(false)),
            connections: Arc::new(AtomicU64::new(0)),
            workers: Vec::new(),
        };
        // The namespace exists as long as threads are in it.
        let (stop, connections) = (churn.stop.clone(), churn.connections.clone());
        churn.workers.push(thread::spawn(move || {
            let made = make_namespace();
            let ok = made.is_ok();
            ready.send(made).ok();
            if !ok {
                return Ok(());
            }
            let pairs: Vec<_> = (1..=PAIRS)
                .map(|pair| {
                    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, pair), 0))?;
                    let address = listener.local_addr()?;
                    // The server outlives its client: a connection that nobody accepts would block the client
                    // for ever.
                    let alone = Arc::new(AtomicBool::new(false));
                    let is_alone = alone.clone();
                    let server = thread::spawn(move || serve(&listener, &is_alone));
                    let (stop, connections) = (stop.clone(), connections.clone());
                    let client = thread::spawn(move || request(address, &stop, &connections));
                    Ok((address, alone, server, client))
                })
                .collect::<Result<_>>()?;
            for (address, alone, server, client) in pairs {
                let asked = client.join().unwrap_or_else(|_| bail!("a client thread panicked"));
                // A last connection wakes the server out of accept().
                alone.store(true, Ordering::Relaxed);
                TcpStream::connect(address).ok();
                server.join().unwrap_or_else(|_| bail!("a server thread panicked"))?;
                asked?;
            }
            Ok(())
        }));
        started.recv().context("the load's thread died")??;
        Ok(churn)
    }
}

impl Load for Churn {
    fn connections(&self) -> Result<u64> {
        Ok(self.connections.load(Ordering::Relaxed))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            if let Ok(Err(error)) = worker.join() {
                eprintln!("xtask: the load failed: {error:#}");
            }
        }
    }
}

/// Moves this thread, and those that it starts later, into a new network namespace.
pub(crate) fn make_namespace() -> Result<()> {
    // SAFETY: unshare(2) of the network namespace changes only this thread; it touches no memory of ours.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .context("cannot make a network namespace; this needs root")?;
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("cannot run `ip` (iproute2)")?;
    ensure!(up.success(), "`ip link set lo up` failed");
    // A minute of TIME_WAIT would use up the ports; beyond this limit the kernel drops the oldest.
    std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "1000")
        .context("cannot set net.ipv4.tcp_max_tw_buckets in the load's namespace")
}

fn serve(listener: &TcpListener, alone: &AtomicBool) -> Result<()> {
    let mut request = [0; 64];
    while !alone.load(Ordering::Relaxed) {
        let (mut stream, _) = listener.accept()?;
        // A client that stops midway is the end of the load, not an error.
        if stream.read(&mut request).is_ok() {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok();
        }
    }
    Ok(())
}

fn request(address: SocketAddr, stop: &AtomicBool, connections: &AtomicU64) -> Result<()> {
    let mut response = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(address).context("the load cannot connect")?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        while stream.read(&mut response)? > 0 {}
        connections.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
