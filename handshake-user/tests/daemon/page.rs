//! The page `/`: what it shows of a real connection, and to whom.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::program::{Daemon, command};

/// Status, head and body, as curl sees them.
fn page(address: &str) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-sSi", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}"])
        .arg(format!("http://{address}/"))
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (said.lines().last().unwrap().parse().unwrap(), said)
}

/// `openssl s_server`, ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn handshake_that_an_expired_certificate_fails_is_on_the_page_as_a_ladder() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out expired.pem"
                .split(' '),
        )
        .args("-not_before 20200101000000Z -not_after 20200102000000Z -subj /CN=expired.test".split(' '))
        .args(["-addext", "subjectAltName=DNS:expired.test"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let daemon = Daemon::start(&[]);
    let (status, before) = page(&daemon.address);
    assert_eq!(status, 200, "{before}");
    assert!(!before.contains("expired.test"), "{before}");

    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let server = Command::new("openssl")
        .args([
            "s_server",
            "-quiet",
            "-cert",
            "expired.pem",
            "-key",
            "key.pem",
            "-accept",
            &format!("127.0.0.1:{port}"),
        ])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Server(server);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // The second witness: curl itself says why it refused.
        let curl = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--max-time", "10", "--cacert", "expired.pem"])
            .args(["--resolve", &format!("expired.test:{port}:127.0.0.1")])
            .arg(format!("https://expired.test:{port}/"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let refused = String::from_utf8_lossy(&curl.stderr).contains("expired");
        let (_, shown) = page(&daemon.address);
        let failed = shown.split_once("<h3>Failed</h3>").unwrap().1.split_once("<h3>Slow</h3>").unwrap().0;
        if refused && failed.contains("expired.test") && failed.contains("<svg class=\"ladder\"") {
            assert!(
                failed.contains("certificate_expired") || failed.contains("certificate expired"),
                "{failed}"
            );
            break;
        }
        assert!(Instant::now() < deadline, "{curl:?}\n{failed}");
        thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn page_is_for_this_host_unless_the_setting_shows_it_to_all() {
    // The address from which this host would reach others: a peer that connects to it has it as well.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let own = own.expect("this host has an address of its own").ip();
    assert!(!own.is_loopback());
    for (setting, expected) in [(&[][..], 403), (&["--page", "all"], 200)] {
        let daemon = Daemon::spawn(command(&["--listen", "0.0.0.0:0"]).args(setting));
        let port = daemon.address.rsplit_once(':').unwrap().1;
        let (status, said) = page(&format!("{own}:{port}"));
        assert_eq!(status, expected, "{said}");
        if status == 403 {
            assert!(said.contains("--page all") && !said.contains("<html"), "{said}");
        }
        let (status, said) = page(&format!("127.0.0.1:{port}"));
        assert_eq!(status, 200, "{said}");
        for header in [
            "content-security-policy: default-src 'none'; ",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(said.contains(header), "{said}");
        }
    }
}
