//! The listening sockets of the host: which program listens on each, and how full its accept queue is.
//!
//! The kernel side enters a socket when it begins to listen, with the process that calls `listen()`, and
//! names that process in the openings that come to it. Here the rest is done, by looking at the open files
//! of all processes now and then: sockets that were there before, names that changed (`exec`), processes
//! that ended (daemons that listen first and fork then), sockets that were passed on (socket activation).

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf,
    maps::{self, Map, MapData},
};
use handshake_common::{
    Connection, Family, Role, Stage,
    tcp::listener::{self, Holder, LISTEN, Listener, Queue},
};

use super::{
    iterator,
    open_files::{Holders, Look, OpenFiles},
};
use crate::{
    bounded_map::BoundedMap,
    event::{Address, ConnectionEvent, ListenQueue},
};

/// A look at the open files takes some milliseconds on a large host: at most this share of the time is spent
/// on it.
const SHARE: u32 = 1000;
/// The shortest and the longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// A port that another program serves than before is a reason to look this many times sooner.
const SOONER: u32 = 10;
/// Ports of which it is remembered which program serves them. The oldest are evicted.
const MAX_SERVED: usize = 1024;
/// How fresh the queues are that the records of one turn show.
const FRESH: Duration = Duration::from_millis(200);

/// The name of a process as the kernel keeps it.
type Comm = [u8; 16];

/// The table of listening sockets, and the iterators that look at them.
#[derive(Debug)]
pub struct Listeners {
    table: maps::HashMap<MapData, u64, Listener>,
    table_fd: OwnedFd,
    open_files: OpenFiles,
    /// A look was asked for and has not come yet.
    is_looking: bool,
    /// `None` where the kernel does not let the table be iterated over: then the open files tell.
    queues: Option<OwnedFd>,
    /// The program that closed the last connection to a port, by namespace and port, where it has another
    /// name than the one that listens.
    served: BoundedMap<(u32, u16), Comm>,
    next_look: Instant,
    /// From the last look to the next, unless there is a reason to look sooner.
    pause: Duration,
    /// What the last reading showed.
    read: Option<(Instant, Vec<Queue>)>,
}

