//! Closings that go on after their socket, while the kernel side fills the histograms: of connections without
//! TLS, user space gets no other records.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::{Daemon, Scrape, listen};

/// How much later than the client the server closes.
const APP_WAIT: Duration = Duration::from_millis(3300);
/// Buckets that hold it, and hardly anything else that this host does meanwhile, seconds.
const BUCKETS: &str = "3.2,3.5";

/// Waits of clients that closed first, about as long.
fn late_fins(scrape: &Scrape) -> f64 {
    let bucket = |bound| {
        let labels = ["role=\"client\"", "initiator=\"local\"", bound];
        scrape.sum("handshake_tcp_close_app_wait_seconds_bucket", &labels)
    };
    bucket("le=\"3.5\"") - bucket("le=\"3.2\"")
}

fn reused(scrape: &Scrape) -> f64 {
    scrape.sum("handshake_tcp_time_wait_ends_total", &["end=\"reused\""])
}

/// A client that connects from this address, whatever minisocket has it.
fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

fn scrape_until(daemon: &Daemon, enough: impl Fn(&Scrape) -> bool) -> Scrape {
    // Minisockets are looked at every ten seconds.
    (0..3).map(|_| daemon.scrape_until(&enough)).find(&enough).expect("not within 30 s")
}

#[test]
fn late_fin_and_reuse_of_its_ends_are_counted() {
    let daemon = Daemon::start(&["--buckets", BUCKETS]);
    let (listener, at, _) = listen("127.77.9.1");
    let before = daemon.scrape();

    let client = connect_from("127.77.9.2:0".parse().unwrap(), at);
    let from = client.local_addr().unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(client);
    thread::sleep(APP_WAIT);
    drop(server);
    let fin = scrape_until(&daemon, |scrape| late_fins(scrape) > late_fins(&before));

    // Other connections of this host may take the ends of older ones, too.
    let again = connect_from(from, at);
    let _server = listener.accept().unwrap();
    scrape_until(&daemon, |scrape| reused(scrape) > reused(&fin));
    drop(again);
    let last = daemon.scrape();
    assert_eq!(late_fins(&last) - late_fins(&before), 1.0, "told once");
}
