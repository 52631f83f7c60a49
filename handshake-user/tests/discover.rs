//! Finds the files that real processes have mapped: below overlays and in mount namespaces, deleted and
//! replaced, by exec and by dlopen.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "program/child_guard.rs"]
mod child_guard;
#[path = "discover/mappings.rs"]
mod mappings;
#[path = "discover/process.rs"]
mod process;

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use handshake::{
    kernel::probe::Kernel,
    settings::{ProbeSettings, Switch, TlsWire},
    tls::discover::{self, Discovery, DiscoveryEvent, FileId, Found, IteratorError, VmaIterator},
    tracer::Tracer,
};
use handshake_common::histograms::Bounds;
use perf_event::{Builder, events::Software};
use tempfile::TempDir;

use self::process::{Overlay, Process};

/// Short, so that unused files are reported soon.
const SWEEP: Duration = Duration::from_millis(300);
/// The maximum number of files in one poll.
const ROOM: usize = 128;
const TIMEOUT: Duration = Duration::from_secs(20);

fn iterator() -> Result<VmaIterator, IteratorError> {
    assert!(nix::unistd::geteuid().is_root(), "these tests load programs into the kernel: run them as root");
    let settings = ProbeSettings {
        ring_kib: 64,
        max_connections: 1024,
        tls_libraries: Switch::Off,
        tls_wire: TlsWire::Off,
        ..ProbeSettings::default()
    };
    let kernel = Kernel::read().unwrap();
    let (mut tracer, _) = Tracer::attach(&kernel, &settings, &Bounds::NONE).unwrap();
    // The program stays loaded without the rest of the object.
    tracer.mappings(&kernel)
}

/// A search, and everything that it has reported.
struct Search {
    discovery: Discovery,
    found: Vec<Found>,
    gone: Vec<FileId>,
}

impl Search {
    /// Starts a search and completes its first sweep.
    fn start() -> Self {
        Self::over(Discovery::new(iterator(), SWEEP))
    }

    fn over(discovery: Discovery) -> Self {
        let mut search = Self { discovery, found: Vec::new(), gone: Vec::new() };
        search.until("the start is settled", |search| search.discovery.is_settled());
        search
    }

    fn poll(&mut self) {
        for news in self.discovery.poll(Instant::now(), ROOM) {
            match news {
                DiscoveryEvent::Found(found) => self.found.push(found),
                DiscoveryEvent::Unused(id) | DiscoveryEvent::Rewritten(id) => self.gone.push(id),
                DiscoveryEvent::Unanswered(_, path) => panic!("{} does not answer", path.display()),
            }
        }
    }

