//! Counts the connections that are there already: the tracepoints show a connection only when its state changes.

use std::{collections::HashSet, fs, os::linux::fs::MetadataExt as _, path::Path};

/// Sockets with a connection in every network namespace that a process is in.
///
/// Processes that end meanwhile, and namespaces without a process, count for nothing.
pub(super) fn sockets() -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let mut namespaces = HashSet::new();
    processes
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|entry| entry.path().join("net"))
        // The file's inode tells the namespace, and unlike ns/net it may be asked for by anybody.
        .filter(|net| fs::metadata(net.join("tcp")).is_ok_and(|tcp| namespaces.insert(tcp.st_ino())))
        .map(|net| table(&net.join("tcp")) + table(&net.join("tcp6")))
        .sum()
}

fn table(path: &Path) -> u64 {
    fs::read(path).map_or(0, |text| connections(&String::from_utf8_lossy(&text)))
}

/// Counts the lines of `/proc/net/tcp` that are sockets with a connection: `sl local remote st tx:rx tr:when …`.
pub(crate) fn connections(table: &str) -> u64 {
    let is_connection = |line: &str| {
        let mut columns = line.split_ascii_whitespace().skip(3);
        let (Some(state), Some(timer)) = (columns.next(), columns.nth(1)) else { return false };
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. A time-wait minisocket, whose timer is of
        // kind 3, shows FIN_WAIT2 too, but its socket is gone.
        matches!(state, "01" | "04" | "05" | "08" | "09" | "0B") && !timer.starts_with("03:")
    };
    table.lines().skip(1).filter(|line| is_connection(line)).count() as u64
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_sockets_with_a_connection_count() {
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
        assert_eq!(connections(&text.collect::<String>()), 7);
        assert_eq!(connections(""), 0);
    }

    #[test]
    fn a_connection_of_our_own_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(sockets() >= 2);
    }
}
