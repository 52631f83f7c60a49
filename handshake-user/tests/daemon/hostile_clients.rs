//! The exporter under hostile clients: slow, idle, half-closed, not reading or sending garbage, which
//! reconnect as soon as they are disconnected. Scrapes must be answered all the same.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
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
/// How long the clients stay.
const DURATION: Duration = Duration::from_secs(8);
const CLIENTS: usize = 1000;
/// How much memory the clients may cost, KiB.
const MAX_KIB: u64 = 64 * 1024;

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Sends half a request line, and then a byte now and then.
    Slow,
    /// Sends nothing.
    Idle,
    /// Sends a FIN and nothing else.
    HalfClosed,
    /// Keeps sending what is not HTTP.
    Garbage,
    /// Sends requests and does not read.
    NotReading,
    /// Sends a request and a FIN, and does not read.
    HalfClosedNotReading,
    /// Sends a request, reads, and stays connected.
    KeptAlive,
    /// Sends requests one after the other.
    Greedy,
    /// Sends an endless body.
    Endless,
    /// Sends a request and closes.
    Gone,
    /// Completes a TLS handshake and closes.
    TlsGone,
    /// Completes a TLS handshake and sends nothing.
    TlsIdle,
    /// Sends the beginning of a ClientHello, and then a byte now and then.
    TlsSlow,
    /// Completes a TLS handshake, sends requests and does not read.
    TlsNotReading,
}

const KINDS: [Kind; 10] = [
    Kind::Slow,
    Kind::Idle,
    Kind::HalfClosed,
    Kind::Garbage,
    Kind::NotReading,
    Kind::HalfClosedNotReading,
    Kind::KeptAlive,
    Kind::Greedy,
    Kind::Endless,
    Kind::Gone,
];

/// What can be done to a server that speaks TLS.
pub(crate) const TLS_KINDS: [Kind; 8] = [
    Kind::TlsGone,
    Kind::TlsIdle,
    Kind::TlsSlow,
    Kind::TlsNotReading,
    Kind::Idle,
    Kind::HalfClosed,
    Kind::Garbage,
    Kind::KeptAlive,
];

impl Kind {
    /// Makes one connection, until the server closes it.
    async fn connect(self, at: SocketAddr) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        if matches!(self, Self::NotReading | Self::HalfClosedNotReading | Self::TlsNotReading) {
            socket.set_recv_buffer_size(4096)?;
        }
        // Without TIME_WAIT, because ports would run out.
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
            Self::NotReading => {
                stream.write_all(&REQUEST.repeat(8)).await?;
                loop {
                    sleep(Duration::from_millis(50)).await;
                    stream.write_all(b"x").await?;
                }
            }
            Self::HalfClosedNotReading => {
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
            Self::TlsGone => drop(handshake(stream).await?),
            Self::TlsIdle => {
                let mut stream = handshake(stream).await?;
                while stream.read(&mut sink).await? > 0 {}
            }
            Self::TlsSlow => {
                stream.write_all(b"\x16\x03\x01\x20\0\x01\0\x1f\xfc\x03\x03").await?;
                loop {
                    sleep(Duration::from_millis(200)).await;
                    stream.write_all(b"i").await?;
                }
            }
            Self::TlsNotReading => {
                let mut stream = handshake(stream).await?;
                stream.write_all(&REQUEST.repeat(8)).await?;
                stream.flush().await?;
                loop {
                    sleep(Duration::from_millis(50)).await;
                    stream.write_all(b"x").await?;
                    stream.flush().await?;
                }
            }
        }
        Ok(())
    }
}

/// A client's side of a TLS handshake, whoever the server is.
async fn handshake(
    tcp: tokio::net::TcpStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(crate::web::trusting());
    connector.connect("127.0.0.1".try_into().unwrap(), tcp).await
}

/// Clients in a thread of their own, until dropped.
struct Clients {
    _stop: oneshot::Sender<()>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Clients {
    fn start(address: &str, kinds: &'static [Kind], clients: usize) -> Self {
        let at: SocketAddr = address.parse().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let connections = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            runtime.block_on(async {
                for kind in kinds.iter().cycle().take(clients).copied() {
                    let connections = std::sync::Arc::clone(&connections);
                    tokio::spawn(async move {
                        loop {
                            connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            // Any way that the server ends it is fine.
                            let _ = timeout(Duration::from_secs(20), kind.connect(at)).await;
                            sleep(Duration::from_millis(2)).await;
                        }
                    });
                }
                ready.send(()).unwrap();
                drop(stopped.await);
            });
            connections.load(std::sync::atomic::Ordering::Relaxed)
        });
        is_ready.recv().unwrap();
        Self { _stop: stop, thread: Some(thread) }
    }

    /// Ends them. Returns how many connections they made.
    fn stop(self) -> u64 {
        let Self { _stop: stop, mut thread } = self;
        drop(stop);
        thread.take().unwrap().join().unwrap()
    }
}

