//! `handshake top` on a real terminal, over real traffic, and what it leaves behind however it ends.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "hostile_names/hostile_process.rs"]
#[allow(dead_code, reason = "another suite uses all of it")]
mod hostile_process;
mod program;
#[path = "top/terminal.rs"]
mod terminal;

use std::{
    env, fs,
    io::Read as _,
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use handshake::cmd::top::screen::Screen;
use nix::sys::signal::Signal;

use self::{
    hostile_process::{HostileProcess, Server, client_hello},
    program::{binary, tls_server::TlsServer},
    terminal::Terminal,
};

/// The name of the hostile process as it must be shown, escaped.
const SHOWN_COMM: &str = r"\x1b[2J\xff\n} 1";

/// `handshake top`, without the libraries, which take long to detach.
fn top(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["top", "--tls-libraries", "off"]).args(arguments);
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HANDSHAKE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").env_remove("NO_COLOR");
    command
}

/// Starts it on a terminal of the smallest usual size.
fn started(command: &mut Command) -> Terminal {
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.until("the screen", |terminal| terminal.is_taken() && terminal.text().contains("q quit"));
    terminal
}

/// A listener that closes what it accepts when the other end has.
fn listen() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut peer in listener.incoming().map_while(Result::ok) {
            let _ = peer.read(&mut [0]);
        }
    });
    port
}

/// Opens and closes a connection.
fn connect(port: u16) {
    TcpStream::connect(("127.0.0.1", port)).unwrap();
}

#[test]
fn real_traffic_is_grouped_listed_and_drawn() {
    let port = listen();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut terminal = started(&mut top(&["--port", &format!("{port},{closed}"), "--by", "service"]));
    for _ in 0..7 {
        connect(port);
    }
    for _ in 0..2 {
        TcpStream::connect(("127.0.0.1", closed)).unwrap_err();
    }
    // Both ends of the connections, and the refused ones.
    terminal.until("all rows", |terminal| {
        let text = terminal.text();
        let row = |what: &str| text.lines().any(|line| line.starts_with(what));
        row(&format!(":{port}")) && row(&format!(":{closed}")) && text.contains("server")
    });
    terminal.until("the numbers of a service", |terminal| {
        let text = terminal.text();
        text.contains("openings 7: 7 established") && text.contains("closings 7")
    });
    // Loopback: a setup is known, and there was one round trip to be saved.
    terminal.until("the setups", |terminal| {
        let text = terminal.text();
        text.contains("setups 7: p50 ") && text.contains("round trips 7, possible 0")
    });

    // By the number of failures, the refused ones come first.
    terminal.type_keys(b"\x1b[C");
    terminal.until("sorted by FAILED", |terminal| {
        let text = terminal.text();
        text.contains("FAILED▼") && text.contains("openings 2: 2 refused")
    });
    terminal.type_keys(b"f");
    terminal.until_shows("latest connections: all whose TCP or TLS handshake failed");
    assert_eq!(terminal.text().matches(" refused ").count(), 2, "{}", terminal.text());

    terminal.type_keys(b"p");
    terminal.until_shows("PROCESS");
    terminal.type_keys(b"/ --role client");
    terminal.until_shows(&format!("/--port {port} --port {closed} --role client"));
    terminal.type_keys(b"\r");
    terminal.until_shows("no connection yet");
    for _ in 0..3 {
        connect(port);
    }
    terminal.until_shows("openings 3: 3 established");
    assert_eq!(terminal.text().matches(" client ").count(), 1, "{}", terminal.text());
    assert_eq!(terminal.text().matches(" server ").count(), 0, "{}", terminal.text());

    terminal.type_keys(b"\r");
    terminal.until("the connections", |terminal| {
        terminal.text().contains("latest connections: ") && terminal.text().matches(" close ").count() == 3
    });
    terminal.type_keys(b"\x1b[B\r");
    terminal.until("the ladder", |terminal| {
        let text = terminal.text();
        ["SYN ──", "SYN+ACK", "FIN", &format!("127.0.0.1:{port} client")]
            .iter()
            .all(|part| text.contains(part))
    });
    terminal.type_keys(b"\x1b");
    terminal.until_shows("latest connections: ");
    terminal.type_keys(b"\x1b");
    terminal.until_shows("OPEN/S");

    assert!(!terminal.text().contains("RESUMED"), "no room");
    terminal.resize(40, 150);
    terminal.until("the wide table", |terminal| {
        let text = terminal.text();
        text.contains("RESUMED") && text.lines().count() == 40
    });
    terminal.resize(5, 20);
    terminal.until("a tiny screen", |terminal| terminal.text().lines().count() <= 5);
    terminal.resize(24, 80);
    terminal.until_shows("openings 3: 3 established");

    terminal.type_keys(b"q");
    assert!(terminal.ends().success());
    terminal.assert_as_before();
    // The emulator cuts what is behind the alternate screen to the smallest size.
    assert!(terminal.text().contains("tracing the connecti"), "{}", terminal.text());
}

