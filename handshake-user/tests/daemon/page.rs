//! The page `/`: what it shows of real connections, to whom, and how it is in a browser.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    browser::Browser,
    program::{Daemon, command, machine::patience, tls_server::TlsServer},
};

/// Status, and head and body, as curl sees them.
fn page(address: &str) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-sSi", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}"])
        .arg(format!("http://{address}/"))
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (said.lines().last().unwrap().parse().unwrap(), said)
}

/// curl by another name, which becomes that of the process.
pub(crate) struct Client {
    program: PathBuf,
    _folder: TempDir,
}

impl Client {
    pub(crate) fn named(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(name);
        let search = std::env::var_os("PATH").unwrap();
        let curl =
            std::env::split_paths(&search).map(|folder| folder.join("curl")).find(|file| file.is_file());
        symlink(curl.expect("curl, which this test needs"), &program).unwrap();
        Self { program, _folder: folder }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(["-sS", "--noproxy", "*", "--max-time", "10"]).args(arguments).output().unwrap()
    }

    /// Asks a server whose certificate has expired. The second witness: curl itself says why it refused.
    pub(crate) fn refuse(&self, server: &TlsServer) {
        let port = server.address.port();
        let certificate = path(&server.certificate);
        let refused = self.run(&[
            "--cacert",
            certificate,
            "--resolve",
            &format!("expired.test:{port}:127.0.0.1"),
            &format!("https://expired.test:{port}/"),
        ]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("expired"), "{said}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The page, as soon as it meets the condition.
#[track_caller]
pub(crate) fn page_until(address: &str, enough: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + patience(Duration::from_secs(30));
    loop {
        let (status, shown) = page(address);
        assert_eq!(status, 200, "{shown}");
        if enough(&shown) {
            return shown;
        }
        assert!(Instant::now() < deadline, "not in time: {shown}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What is between these two.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{from}: {text}"));
    rest.split_once(to).unwrap_or_else(|| panic!("{to}: {text}")).0
}

#[test]
fn handshake_that_an_expired_certificate_fails_is_on_the_page_as_a_ladder() {
    let daemon = Daemon::start(&[]);
    let server = TlsServer::start(-1, &[]);
    let (status, before) = page(&daemon.address);
    assert_eq!(status, 200, "{before}");
    assert!(!before.contains("expired.test"), "{before}");
    Client::named("calls-expired").refuse(&server);
    let failed = |shown: &str| between(shown, "<h3 id=\"failed\">", "<h3 id=\"slow\">").to_owned();
    let shown = page_until(&daemon.address, |shown| failed(shown).contains("expired.test"));
    let failed = failed(&shown);
    for said in ["calls-expired/", "TLS failed", "<svg class=\"ladder\"", "certificate_expired"] {
        assert!(failed.contains(said), "{said}: {failed}");
    }
    let service = format!("<th scope=\"row\">expired.test:{}</th>", server.address.port());
    assert!(between(&shown, "id=\"by-service\"", "</table>").contains(&service), "{shown}");
}

#[test]
fn rows_of_processes_count_every_connection_with_labels_on_demand() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for (settings, is_told) in [(&["--label", "process"][..], true), (&[], false)] {
        let daemon = Daemon::start(settings);
        let client = Client::named("calls-closed");
        for _ in 0..3 {
            let refused = client.run(&[&format!("http://{closed}/")]);
            assert_eq!(refused.status.code(), Some(7), "{refused:?}");
        }
        // Whether there are rows or not, the host's own counts are there.
        let shown = page_until(&daemon.address, |shown| {
            shown.contains("calls-closed") == is_told
                && between(shown, "<h3>TCP openings</h3>", "</section>").contains("refused")
        });
        if is_told {
            let row = between(&shown, "<th scope=\"row\">calls-closed</th>", "</tr>");
            let cells: Vec<_> = row.split("</td>").map(|cell| cell.rsplit('>').next().unwrap()).collect();
            // The rate is not known before it has been counted for a while.
            let [role, _, failed, retransmits, tls, ..] = cells[..] else { panic!("{row}") };
            assert_eq!([role, failed, retransmits, tls], ["client", "3", "0", "0"], "{row}");
            let ladders = between(&shown, "<h3 id=\"failed\">", "<h3 id=\"slow\">");
            assert_eq!(ladders.matches("calls-closed/").count(), 3 * 2, "in words, and of the picture");
        }
    }
}

#[test]
fn page_is_for_this_host_unless_the_setting_shows_it_to_all() {
    let own = own_address();
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

/// The address from which this host would reach others: a peer that connects to it has it as well.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("this host has a route");
    let own = socket.local_addr().unwrap().ip();
    assert!(!own.is_loopback());
    own
}

/// One browser for all: its start takes longest.
#[test]
fn page_is_live_usable_by_keyboard_and_readable_without_scripts() {
    let hostile = "<img src=x>";
    let daemon = Daemon::start(&[]);
    let server = TlsServer::start(-1, &[]);
    let client = Client::named(hostile);
    client.refuse(&server);
    page_until(&daemon.address, |shown| shown.contains("expired.test"));
    let url = format!("http://{}/", daemon.address);
    let mut browser = Browser::start();
    browser.open(&url);

    // Names are text.
    assert_eq!(browser.value("document.images.length"), 0);
    let row = format!(
        "[...document.querySelectorAll('#by-process tbody th')].some(it => it.textContent == '{hostile}')"
    );
    assert_eq!(browser.value(&row), true);
    browser.until("document.querySelectorAll('.rate').length == 6");

    // By keyboard: to the content, and into what is folded.
    browser.press("Tab", 9);
    assert_eq!(browser.value("document.activeElement.className"), "skip");
    browser.press("Enter", 13);
    browser.until("document.activeElement.id == 'main'");
    browser.value("document.querySelector('#columns summary').focus()");
    browser.press("Enter", 13);
    browser.until("document.getElementById('columns').open");
    assert_ne!(browser.value("getComputedStyle(document.activeElement).outlineStyle"), "none");

    // Live: another failure appears by itself, and the reader's place is kept.
    browser.value("window.mark = 'not loaded again'");
    let failures = format!(
        "[...document.querySelectorAll('.connection strong')].filter(it => it.textContent.startsWith('{hostile}/')).length"
    );
    assert_eq!(browser.value(&failures), 1);
    client.refuse(&server);
    browser.until(&format!("{failures} == 2"));
    let kept = "[mark, document.getElementById('columns').open, document.activeElement.parentElement.id, \
                document.querySelector('output').textContent]";
    assert_eq!(
        browser.value(kept),
        json!(["not loaded again", true, "columns", "Updated every five seconds."])
    );

    // A pause is one.
    browser.value("document.querySelector('button').click()");
    client.refuse(&server);
    page_until(&daemon.address, |shown| shown.matches("<strong>&lt;img src=x&gt;/").count() == 3);
    browser.value("update()");
    assert_eq!(browser.value(&failures), 2);
    assert_eq!(browser.value("document.querySelector('button').textContent"), "Resume updates");
    browser.value("document.querySelector('button').click()");
    browser.value("update()");
    assert_eq!(browser.value(&failures), 3);

    // Every text can be told from its background, light and dark; a narrow screen scrolls tables only.
    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        browser.call("Emulation.setEmulatedMedia", &json!({"features": features}));
        papers.push(browser.value("getComputedStyle(document.body).backgroundColor"));
        assert_eq!(browser.value(FAINT), json!([]), "{scheme}");
    }
    assert_ne!(papers[0], papers[1]);
    let narrow = json!({"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": false});
    browser.call("Emulation.setDeviceMetricsOverride", &narrow);
    assert_eq!(browser.value(BEYOND), json!([]));
    assert_eq!(browser.value("document.documentElement.scrollWidth"), 360);
    assert_eq!(browser.complaints, Vec::<String>::new());

    // Without scripts everything can be read, and nothing promises more.
    browser.call("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
    browser.open(&url);
    let (button, said) = ("document.querySelector('button').checkVisibility()", "document.body.innerText");
    assert_eq!(browser.value(button), false);
    let said = browser.value(said);
    let said = said.as_str().unwrap();
    for text in ["Without scripts this page stands still", hostile, "certificate_expired", "TCP openings"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    browser.call("Emulation.setScriptExecutionDisabled", &json!({"value": false}));

    // A page that stands still says so.
    browser.open(&url);
    assert_eq!(browser.complaints, Vec::<String>::new());
    daemon.end(Signal::SIGTERM);
    browser.value("update()");
    let state = browser.value("document.querySelector('output').textContent");
    assert!(state.as_str().unwrap().starts_with("Not up to date: "), "{state}");
}

/// What is wider than the window, without a way to scroll there.
const BEYOND: &str = "[...document.querySelectorAll('body *')]
    .filter(it => it.getBoundingClientRect().right > innerWidth && !it.closest('.scroll'))
    .map(it => it.outerHTML.slice(0, 99))";

/// Texts whose contrast to the page is below 4.5 (WCAG 2.2, 1.4.3), with their contrast.
const FAINT: &str = "(() => {
    const luminance = colour => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).map(it => it / 255)
            .map(it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const paper = luminance(getComputedStyle(document.body).backgroundColor);
    const faint = new Set();
    for (const element of document.querySelectorAll('body, p, a, th, td, h2, summary, span, dd, svg text')) {
        const style = getComputedStyle(element);
        const ink = luminance(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
        const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        if (contrast < 4.5) faint.add(element.tagName + '.' + element.getAttribute('class') + ' ' + contrast.toFixed(1));
    }
    return [...faint];
})()";