    /// Polls at the daemon's pace until the condition holds.
    fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.poll();
            if enough(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; found {:?}, gone {:?}",
                self.found,
                self.gone
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Polls for a few sweeps, in which nothing more should be reported.
    fn for_a_while(&mut self) {
        let end = Instant::now() + 4 * SWEEP;
        while Instant::now() < end {
            self.poll();
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The reports of this file, identified by `stat`.
    fn of(&self, file: &fs::Metadata) -> Vec<&Found> {
        self.found.iter().filter(|found| is(found.id, file)).collect()
    }

    fn is_gone(&self, file: &fs::Metadata) -> bool {
        self.gone.iter().any(|id| is(*id, file))
    }

    fn users(&self, file: &fs::Metadata) -> Vec<u32> {
        self.of(file).iter().flat_map(|found| self.discovery.users(found.id)).collect()
    }
}

fn is(id: FileId, file: &fs::Metadata) -> bool {
    (id.dev, id.ino) == (file.dev(), file.ino())
}

/// A program with its own inode: a copy of `sleep` under another name.
fn program(folder: &TempDir, name: &str) -> PathBuf {
    copy(Path::new("/bin/sleep"), &folder.path().join(name))
}

/// A library with its own inode that any program can load: a copy of libm, named like a TLS library.
fn library(folder: &TempDir, name: &str) -> PathBuf {
    // Of a program of the system: the test itself may be static.
    let math = Process::start(Path::new("/bin/sleep"), None).mapped("libc.so").with_file_name("libm.so.6");
    copy(&math, &folder.path().join(name))
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    // By a process of its own: the kernel runs no file that is open for writing (ETXTBSY), and what this
    // process has open is for a moment also in a child of another test.
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{}", from.display());
    to.to_owned()
}

/// Asserts that the kernel accepts a uprobe at the start of a function of this file.
fn assert_accepts_uprobe(found: &Found) {
    use object::{Object as _, ObjectSection as _};
    let data = fs::read(discover::path_of(&found.file)).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let text = elf.section_by_name(".text").unwrap();
    let (offset, _) = text.file_range().unwrap();
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").unwrap();
    let path = CString::new(discover::path_of(&found.file).into_os_string().into_vec()).unwrap();
    let mut probe = Builder::new(Software::DUMMY);
    let attributes = probe.any_pid().one_cpu(0).include_kernel().attrs_mut();
    (attributes.type_, attributes.config) = (kind.trim().parse().unwrap(), 0);
    (attributes.config1, attributes.config2) = (path.as_ptr() as u64, offset);
    let attached = probe.build();
    attached.unwrap_or_else(|error| panic!("{}: {error}", found.shown.display()));
}

#[test]
fn file_below_two_overlays_is_found_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("merged")).unwrap();
    let lower = tempfile::tempdir_in(folder.path()).unwrap();
    let (program, library) = (program(&lower, "sleeper"), library(&lower, "libssl-under-overlay.so"));
    // Each in its own mount namespace, with its own overlay over the same directory.
    let overlay = Overlay {
        lower: lower.path(),
        empty: &folder.path().join("empty"),
        at: &folder.path().join("merged"),
    };
    let before = Process::overlaid(&overlay, "sleeper", "libssl-under-overlay.so");

    let mut search = Search::start();
    let after = Process::overlaid(&overlay, "sleeper", "libssl-under-overlay.so");
    // PIDs begin anew sometimes.
    let mut users = [before.pid(), after.pid()];
    users.sort_unstable();
    for file in [&program, &library] {
        let file = fs::metadata(file).unwrap();
        search.until("both processes use it", |search| search.users(&file) == users);
        search.for_a_while();
        let found = search.of(&file);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_accepts_uprobe(found[0]);
    }
    let named = |name: &str| search.found.iter().filter(|found| found.shown.ends_with(name)).count();
    assert_eq!((named("sleeper"), named("libssl-under-overlay.so")), (1, 1), "{:?}", search.found);
}

#[test]
fn replaced_library_is_found_beside_its_deleted_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    let path = library(&folder, "libssl-replaced.so");
    let old = fs::metadata(&path).unwrap();
    let with_old = Process::start(Path::new("/bin/sleep"), Some(&path));
    fs::rename(library(&folder, "new"), &path).unwrap();
    let new = fs::metadata(&path).unwrap();
    assert_ne!(old.ino(), new.ino());

    let mut search = Search::start();
    assert_eq!(search.of(&old).len(), 1, "{:?}", search.found);
    assert_eq!(search.of(&old)[0].shown, path, "without the suffix of a deleted file");
    assert_accepts_uprobe(search.of(&old)[0]);
    assert!(search.of(&new).is_empty());

    let with_new = Process::start(Path::new("/bin/sleep"), Some(&path));
    search.until("the new one is found", |search| !search.of(&new).is_empty());
    assert_eq!(search.users(&new), [with_new.pid()]);
    drop(with_old);
    search.until("the old one is gone", |search| search.is_gone(&old));
    assert!(!search.is_gone(&new));
    search.for_a_while();
    assert_eq!((search.of(&old).len(), search.of(&new).len()), (1, 1));
}

fn check_later_program(discovery: Discovery) {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "later");
    let file = fs::metadata(&path).unwrap();
    let mut search = Search::over(discovery);
    assert!(search.of(&file).is_empty());
    let begin = Instant::now();
    let process = Process::start(&path, None);
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(search.of(&file)[0].pid, Some(process.pid()));
    assert_eq!(search.of(&file)[0].shown, path);

    drop(process);
    search.until("it is gone", |search| search.is_gone(&file));
    assert_eq!(search.users(&file), [0_u32; 0]);
    let again = Process::start(&path, None);
    search.until("it is found once more", |search| search.of(&file).len() == 2);
    assert_eq!(search.of(&file)[1].pid, Some(again.pid()));
}