/// One handshake. Returns whether it succeeded, and what the client says of it.
fn greet(server: &TlsServer, version: &str) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(["s_client", version, "-servername", "Shop.example", "-connect"]);
    let output = command.arg(server.address.to_string()).stdin(Stdio::null()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn tls_is_counted_by_version_under_the_name_that_was_asked_for() {
    let server = TlsServer::start(2, &[]);
    let port = server.address.port().to_string();
    let mut terminal = started(&mut top(&["--by", "service", "--role", "client", "--port", &port]));
    for (version, says) in [("-tls1_3", "TLSv1.3"), ("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let (succeeded, said) = greet(&server, version);
        assert!(succeeded && said.contains(says), "{said}");
    }
    let all = "TLS handshakes 3 · 3 completed · 1 TLS 1.2, 2 TLS 1.3 · 3 full";
    terminal.until_shows(all);
    let text = terminal.text();
    // The openings have moved to the name, and nothing is left at the port.
    assert!(text.contains("openings 3: 3 established"), "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.contains(" client ")).collect();
    assert!(rows.len() == 1 && rows[0].starts_with("shop.e"), "{text}");
    // Two round trips for TLS 1.3, three for TLS 1.2, and with what the ends could do none.
    assert!(text.contains("setups 3: p50 ") && text.contains("round trips 7, possible 0"), "{text}");
    terminal.type_keys(b"q");
    assert!(terminal.ends().success());
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let mut hostile = HostileProcess::start();
    let server = Server::start();
    let mut terminal = started(&mut top(&["--port", &server.port().to_string()]));
    hostile.connect(server.port(), &client_hello(&[b'x'; 250]));
    terminal.until_shows(&SHOWN_COMM[..7]);
    terminal.type_keys(b"f");
    terminal.until_shows(&SHOWN_COMM[..13]);
    // The name of a server is shown to its end in no row, and to a limit in the ladder.
    terminal.type_keys(b"s");
    terminal.until_shows(&format!("…{}", &format!("xxxxxx:{}", server.port())[6..]));
    terminal.type_keys(b"n");
    terminal.until_shows("127.0.0.0/24");
    terminal.type_keys(b"\r\r");
    terminal.until_shows("alert handshake_failure");
    terminal.type_keys(b"q");
    assert!(terminal.ends().success());
    terminal.assert_as_before();
    let written = terminal.bytes();
    for hostile in [&b"\x1b[2J\xff"[..], b"\x1b[2J\n", b"\x9b", b"\xff"] {
        let found = written.windows(hostile.len()).filter(|bytes| *bytes == hostile).count();
        // U+256x and its like contain the byte 9b, which is then no character.
        let is_in_text = std::str::from_utf8(&written).is_ok();
        assert!(found == 0 || hostile.len() == 1 && is_in_text, "{hostile:?}");
    }
    let text = String::from_utf8(written).unwrap();
    assert!(!text.contains('\u{9b}'));
}

#[test]
fn any_end_gives_the_terminal_back() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        let mut terminal = started(&mut top(&["--port", "1"]));
        terminal.signal(signal);
        let status = terminal.ends();
        assert!(status.success(), "{signal}: {status}");
        terminal.assert_as_before();
    }
    let mut terminal = started(&mut top(&["--port", "1"]));
    // Ctrl-C
    terminal.type_keys(b"\x03");
    assert!(terminal.ends().success());
    terminal.assert_as_before();
}

/// A view on a terminal whose thread panics, after another thread did, which must not disturb it.
#[test]
#[ignore = "it is started by a_panic_gives_the_terminal_back"]
fn panics_on_screen() {
    let mut screen = Screen::open().unwrap();
    thread::spawn(|| panic!("another thread")).join().unwrap_err();
    screen.draw(|frame| frame.render_widget("drawn", frame.area())).unwrap();
    thread::sleep(Duration::from_secs(2));
    panic!("on purpose");
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "panics_on_screen", "--nocapture"]).env("RUST_BACKTRACE", "0");
    let mut terminal = Terminal::start(&mut command, 24, 80);
    terminal.until("the screen", |terminal| terminal.is_taken() && terminal.text().contains("drawn"));
    assert!(!terminal.text().contains("another thread"), "{}", terminal.text());
    assert!(!terminal.ends().success());
    terminal.assert_as_before();
    let text = terminal.text();
    let [other, own] = ["another thread", "on purpose"].map(|panic| text.find(panic));
    assert!(other.is_some() && other < own, "both are told, in their order: {text}");
}

