//! Chromium without a window, driven over a pipe (`--remote-debugging-pipe`): JSON objects, each ended by a
//! NUL (Chrome `DevTools` Protocol).

use std::{
    io::{BufRead as _, BufReader, PipeWriter, Write as _, pipe},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{child_guard::ChildGuard, machine::patience};

/// Names of the program; some distributions have no package of this name.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const TIMEOUT: Duration = Duration::from_secs(30);
/// Descriptors by which it is spoken to.
const COMMANDS: i32 = 3;
const ANSWERS: i32 = 4;

/// A browser with one page.
pub(crate) struct Browser {
    /// Its other processes end with it.
    _child: ChildGuard,
    commands: PipeWriter,
    messages: Receiver<Value>,
    last: u64,
    session: Option<String>,
    /// What the page wrote to the console, and what went wrong in it: errors of scripts, violations of its
    /// policy, requests that failed.
    pub(crate) complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (commands, to) = pipe().unwrap();
        let (from, answers) = pipe().unwrap();
        // Above those that they become, so that neither takes the other's place.
        let high = |end: &dyn std::os::fd::AsFd| fcntl(end.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(10)).unwrap();
        let (reads, writes) = (high(&commands), high(&answers));
        let search = std::env::var_os("PATH").unwrap();
        let folders: Vec<_> = std::env::split_paths(&search).collect();
        let found = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        let program = found.into_iter().find(|file| file.is_file()).expect("chromium, which this test needs");
        let mut command = Command::new(program);
        command
            .args([
                "--headless",
                "--remote-debugging-pipe",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server"])
            .args(["--disable-component-update", "--disable-extensions", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec only system calls are made, on descriptors that are open.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in [(reads, COMMANDS), (writes, ANSWERS)] {
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = ChildGuard::start(&mut command);
        for descriptor in [reads, writes] {
            // SAFETY: it was made above, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        let (send, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut message = Vec::new();
            while let Ok(1..) = from.read_until(0, &mut message) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if send.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            _child: child,
            commands: to,
            messages,
            last: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", &target);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Calls a method of the protocol.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        let deadline = Instant::now() + patience(TIMEOUT);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.messages.recv_timeout(left);
            let mut answer = answer.unwrap_or_else(|error| panic!("{method}: no answer: {error}"));
            if answer["id"] == self.last {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            let event = answer["method"].as_str().unwrap_or_default();
            if ["Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"].contains(&event) {
                self.complaints.push(answer["params"].to_string());
            }
        }
    }

    /// Opens an address, and returns when the page is there with all that belongs to it.
    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", &json!({"url": url}));
        assert!(opened.get("errorText").is_none(), "{url}: {opened}");
        self.until(&format!("document.readyState == 'complete' && location.href == '{url}'"));
    }

    /// The value of an expression in the page; of a promise, once that is kept.
    #[track_caller]
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Returns when the expression is true.
    #[track_caller]
    pub(crate) fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + patience(TIMEOUT);
        while self.value(expression) != true {
            assert!(Instant::now() < deadline, "never: {expression}; {:?}", self.complaints);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key that types nothing but, for Enter, the end of a line.
    #[track_caller]
    pub(crate) fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", &event);
        }
    }
}
