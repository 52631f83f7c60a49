//! Counts the connections that are there already: the tracepoints show a connection only when its state
//! changes.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::linux::fs::MetadataExt as _,
    path::Path,
    time::Instant,
};

use crate::{bounded, exporter::metrics::Census};

/// Longest line, bytes; the kernel's have 150.
const MAX_LINE: u64 = 512;
/// Lines between two readings of the clock.
const BATCH: usize = 1024;

/// Sockets with a connection in every network namespace that a process is in; `None` when that is not done in
/// time.
///
/// Processes that exit meanwhile are skipped.
pub(super) fn sockets(deadline: Instant) -> Option<Census> {
    let mut census = Census::default();
    let Ok(processes) = fs::read_dir("/proc") else { return Some(census) };
    let mut namespaces = HashSet::new();
    let networks = processes
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|entry| entry.path().join("net"))
        // The file's inode identifies the namespace, and unlike ns/net any user may read it.
        .filter(|net| fs::metadata(net.join("tcp")).is_ok_and(|tcp| namespaces.insert(tcp.st_ino())));
    for net in networks {
        for (table, sockstat) in [("tcp", "sockstat"), ("tcp6", "sockstat6")] {
            if is_in_use(&net.join(sockstat)) {
                count(&net.join(table), deadline, &mut census)?;
            }
        }
    }
    Some(census)
}

/// Whether a namespace has any TCP socket of this family. Asked first, because the kernel walks the sockets
/// of all namespaces for the table of one.
fn is_in_use(sockstat: &Path) -> bool {
    let Ok(text) = bounded::read_to_string(sockstat, bounded::SMALL) else { return true };
    text.lines().find_map(in_use).is_none_or(|sockets| sockets > 0)
}

/// Sockets in a line such as `TCP: inuse 3 orphan 0 …`. Returns `None` for the line of another protocol.
fn in_use(line: &str) -> Option<u64> {
    let (protocol, rest) = line.split_once(": inuse ")?;
    matches!(protocol, "TCP" | "TCP6").then_some(())?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Line by line: a table of a million sockets takes 150 MB.
fn count(path: &Path, deadline: Instant, census: &mut Census) -> Option<()> {
    // If it cannot be read, the process has exited.
    let Ok(file) = File::open(path) else { return Some(()) };
    let mut table = BufReader::with_capacity(64 << 10, file);
    let mut line = Vec::new();
    for number in 0_usize.. {
        if number.is_multiple_of(BATCH) && Instant::now() > deadline {
            return None;
        }
        line.clear();
        match table.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            // The first line is the heading.
            Ok(_) if number > 0 => connection(&String::from_utf8_lossy(&line), census),
            Ok(_) => {}
        }
    }
    Some(())
}

/// Counts the connections in a `/proc/net/tcp`, for the fuzz target and the tests.
pub(crate) fn connections(table: &str, census: &mut Census) {
    table.lines().skip(1).for_each(|line| connection(line, census));
}

/// Counts a line of `/proc/net/tcp` if it is a socket with a connection: `sl local remote st tx:rx tr:when
/// …`.
fn connection(line: &str, census: &mut Census) {
    let mut columns = line.split_ascii_whitespace().skip(3);
    let (Some(state), Some(timer)) = (columns.next(), columns.nth(1)) else { return };
    // A time-wait minisocket (timer of kind 3) may be in FIN_WAIT2, but its socket is gone.
    if timer.starts_with("03:") {
        return;
    }
    match state {
        // SYN_SENT
        "02" => census.opening += 1,
        "01" => census.established += 1,
        // FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING
        "04" | "05" | "08" | "09" | "0B" => census.closing += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn only_sockets_with_a_connection_are_counted() {
        let line = |state: &str, timer: &str| {
            format!(
                "   0: 0100007F:0016 0100007F:C350 {state} 00000000:00000000 {timer}:00000000 00000000     0        0 1 1\n"
            )
        };
        let text = ["heading\n".to_owned()]
            .into_iter()
            .chain(
                ["01", "02", "03", "04", "05", "06", "08", "09", "0A", "0B"].map(|state| line(state, "00")),
            )
            .chain([line("05", "03"), line("01", "02"), "short\n".to_owned()]);
        let mut census = Census::default();
        connections(&text.collect::<String>(), &mut census);
        connections("", &mut census);
        assert_eq!(census, Census { opening: 1, established: 2, closing: 5 });
    }

    #[test]
    fn sockets_in_use_are_those_of_tcp() {
        assert_eq!(in_use("TCP: inuse 3 orphan 0 tw 0 alloc 3 mem 9"), Some(3));
        assert_eq!(in_use("TCP6: inuse 0"), Some(0));
        assert_eq!(in_use("UDP: inuse 5 mem 1"), None);
        assert_eq!(in_use("sockets: used 31"), None);
        assert_eq!(in_use("TCP: inuse x"), None);
    }

    #[test]
    fn connection_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        assert!(sockets(deadline).unwrap().established >= 2);
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(sockets(past), None, "out of time");
    }
}