#[test]
fn a_shell_can_stop_it_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let modes = folder.path().join("modes");
    let port = listen();
    // Job control needs a shell: what no shell controls cannot be stopped like this.
    let script = format!(
        "set -m; \"$0\" top --tls-libraries off --port {port}; stty -a >{}; read line; fg; echo over",
        modes.display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(binary()).env_remove("RUST_LOG");
    let mut terminal = Terminal::start(&mut command, 24, 80);
    terminal.until("the screen", |terminal| terminal.is_taken() && terminal.text().contains("q quit"));
    terminal.type_keys(b"\x1a");
    terminal.until("the modes of the stopped program", |_| {
        fs::read_to_string(&modes).is_ok_and(|modes| modes.contains("icanon"))
    });
    terminal.assert_as_before();
    let said = fs::read_to_string(&modes).unwrap();
    assert!(said.contains(" icanon") && said.contains(" echo "), "{said}");
    // Connections of the meantime are counted when it goes on.
    connect(port);
    terminal.type_keys(b"\n");
    terminal.until("the screen again", |terminal| terminal.is_taken() && terminal.text().contains("q quit"));
    terminal.until_shows("openings 1: 1 established");
    terminal.type_keys(b"q");
    terminal.until_shows("over");
    assert!(terminal.ends().success());
    terminal.assert_as_before();
}

#[test]
fn no_color_is_respected() {
    let colours = |terminal: &Terminal| {
        let text = String::from_utf8(terminal.bytes()).unwrap();
        // ratatui writes a colour as `38;5;N`.
        text.contains("38;5;") || text.contains("48;5;")
    };
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for (value, expected) in [("", true), ("1", false)] {
        let mut terminal = started(top(&["--port", &closed.to_string()]).env("NO_COLOR", value));
        TcpStream::connect(("127.0.0.1", closed)).unwrap_err();
        terminal.until_shows("openings 1: 1 refused");
        assert_eq!(colours(&terminal), expected, "NO_COLOR={value}");
        terminal.type_keys(b"q");
        assert!(terminal.ends().success());
    }
}

#[test]
fn a_terminal_that_is_gone_ends_it() {
    let mut terminal = started(&mut top(&["--port", "1"]));
    let pid = terminal.pid();
    terminal.hang_up();
    let status = terminal.ends();
    assert!(status.signal().is_none(), "{pid}: {status}");
}
