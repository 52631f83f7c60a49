//! Threads and processes that die inside a handshake leave no state behind that costs others, or that is
//! attributed to others when process ids, thread ids and addresses are reused.
//!
//! Needs root: run through `cargo xtask test`.

mod program;
#[path = "dead_callers/reborn.rs"]
mod reborn;
#[path = "dead_callers/tracer.rs"]
mod tracer;
#[path = "dead_callers/victim.rs"]
mod victim;

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::{program::tls_server::TlsServer, reborn::Reborn, tracer::Tracer, victim::Victim};

/// The number of threads, and of processes.
const VICTIMS: usize = 25;

/// The tests affect all threads of this process, so they must not run at the same time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn threads_and_processes_that_die_inside_a_handshake_leave_no_state() {
    let _alone = ALONE.lock();
    let tracer = Tracer::start();
    // The kernel accepts connections, but nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let mut dead = Vec::new();
    for _ in 0..VICTIMS {
        let thread = Victim::thread(address);
        tracer.until("the thread is considered inside", |tracer| tracer.is_inside(thread.id));
        dead.push(thread.id);
        thread.ends();

        let process = Command::new("openssl")
            .args(["s_client", "-connect", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut process = process.expect("openssl, which this test needs");
        tracer.until("the process is considered inside", |tracer| tracer.is_inside(process.id()));
        dead.push(process.id());
        process.kill().unwrap();
        process.wait().unwrap();
    }

    // A new process with the same id, which is in no handshake, is mistaken for the dead one only until it
    // sends.
    let mut tried = 0;
    for id in dead {
        // Another process may have the id by now.
        let Some(reborn) = Reborn::sending(id) else { continue };
        reborn.ends();
        assert!(!tracer.is_inside(id), "{id} is still considered inside a handshake");
        tried += 1;
    }
    assert!(tried > VICTIMS, "only {tried} ids could be reused");
}

#[test]
fn handshake_is_not_attributed_to_a_dead_process_with_the_same_id_and_addresses() {
    let _alone = ALONE.lock();
    let tracer = Tracer::start();
    let server = TlsServer::start(2, &[]);
    let port = server.address.port().to_string();
    let arguments = ["gnutls-cli", "--insecure", "--port", &port, "127.0.0.1"];

    server.signal(Signal::SIGSTOP);
    let first = Reborn::executing(None, &arguments).unwrap();
    let id = first.id;
    tracer.until("the process is considered inside", |tracer| tracer.is_inside(id));
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL).unwrap();
    first.ends();
    thread::sleep(Duration::from_secs(1));
    server.signal(Signal::SIGCONT);

    let second = Reborn::executing(Some(id), &arguments).expect("the id is free again");
    second.ends();
    let record = tracer.record(|record| {
        record["event"] == "tls" && record["process"]["pid"] == id && record["tls"]["outcome"] == "completed"
    });
    assert_eq!(record["tls"]["source"], "both", "{record}");
    assert_eq!(record["tls"]["library"], "gnutls", "{record}");
    let duration = record["tls"]["duration_us"].as_u64().unwrap();
    assert!(duration < 900_000, "measured from the start of the dead process: {record}");
}