/// Scrapes as Prometheus does. Returns how long it took, and the size of the page.
fn scrape(address: &str) -> (Duration, Result<usize, String>) {
    scrape_with(address, None)
}

/// The same over TLS, with the certificates to trust. The time includes that of the program which does it.
fn scrape_with(address: &str, authority: Option<&Path>) -> (Duration, Result<usize, String>) {
    let begin = Instant::now();
    if let Some(authority) = authority {
        let curl = ["-sSf", "--max-time", "3", "--cacert"];
        let url = format!("https://{address}/metrics");
        let output = Command::new("curl").args(curl).arg(authority).arg(url).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_whole = output.status.success() && output.stdout.ends_with(b"\n");
        return (begin.elapsed(), if is_whole { Ok(output.stdout.len()) } else { Err(said) });
    }
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

/// Scrapes while the clients are there, and checks the times, the memory and the sockets.
fn scrape_under(daemon: &Daemon, kinds: &'static [Kind], clients: usize, duration: Duration) {
    scrape_under_with(daemon, None, kinds, clients, duration);
}

/// The same over TLS, with the certificates to trust.
pub(crate) fn scrape_under_with(
    daemon: &Daemon,
    authority: Option<&Path>,
    kinds: &'static [Kind],
    clients: usize,
    duration: Duration,
) {
    let scrape = |address: &str| scrape_with(address, authority);
    let _ = scrape(&daemon.address);
    let (files, memory) = (daemon.sockets(), daemon.resident_kib());
    let load = Clients::start(&daemon.address, kinds, clients);
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
    let connections = load.stop();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{clients} clients, {connections} connections in {duration:?}; {} scrapes: median {median:?}, worst \
         {worst:?}; memory {memory} KiB and at most {} more; sockets {files} and at most {} more",
        took.len(),
        most_memory - memory,
        most_files - files
    );
    assert!(failures.is_empty(), "{} of {} scrapes: {failures:?}", failures.len(), took.len());
    assert!(worst < TIMEOUT, "a scrape took {worst:?}");
    assert!(most_memory - memory < MAX_KIB, "{} KiB more", most_memory - memory);
    assert!(connections > clients as u64 / 2, "only {connections} connections");

    // Their connections are closed, and scrapes are as fast as before.
    let back = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(100));
        daemon.sockets() <= files
    });
    assert!(back, "{files} sockets were open, now {}", daemon.sockets());
    let (time, answer) = scrape(&daemon.address);
    assert!(answer.is_ok() && time < TIMEOUT / 4, "{answer:?} after {time:?}");
}

#[test]
fn thousand_clients_of_all_kinds_do_not_delay_scrapes() {
    let daemon = Daemon::start(&[]);
    scrape_under(&daemon, &KINDS, CLIENTS, DURATION);
}

#[test]
fn no_single_kind_of_client_delays_scrapes() {
    let daemon = Daemon::start(&[]);
    let only = env::var("HANDSHAKE_TEST_CLIENT").ok();
    for kind in &KINDS {
        if only.as_ref().is_some_and(|only| *only != format!("{kind:?}")) {
            continue;
        }
        println!("{kind:?}");
        // Well-behaved clients are served in turn, and how many a second depends on the machine.
        let clients = if matches!(kind, Kind::KeptAlive | Kind::Greedy) { CLIENTS / 5 } else { CLIENTS };
        scrape_under(&daemon, std::slice::from_ref(kind), clients, Duration::from_secs(2));
    }
}

/// A regression test: a scrape once took more than 15 s.
#[test]
fn incomplete_request_lines_do_not_delay_scrapes() {
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
    // The server closes them, too.
    let begin = Instant::now();
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream
            .read(&mut [0; 64])
            .map_err(|error| assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock));
    }
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

/// When descriptors run out, idle connections give theirs up.
#[test]
fn scrapes_are_answered_when_descriptors_run_out() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let daemon = Daemon::start(&[]);
    let limit = Some(daemon.files() as u64 + 24);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    // With so few descriptors, clients are accepted one after the other, each for some milliseconds.
    scrape_under(&daemon, &[Kind::Idle, Kind::Slow], CLIENTS / 5, Duration::from_secs(2));
}