impl Listeners {
    /// Loads the iterators and looks for the first time.
    ///
    /// # Errors
    /// If the kernel cannot run the iterators, or no thread can be started. Sockets that begin to listen from
    /// now on are known all the same.
    pub fn load(ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<Self> {
        let open_files = OpenFiles::start(ebpf, btf)?;
        let queues = iterator::load(ebpf, Queue::PROGRAM, Queue::ITERATOR, btf)
            .inspect_err(|error| tracing::debug!(%error, "queues are read with the open files"))
            .ok();
        let Some(Map::HashMap(table)) = ebpf.take_map(listener::MAP) else {
            anyhow::bail!("the eBPF object lacks the map")
        };
        let table_fd = table.fd().as_fd().try_clone_to_owned()?;
        let mut this = Self {
            table_fd,
            table: Map::HashMap(table).try_into()?,
            open_files,
            is_looking: false,
            queues,
            served: BoundedMap::new(MAX_SERVED),
            next_look: Instant::now(),
            pause: PAUSE.0,
            read: None,
        };
        this.ask();
        // One that takes longer is used when it comes.
        if let Ok(look) = this.open_files.first() {
            this.looked(look)?;
        }
        Ok(this)
    }

    /// Heeds a connection that ended: where several programs hold a listening socket, the one that closes its
    /// connections is the one that serves.
    pub fn heed(&mut self, connection: &Connection) {
        if connection.stage() == Some(Stage::Close)
            && connection.role() == Some(Role::Server)
            && connection.is_of_another_program()
            && connection.has_exact_owner()
        {
            let port = (connection.netns, connection.local_port);
            if self.served.get(&port) != Some(&connection.comm) {
                self.served.insert(port, connection.comm);
                let soon = (self.pause / SOONER).max(PAUSE.0);
                self.next_look = self.next_look.min(Instant::now() + soon);
            }
        }
    }

    /// Uses what a look showed, and asks for another when it is time.
    pub fn turn(&mut self) {
        if let Some(look) = self.open_files.take()
            && let Err(error) = self.looked(look)
        {
            tracing::debug!(%error, "cannot look at the listening sockets");
        }
        if !self.is_looking && Instant::now() >= self.next_look {
            self.ask();
        }
    }

    fn ask(&mut self) {
        self.is_looking = true;
        self.open_files.ask();
    }

    fn looked(&mut self, look: Look) -> io::Result<()> {
        self.is_looking = false;
        self.pause = pause(look.took);
        self.next_look = Instant::now() + self.pause;
        let holders = look.holders?;
        let queues = match &self.queues {
            Some(program) => self.iterate(program)?,
            None => self.held(&holders),
        };
        for Queue { key, listener, state, .. } in queues {
            let all = holders.get(&key).map_or(&[][..], Vec::as_slice);
            // One that began meanwhile was missed by the iteration.
            if state == LISTEN && all.is_empty() && listener.since_ns >= look.began_ns {
                continue;
            }
            // By now another socket may have this address: what was found out is not about that one.
            let is_same = || self.table.get(&key, 0).is_ok_and(|now| now.since_ns == listener.since_ns);
            if state != LISTEN {
                // Its end was missed.
                if is_same() {
                    let _ = self.table.remove(&key);
                }
                continue;
            }
            let served = self.served.get(&(listener.netns, listener.port));
            let now = with_owner(listener, owner(&listener, all, served));
            if now != listener && is_same() {
                // It may have ended by now.
                let _ = self.table.insert(key, now, BPF_EXIST);
            }
        }
        Ok(())
    }

    /// Every listening socket and its queue, as it is now; where the table cannot be iterated over, those
    /// that a process has open.
    ///
    /// # Errors
    /// If the kernel ends the iteration early.
    pub fn queues(&self) -> io::Result<Vec<Queue>> {
        match &self.queues {
            Some(program) => self.iterate(program),
            None => Ok(self.held(&self.open_files.look()?)),
        }
    }

    /// The queues of the sockets that these processes have open.
    fn held(&self, holders: &Holders) -> Vec<Queue> {
        let queue = |(&key, all): (&u64, &Vec<Holder>)| {
            let listener = self.table.get(&key, 0).ok()?;
            Some(Queue { key, listener, backlog: all.first()?.backlog, state: LISTEN })
        };
        holders.iter().filter_map(queue).collect()
    }

    fn iterate(&self, program: &OwnedFd) -> io::Result<Vec<Queue>> {
        let mut queues = Vec::new();
        let map = self.table_fd.as_raw_fd().cast_unsigned();
        iterator::each(program.as_fd(), map, Queue::SIZE, iterator::LIMIT, |bytes| {
            queues.extend(Queue::from_bytes(bytes));
        })?;
        Ok(queues)
    }

    /// Adds to a client's opening whose SYN was retransmitted how full the queue is that it came to, if
    /// that is on this host.
    pub fn add_to(&mut self, event: &mut ConnectionEvent) {
        let wants = event.stage == Stage::Open && event.role == Some(Role::Client);
        let Some(open) = event.open.as_mut().filter(|open| wants && open.syn_retransmits > 0) else { return };
        let (Some(local), Some(remote), Some(netns)) = (event.local, event.remote, event.netns) else {
            return;
        };
        let Some(addr) = remote.addr.and_then(Address::ip) else { return };
        // Of a connection between two addresses it is not known whether both are of this host.
        if !addr.to_canonical().is_loopback() && remote.addr != local.addr {
            return;
        }
        if self.read.as_ref().is_none_or(|(read, _)| read.elapsed() > FRESH) {
            self.read = self.queues().ok().map(|queues| (Instant::now(), queues));
        }
        let queues = self.read.as_ref().map_or(&[][..], |(_, queues)| queues);
        open.listener = queue_of(queues, netns, addr, remote.port);
    }
}

/// `include/uapi/linux/bpf.h`.
const BPF_EXIST: u64 = 2;

/// How long to pause after a look that took so long.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(PAUSE.0, PAUSE.1)
}

