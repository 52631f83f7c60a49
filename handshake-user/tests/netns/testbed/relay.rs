//! The link itself: forwards packets between the two TUN devices with a delay, applies the faults, and
//! captures.

use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    sys::{eventfd::EventFd, signal::SigSet, time::TimeSpec},
};

use super::{
    capture::{Capture, Fate, Seen},
    faults::Verdict,
    packet::{Packet, Side},
    priority,
};

pub(super) type Rule = Box<dyn FnMut(&Packet) -> Verdict + Send>;

pub(super) struct Relay {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    lanes: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
}

/// One direction.
struct Lane {
    from: Side,
    client: File,
    server: File,
    delay: Duration,
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    queue: VecDeque<Held>,
}

struct Held {
    due: Instant,
    to: Side,
    bytes: Arc<[u8]>,
    /// Its line in the capture; `None` if it is not TCP.
    line: Option<usize>,
}

impl Relay {
    pub(super) fn start(client: &File, server: &File, delay: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(EventFd::new().unwrap());
        let lane = |from| Lane {
            from,
            client: client.try_clone().unwrap(),
            server: server.try_clone().unwrap(),
            delay,
            shared: Arc::clone(&shared),
            stop: Arc::clone(&stop),
            queue: VecDeque::new(),
        };
        let lanes = [lane(Side::Client), lane(Side::Server)]
            .map(|mut lane| thread::Builder::new().name("relay".into()).spawn(move || lane.run()).unwrap())
            .into();
        Self { shared, stop, lanes }
    }

    pub(super) fn add_rule(&self, rule: Rule) {
        priority::as_relay(|| lock(&self.shared.rules).push(rule));
    }

    pub(super) fn clear_rules(&self) {
        priority::as_relay(|| lock(&self.shared.rules).clear());
    }

    pub(super) fn capture(&self) -> Capture {
        Capture::new(priority::as_relay(|| lock(&self.shared.seen).clone()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        for lane in self.lanes.drain(..) {
            let ended = lane.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the relay has failed: the link did not work as it should"
            );
        }
    }
}

impl Lane {
    fn run(&mut self) {
        priority::raise_relay();
        while self.wait() {
            while let Some(bytes) = self.read() {
                self.take(&bytes, Instant::now());
            }
            self.release();
        }
    }

    /// Waits until a packet arrives or is due. Returns false when the relay ends.
    fn wait(&self) -> bool {
        let timeout = self
            .queue
            .front()
            .map(|held| TimeSpec::from_duration(held.due.saturating_duration_since(Instant::now())));
        let mut files = [
            PollFd::new(self.end(self.from).as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::ppoll(&mut files, timeout, Some(SigSet::empty())) {
            Ok(_) => {
                // A device that is gone reports POLLERR for ever: the loop would spin.
                let gone = files[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
                !gone && !files[1].any().unwrap_or(false)
            }
            Err(Errno::EINTR) => true,
            Err(error) => panic!("ppoll: {error}"),
        }
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65536];
        match self.end(self.from).read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                Some(bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("reading a TUN device: {error}"),
        }
    }

    fn take(&mut self, bytes: &[u8], arrived: Instant) {
        let there = self.from.other();
        let due = arrived + self.delay;
        let Some(packet) = Packet::parse(self.from, bytes) else {
            self.hold(Held { due, to: there, bytes: bytes.into(), line: None });
            return;
        };
        let verdict = lock(&self.shared.rules)
            .iter_mut()
            .map(|rule| rule(&packet))
            .find(|verdict| !matches!(verdict, Verdict::Pass))
            .unwrap_or(Verdict::Pass);
        let bytes = Arc::clone(&packet.bytes);
        let line = self.note(packet, arrived);
        match verdict {
            Verdict::Pass => self.hold(Held { due, to: there, bytes, line: Some(line) }),
            Verdict::Delay(more) => self.hold(Held { due: due + more, to: there, bytes, line: Some(line) }),
            Verdict::Drop => self.settle(line, Fate::Dropped),
            Verdict::Answer(answer) => {
                self.settle(line, Fate::Dropped);
                let line = Packet::parse(there, &answer).map(|packet| self.note(packet, arrived));
                self.hold(Held { due: due + self.delay, to: self.from, bytes: answer.into(), line });
            }
        }
    }

    fn hold(&mut self, held: Held) {
        let place = self.queue.partition_point(|other| other.due <= held.due);
        self.queue.insert(place, held);
    }

    fn release(&mut self) {
        while let Some(held) = self.queue.pop_front_if(|held| held.due <= Instant::now()) {
            // Captured first: the receiver may look into the capture at once.
            if let Some(line) = held.line {
                self.settle(line, Fate::Released(Instant::now()));
            }
            // A namespace that is being removed may refuse a packet; real networks drop packets too.
            let _ = self.end(held.to).write(&held.bytes);
        }
    }

    fn end(&self, side: Side) -> &File {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    fn note(&self, packet: Packet, arrived: Instant) -> usize {
        let mut seen = lock(&self.shared.seen);
        seen.push(Seen { packet, arrived, fate: Fate::Held });
        seen.len() - 1
    }

    fn settle(&self, line: usize, fate: Fate) {
        lock(&self.shared.seen)[line].fate = fate;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