/// Any user can map a program as if it were a library without a library's name.
#[test]
fn program_that_was_mapped_before_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy(Path::new("/bin/sleep"), &folder.path().join("mapped-before"));
    let file = fs::metadata(&path).unwrap();
    let _mapped = mappings::map(&fs::File::open(&path).unwrap());
    let mut search = Search::start();
    assert!(search.of(&file).is_empty(), "it is no program yet");
    let program = Process::start(&path, None);
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert_eq!(search.of(&file)[0].pid, Some(program.pid()));
}

#[test]
fn short_lived_program_that_another_has_mapped_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "mapped-meanwhile");
    let file = fs::metadata(&path).unwrap();
    let mut search = Search::start();
    let mut python = Process::python(
        "import mmap; file = open(input()); \
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC); input()",
    );
    python.say(path.to_str().unwrap());
    search.for_a_while();
    assert!(search.of(&file).is_empty(), "it is no program yet");
    Command::new(&path).arg("0").status().unwrap();
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert_eq!(search.of(&file)[0].pid, None);
}

#[test]
fn later_program_is_found_and_reported_unused_after_its_last_process() {
    check_later_program(Discovery::new(iterator(), SWEEP));
}

#[test]
fn later_program_is_found_without_the_iterator() {
    let discovery = Discovery::new(Err(IteratorError::NoProgram), SWEEP);
    assert!(discovery.shortfalls().iter().any(|text| text.contains("lacks the program")));
    check_later_program(discovery);
}

#[test]
fn search_has_no_shortfalls_on_this_kernel() {
    assert_eq!(Discovery::new(iterator(), SWEEP).shortfalls(), [""; 0]);
}

#[test]
fn short_lived_program_is_found_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy(Path::new("/bin/true"), &folder.path().join("short"));
    let file = fs::metadata(&path).unwrap();
    let mut search = Search::start();
    assert!(Command::new(&path).status().unwrap().success());
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert_eq!(search.of(&file)[0].pid, None);
}

/// One that ends while its mappings are looked at leaves a list of them, but nothing to open.
#[test]
fn short_lived_programs_are_found_whenever_they_end() {
    const COUNT: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let path = |index| copy(Path::new("/bin/true"), &folder.path().join(format!("short-{index}")));
    let paths: Vec<_> = (0..COUNT).map(path).collect();
    let files: Vec<_> = paths.iter().map(|path| fs::metadata(path).unwrap()).collect();
    let mut search = Search::start();
    let runs = thread::spawn(move || {
        for path in paths {
            assert!(Command::new(path).status().unwrap().success());
        }
    });
    while !runs.is_finished() {
        search.poll();
    }
    runs.join().unwrap();
    search.until("all are found", |search| files.iter().all(|file| search.of(file).len() == 1));
}

/// `prepare` makes the folder in which it runs, and the one in which the file itself is: Python code.
#[track_caller]
fn check_secluded(prepare: &str) {
    let folder = tempfile::tempdir().unwrap();
    let told = tempfile::tempdir().unwrap();
    let script = format!(
        "import os, shutil, subprocess
os.chdir('{folder}')
{prepare}
while input():
    subprocess.run(['{folder}/run/secluded'])
    file = os.stat('{folder}/own/secluded')
    open('{told}/new', 'w').write(f'{{file.st_dev}} {{file.st_ino}}')
    os.rename('{told}/new', '{told}/ran')",
        folder = folder.path().display(),
        told = told.path().display()
    );
    let path = folder.path().join("run/secluded");
    let mut search = Search::start();
    // The search has just looked for namespaces, in vain, when this one is made.
    let gone = program(&folder, "gone");
    Command::new(&gone).arg("0").status().unwrap();
    fs::remove_file(&gone).unwrap();
    search.poll();
    let mut shell = Process::secluded_python(folder.path(), &script);
    let ran = told.path().join("ran");
    shell.say("run");
    // Polled meanwhile, as by the daemon: on a busy host the kernel's rings are full within a second.
    search.until("it has run", |_| ran.exists());
    assert!(!path.exists(), "it is in the other namespace alone");
    let text = fs::read_to_string(&ran).unwrap();
    let (dev, ino) = text.split_once(' ').unwrap();
    let (dev, ino): (u64, u64) = (dev.parse().unwrap(), ino.parse().unwrap());
    let is_it = |found: &&Found| (found.id.dev, found.id.ino) == (dev, ino);
    search.until("it is found", |search| search.found.iter().any(|found| is_it(&found)));
    let found = search.found.iter().find(is_it).unwrap();
    assert_eq!((found.pid, &found.shown), (None, &path));
    assert_accepts_uprobe(found);

    fs::remove_file(&ran).unwrap();
    shell.say("run");
    search.until("it has run again", |_| ran.exists());
    search.for_a_while();
    assert_eq!(search.found.iter().filter(is_it).count(), 1, "it is known");
}