fn with_owner(listener: Listener, owner: Option<&Holder>) -> Listener {
    let (pid, comm, cgroup) = owner.map_or((0, [0; 16], 0), |owner| (owner.pid, owner.comm, owner.cgroup));
    Listener { pid, comm, cgroup, ..listener }
}

/// Which of the processes that hold a socket listens on it. Of one program it is the one that called
/// `listen()`, else the oldest. Of several programs, one may have passed the socket on to another, or
/// another may have inherited it by mistake: then it is the one that serves, and unknown as long as none
/// was seen to.
///
/// A forked process runs the program of its parent, whatever it calls itself: it is a worker, or about to
/// start another program, which will not have the socket.
fn owner<'a>(listener: &Listener, holders: &'a [Holder], served: Option<&Comm>) -> Option<&'a Holder> {
    let started = || holders.iter().filter(|holder| holder.is_forked == 0);
    let name = match started().next() {
        Some(first) if started().all(|holder| holder.comm == first.comm) => Some(&first.comm),
        None => holders
            .first()
            .map(|first| &first.comm)
            .filter(|&comm| holders.iter().all(|holder| holder.comm == *comm)),
        Some(_) => None,
    };
    let name = name.or(served)?;
    let named = || holders.iter().filter(|holder| holder.comm == *name);
    named().find(|holder| holder.pid == listener.pid).or_else(|| named().min_by_key(|holder| holder.born_ns))
}

/// The queue of the listening socket that takes connections to this end: one that is bound to the address
/// before one that takes any, and one of IPv4 before one that takes both (`compute_score`). Of a group of
/// sockets (`SO_REUSEPORT`) the sum.
fn queue_of(queues: &[Queue], netns: u32, addr: IpAddr, port: u16) -> Option<ListenQueue> {
    let addr = addr.to_canonical();
    let score = |listener: &Listener| {
        let is_ipv4 = listener.family == Family::Ipv4.code();
        if listener.netns != netns || listener.port != port || (is_ipv4 && addr.is_ipv6()) {
            return 0;
        }
        match bound(listener) {
            None => 1 + u8::from(is_ipv4),
            Some(bound) if bound == addr => 3,
            Some(_) => 0,
        }
    };
    let best = queues.iter().map(|queue| score(&queue.listener)).max().filter(|&best| best > 0)?;
    let group = queues.iter().filter(|queue| {
        queue.state == LISTEN && queue.backlog.is_known != 0 && score(&queue.listener) == best
    });
    group
        .map(|queue| ListenQueue {
            accept_queue: queue.backlog.length,
            accept_queue_limit: queue.backlog.limit,
            drops: queue.drops(),
        })
        .reduce(|sum, one| ListenQueue {
            accept_queue: sum.accept_queue.saturating_add(one.accept_queue),
            accept_queue_limit: sum.accept_queue_limit.saturating_add(one.accept_queue_limit),
            drops: sum.drops.saturating_add(one.drops),
        })
}

/// The address that a socket is bound to. Returns `None` if it takes any.
fn bound(listener: &Listener) -> Option<IpAddr> {
    let [a, b, c, d, ..] = listener.local;
    let addr = if listener.family == Family::Ipv4.code() {
        IpAddr::from([a, b, c, d])
    } else {
        Ipv6Addr::from(listener.local).to_canonical()
    };
    Some(addr).filter(|addr| !addr.is_unspecified())
}

#[cfg(test)]
mod tests {
    use handshake_common::tcp::listener::Backlog;

    use super::*;

    fn comm(name: &str) -> Comm {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        comm
    }

    fn holder(pid: u32, name: &str, born_ns: u64) -> Holder {
        Holder { pid, comm: comm(name), born_ns, ..Holder::default() }
    }

