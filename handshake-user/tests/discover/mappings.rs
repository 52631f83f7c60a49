//! The kernel's iterator over the mappings of one process: it shows each once and has an end, whatever the
//! process has mapped and does meanwhile.

use std::{
    env,
    fs::File,
    process,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use handshake::tls::discover::{Mapped, VmaIterator};
use memmap2::{Mmap, MmapOptions};

use crate::{TIMEOUT, iterator};

/// A file of this test's own: others look at the whole host.
fn file() -> File {
    File::open(env::current_exe().unwrap()).unwrap()
}

/// Maps a file into this process as code.
pub(crate) fn map(file: &File) -> Mmap {
    // SAFETY: only its address is used.
    unsafe { MmapOptions::new().len(1).map_exec(file) }.unwrap()
}

/// Those of this process, which a thread is asked for that may never return.
struct Own {
    ask: mpsc::Sender<()>,
    shown: mpsc::Receiver<Vec<Mapped>>,
}

impl Own {
    fn of(iterator: VmaIterator) -> Self {
        let ((ask, asked), (show, shown)) = (mpsc::channel(), mpsc::channel());
        thread::spawn(move || {
            for () in asked {
                let _ = show.send(iterator.of(process::id()).unwrap());
            }
        });
        Self { ask, shown }
    }

    /// Where its mappings begin.
    fn starts(&self) -> Vec<u64> {
        self.ask.send(()).unwrap();
        let shown = self.shown.recv_timeout(TIMEOUT).expect("the iteration does not end");
        shown.iter().map(|mapped| mapped.range.start).collect()
    }
}

/// Each of these is in `starts`, and nothing is twice.
#[track_caller]
fn check(starts: &[u64], maps: &[Mmap]) {
    assert!(starts.is_sorted_by(|one, next| one < next), "a mapping is shown twice");
    for map in maps {
        assert!(starts.binary_search(&(map.as_ptr() as u64)).is_ok(), "a mapping is not shown");
    }
}

/// More than the kernel returns from one read.
#[test]
fn two_thousand_mappings_are_shown_once() {
    let own = Own::of(iterator().unwrap());
    let file = file();
    let maps: Vec<_> = (0..2000).map(|_| map(&file)).collect();
    check(&own.starts(), &maps);
}

/// The kernel lets go of a process that waits to change its mappings, and looks for its place again.
#[test]
fn mappings_are_shown_once_while_others_come_and_go() {
    let own = Own::of(iterator().unwrap());
    let file = file();
    let maps: Vec<_> = (0..20).map(|_| map(&file)).collect();
    for pause in [Duration::ZERO, Duration::from_micros(50), Duration::from_micros(500)] {
        let end = Instant::now() + Duration::from_millis(700);
        thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() < end {
                    // Not as code: of that the kernel tells, and other tests would miss something.
                    drop(MmapOptions::new().len(1 << 16).map_anon().unwrap());
                    thread::sleep(pause);
                }
            });
            let mut looks = 0;
            while Instant::now() < end {
                check(&own.starts(), &maps);
                looks += 1;
            }
            println!("{looks} looks, with pauses of {pause:?}");
        });
    }
}