#[test]
fn short_lived_program_is_found_in_its_mount_namespace() {
    check_secluded(
        "os.mkdir('own'); os.mkdir('run'); \
shutil.copy('/bin/true', 'own/secluded'); subprocess.run(['mount', '--bind', 'own', 'run'], check=True)",
    );
}

#[test]
fn short_lived_program_is_found_below_an_overlay() {
    check_secluded(
        "for name in 'own', 'empty', 'run': os.mkdir(name)
shutil.copy('/bin/true', 'own/secluded')
subprocess.run(['mount', '-t', 'overlay', 'overlay', '-o', 'lowerdir=own:empty', 'run'], check=True)",
    );
}

/// In a mount namespace of its own, where no other tracer on this host maps the file to look at it.
#[test]
fn file_at_the_path_of_an_ended_program_is_not_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let told = tempfile::tempdir().unwrap();
    let script = format!(
        "import os, shutil, subprocess
os.chdir('{folder}')
os.mkdir('inside')
for name in 'short', 'inside/linked':
    shutil.copy('/bin/true', name)
shutil.copy('/bin/sleep', 'new')
input()
subprocess.run(['{folder}/short'])
os.rename('new', 'short')
subprocess.run(['{folder}/inside/linked'])
os.rename('inside', 'aside')
os.symlink('aside', 'inside')
open('{told}/ran', 'w')
input()",
        folder = folder.path().display(),
        told = told.path().display()
    );
    let mut search = Search::start();
    let mut shell = Process::secluded_python(folder.path(), &script);
    shell.say("run");
    while !told.path().join("ran").exists() {
        thread::sleep(Duration::from_millis(1));
    }
    search.for_a_while();
    let found: Vec<_> = search.found.iter().filter(|found| found.shown.starts_with(folder.path())).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn library_opened_long_after_exec_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = library(&folder, "libssl-opened-later.so");
    let file = fs::metadata(&path).unwrap();
    let mut python = Process::python("import ctypes; input(); ctypes.CDLL(input()); input()");
    let mut search = Search::start();
    python.say("");
    search.for_a_while();
    assert!(search.of(&file).is_empty());

    python.say(path.to_str().unwrap());
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert_eq!(search.of(&file)[0].pid, Some(python.pid()));
    assert_eq!(search.users(&file), [python.pid()]);
}

#[test]
fn libraries_at_standard_paths_are_found_before_use() {
    let search = Search::start();
    let (_, standing): (Vec<_>, Vec<_>) = search.found.iter().partition(|found| found.pid.is_some());
    // `curl` and `openssl`, which other tests need, depend on it.
    assert!(
        standing.iter().any(|found| found.shown.to_string_lossy().contains("/libssl.so")),
        "{standing:?}"
    );
}

#[test]
fn short_lived_processes_do_not_slow_the_search() {
    let mut search = Search::start();
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(3) {
        for _ in 0..20 {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
        let one = Instant::now();
        search.poll();
        longest = longest.max(one.elapsed());
    }
    let file = fs::metadata("/bin/true").unwrap();
    search.until("it is found", |search| !search.of(&file).is_empty());
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}