    fn pid(caller: u32, holders: &[Holder], served: Option<&str>) -> Option<u32> {
        let listener = Listener { pid: caller, ..Listener::default() };
        owner(&listener, holders, served.map(comm).as_ref()).map(|owner| owner.pid)
    }

    #[test]
    fn owner_of_one_program_is_the_process_that_called_listen_or_the_oldest() {
        let workers = [holder(7, "nginx", 30), holder(8, "nginx", 20), holder(9, "nginx", 40)];
        assert_eq!(pid(9, &workers, None), Some(9));
        assert_eq!(pid(5, &workers, None), Some(8), "the caller has ended");
        assert_eq!(pid(5, &workers, Some("other")), Some(8), "it closes connections, but does not listen");
        assert_eq!(pid(5, &[], None), None);
    }

    #[test]
    fn owner_is_not_in_doubt_while_it_starts_another_program() {
        let child = Holder { is_forked: 1, ..holder(9, "worker thread", 90) };
        assert_eq!(pid(7, &[holder(7, "server", 30), child], None), Some(7));
        assert_eq!(pid(9, &[holder(7, "server", 30), child], None), Some(7), "it is the program that counts");
        assert_eq!(pid(9, &[child], None), Some(9), "its parent has ended");
        let others = [child, Holder { is_forked: 1, ..holder(8, "other", 80) }];
        assert_eq!(pid(9, &others, None), None);
    }

    #[test]
    fn owner_of_several_programs_is_the_one_that_serves() {
        let passed = [holder(1, "systemd", 1), holder(77, "web", 50), holder(78, "web", 60)];
        assert_eq!(pid(1, &passed, None), None);
        assert_eq!(pid(1, &passed, Some("web")), Some(77));
        assert_eq!(pid(78, &passed, Some("web")), Some(78));
        assert_eq!(pid(1, &passed, Some("other")), None);
    }

    fn queue(family: Family, local: [u8; 4], length: u32) -> Queue {
        let [a, b, c, d] = local;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[a, b, c, d]);
        let listener =
            Listener { netns: 1, port: 80, family: family.code(), local: bytes, ..Listener::default() };
        let backlog = Backlog { length, limit: 10, drops: 1, is_known: 1 };
        Queue { listener, backlog, state: LISTEN, ..Queue::default() }
    }

    #[test]
    fn connection_comes_to_the_socket_of_its_address_before_any() {
        let any_v6 = queue(Family::Ipv6, [0; 4], 1);
        let any_v4 = queue(Family::Ipv4, [0; 4], 2);
        let local = queue(Family::Ipv4, [127, 0, 0, 1], 3);
        let length = |queues: &[Queue], addr: &str| {
            queue_of(queues, 1, addr.parse().unwrap(), 80).map(|queue| queue.accept_queue)
        };
        let all = [any_v6, any_v4, local, local];
        assert_eq!(length(&all, "127.0.0.1"), Some(6), "both of the group");
        assert_eq!(length(&all, "::ffff:127.0.0.1"), Some(6));
        assert_eq!(length(&all, "127.0.0.2"), Some(2));
        assert_eq!(length(&[any_v6, local], "127.0.0.2"), Some(1));
        assert_eq!(length(&all, "::1"), Some(1));
        assert_eq!(length(&[local], "127.0.0.2"), None);
        assert_eq!(queue_of(&all, 2, "127.0.0.1".parse().unwrap(), 80), None, "another namespace");
        assert_eq!(queue_of(&all, 1, "127.0.0.1".parse().unwrap(), 81), None, "another port");
    }

    #[test]
    fn looking_takes_a_thousandth_of_the_time() {
        assert_eq!(pause(Duration::from_micros(10)), Duration::from_secs(1));
        assert_eq!(pause(Duration::from_millis(20)), Duration::from_secs(20));
        assert_eq!(pause(Duration::from_secs(1)), Duration::from_mins(1));
    }
}
