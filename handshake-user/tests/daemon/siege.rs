//! The exporter under siege: clients that are slow, idle, half-closed, deaf or talk garbage, and that come again as soon as
//! they are put out. A scrape is answered all the same.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::program::Daemon;

/// How long a scrape may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long the siege lasts.
const SIEGE: Duration = Duration::from_secs(8);
const CLIENTS: usize = 1000;
/// What clients may cost, KiB.
const MAX_KIB: u64 = 64 * 1024;

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sends half a request line and then a byte now and then.
    Slow,
    /// Says nothing.
    Idle,
    /// Sends a FIN and says nothing.
    HalfClosed,
    /// Sends what is no HTTP, and goes on.
    Garbage,
    /// Asks and does not read.
    Deaf,
    /// Asks, sends a FIN, and does not read.
    HalfClosedDeaf,
    /// Asks, reads, and stays.
    KeptAlive,
    /// Asks again and again.
    Greedy,
    /// Has a body without an end.
    Endless,
    /// Asks and is gone.
    Gone,
}

const KINDS: [Kind; 10] = [
    Kind::Slow,
    Kind::Idle,
    Kind::HalfClosed,
    Kind::Garbage,
    Kind::Deaf,
    Kind::HalfClosedDeaf,
    Kind::KeptAlive,
    Kind::Greedy,
    Kind::Endless,
    Kind::Gone,
];

impl Kind {
    /// One connection, until the server has enough of it.
    async fn call(self, at: SocketAddr) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        if matches!(self, Self::Deaf | Self::HalfClosedDeaf) {
            socket.set_recv_buffer_size(4096)?;
        }
        // No TIME_WAIT: ports would run out.
        socket.set_zero_linger()?;
        let mut stream = socket.connect(at).await?;
        let mut sink = vec![0; 1 << 16];
        match self {
            Self::Slow => {
                stream.write_all(b"GET /metr").await?;
                loop {
                    sleep(Duration::from_millis(200)).await;
                    stream.write_all(b"i").await?;
                }
            }
            Self::Idle => while stream.read(&mut sink).await? > 0 {},
            Self::HalfClosed => {
                stream.shutdown().await?;
                while stream.read(&mut sink).await? > 0 {}
            }
            Self::Garbage => loop {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0\r\n\r\n\xff\xfe").await?;
                sleep(Duration::from_millis(20)).await;
            },
            Self::Deaf => {
                stream.write_all(&REQUEST.repeat(8)).await?;
                loop {
                    sleep(Duration::from_millis(50)).await;
                    stream.write_all(b"x").await?;
                }
            }
            Self::HalfClosedDeaf => {
                stream.write_all(REQUEST).await?;
                stream.shutdown().await?;
                loop {
                    sleep(Duration::from_millis(50)).await;
                    if let Some(error) = stream.take_error()? {
                        return Err(error);
                    }
                }
            }
            Self::KeptAlive => {
                stream.write_all(REQUEST).await?;
                while stream.read(&mut sink).await? > 0 {}
            }
            Self::Greedy => loop {
                stream.write_all(REQUEST).await?;
                if stream.read(&mut sink).await? == 0 {
                    break;
                }
            },
            Self::Endless => {
                stream
                    .write_all(b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await?;
                loop {
                    stream.write_all(b"1\r\nx\r\n").await?;
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Self::Gone => stream.write_all(REQUEST).await?,
        }
        Ok(())
    }
}

/// Runs until dropped.
struct Siege {
    _stop: oneshot::Sender<()>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Siege {
    fn lay(address: &str, kinds: &'static [Kind], clients: usize) -> Self {
        let at: SocketAddr = address.parse().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (laid, is_laid) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let calls = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            runtime.block_on(async {
                for kind in kinds.iter().cycle().take(clients).copied() {
                    let calls = std::sync::Arc::clone(&calls);
                    tokio::spawn(async move {
                        loop {
                            calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            // How it ends is the server's affair.
                            let _ = timeout(Duration::from_secs(20), kind.call(at)).await;
                            sleep(Duration::from_millis(2)).await;
                        }
                    });
                }
                laid.send(()).unwrap();
                drop(stopped.await);
            });
            calls.load(std::sync::atomic::Ordering::Relaxed)
        });
        is_laid.recv().unwrap();
        Self { _stop: stop, thread: Some(thread) }
    }

    /// Ends it; returns how many connections it made.
    fn lift(self) -> u64 {
        let Self { _stop: stop, mut thread } = self;
        drop(stop);
        thread.take().unwrap().join().unwrap()
    }
}

/// A scrape as Prometheus makes it, and how long it took.
fn scrape(address: &str) -> (Duration, Result<usize, String>) {
    let begin = Instant::now();
    let answer = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), TIMEOUT * 3)?;
        stream.set_read_timeout(Some(TIMEOUT * 3))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().map_err(|error| error.to_string()).and_then(|answer| {
        let text = String::from_utf8(answer).map_err(|error| error.to_string())?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no head: {text:?}"))?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let is_whole = length.and_then(|length| length.parse().ok()) == Some(body.len());
        if head.starts_with("HTTP/1.1 200 ") && is_whole { Ok(body.len()) } else { Err(head.to_owned()) }
    });
    (begin.elapsed(), answer)
}

/// Scrapes for as long as a siege lasts; says what it was like.
fn endure(daemon: &Daemon, kinds: &'static [Kind], clients: usize, duration: Duration) {
    let _ = daemon.scrape();
    let (files, memory) = (daemon.sockets(), daemon.resident_kib());
    let siege = Siege::lay(&daemon.address, kinds, clients);
    let (mut took, mut most_memory, mut most_files) = (Vec::new(), memory, 0);
    let begin = Instant::now();
    let mut failures = Vec::new();
    while begin.elapsed() < duration {
        let (time, answer) = scrape(&daemon.address);
        if let Err(reason) = answer {
            failures.push(format!("{reason} after {time:?}"));
        }
        took.push(time);
        most_memory = most_memory.max(daemon.resident_kib());
        most_files = most_files.max(daemon.sockets());
        thread::sleep(Duration::from_millis(50));
    }
    let calls = siege.lift();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{clients} clients, {calls} connections in {duration:?}; {} scrapes: median {median:?}, worst {worst:?}; memory \
         {memory} KiB and at most {} more; files {files} and at most {} more",
        took.len(),
        most_memory - memory,
        most_files - files
    );
    assert!(failures.is_empty(), "{} of {} scrapes: {failures:?}", failures.len(), took.len());
    assert!(worst < TIMEOUT, "a scrape took {worst:?}");
    assert!(most_memory - memory < MAX_KIB, "{} KiB more", most_memory - memory);
    assert!(calls > clients as u64 / 2, "only {calls} calls");

    // Their places are free again, and it is as fast as before.
    let back = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(100));
        daemon.sockets() <= files
    });
    assert!(back, "{files} files were open, now {}", daemon.sockets());
    let (time, answer) = scrape(&daemon.address);
    assert!(answer.is_ok() && time < TIMEOUT / 4, "{answer:?} after {time:?}");
}

#[test]
fn a_thousand_hostile_clients_of_all_kinds_do_not_delay_a_scrape() {
    let daemon = Daemon::start(&[]);
    endure(&daemon, &KINDS, CLIENTS, SIEGE);
}

#[test]
fn each_kind_of_hostile_client_alone_does_not_delay_a_scrape() {
    let daemon = Daemon::start(&[]);
    let only = env::var("HANDSHAKE_TEST_SIEGE").ok();
    for kind in &KINDS {
        if only.as_ref().is_some_and(|only| *only != format!("{kind:?}")) {
            continue;
        }
        println!("{kind:?}");
        // Who asks in order is answered in turn: how many a second is a matter of the machine.
        let clients = if matches!(kind, Kind::KeptAlive | Kind::Greedy) { CLIENTS / 5 } else { CLIENTS };
        endure(&daemon, std::slice::from_ref(kind), clients, Duration::from_secs(2));
    }
}

/// Seen: it took more than 15 s.
#[test]
fn half_request_lines_do_not_delay_a_scrape() {
    let daemon = Daemon::start(&[]);
    let slow: Vec<_> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(&daemon.address).unwrap();
            stream.write_all(b"GET /metrics HT").unwrap();
            stream
        })
        .collect();
    let (time, answer) = scrape(&daemon.address);
    assert!(answer.is_ok() && time < TIMEOUT, "{answer:?} after {time:?}");
    // They are put out, too.
    let begin = Instant::now();
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream
            .read(&mut [0; 64])
            .map_err(|error| assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock));
    }
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

/// Descriptors are short: connections that are waited for give theirs.
#[test]
fn without_descriptors_a_scrape_is_answered_all_the_same() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let daemon = Daemon::start(&[]);
    let limit = Some(daemon.files() as u64 + 24);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    // With so few places they are let in one after the other, each for some milliseconds.
    endure(&daemon, &[Kind::Idle, Kind::Slow], CLIENTS / 5, Duration::from_secs(2));
}
