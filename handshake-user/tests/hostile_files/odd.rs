//! Special files with the names and paths of libraries, and enormous files.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{FileExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::mkfifo,
};

use crate::{
    alone,
    program::{self, Daemon},
    proper::{LABEL, Proper},
    serving::Serving,
    untrusted::UntrustedProcess,
};

/// A directory in which programs that contain a TLS library are searched before anything uses them.
const PROGRAMS: &str = "/usr/local/bin";

/// Creates entries that are searched for there, none of which is a program.
fn fill(folder: &Path) {
    mkfifo(&folder.join("node"), Mode::S_IRWXU).unwrap();
    fs::create_dir(folder.join("bun")).unwrap();
    symlink("deno", folder.join("deno")).unwrap();
}

/// A sparse file of this length that begins with these bytes.
fn sparse(path: PathBuf, length: u64, begin: &[u8]) -> PathBuf {
    let file = File::create(&path).unwrap();
    file.set_len(length).unwrap();
    file.write_all_at(begin, 0).unwrap();
    path
}

/// The beginning of an x86-64 shared object whose tables are all as large as the file: sections, segments,
/// symbols, names, dynamic entries, notes, unwind information, and Go's functions.
fn greedy(length: u64) -> Vec<u8> {
    const SECTIONS: [(&str, u64); 16] = [
        ("", 0),
        (".symtab", 2),
        (".strtab", 3),
        (".dynsym", 11),
        (".dynstr", 3),
        (".hash", 5),
        (".dynamic", 6),
        (".note.gnu.build-id", 7),
        (".rela.plt", 4),
        (".go.buildinfo", 1),
        (".gopclntab", 1),
        (".eh_frame", 1),
        (".eh_frame_hdr", 1),
        (".text", 1),
        (".rodata", 1),
        (".shstrtab", 3),
    ];
    /// `LOAD`, `DYNAMIC`, `NOTE`, `GNU_EH_FRAME`.
    const SEGMENTS: [u64; 4] = [1, 2, 4, 0x6474_e550];
    const HEAD: u64 = 64;
    const SEGMENTS_AT: u64 = HEAD + 64 * SECTIONS.len() as u64;
    const NAMES_AT: u64 = SEGMENTS_AT + 56 * SEGMENTS.len() as u64;
    const INFO_AT: usize = 0x1000;
    const FUNCTIONS_AT: usize = 0x2000;

    let names: Vec<u8> = SECTIONS.iter().flat_map(|(name, _)| [name.as_bytes(), b"\0"].concat()).collect();
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
    let mut put = |number: u64, width: usize| bytes.extend_from_slice(&number.to_le_bytes()[..width]);
    // Entry, segments, sections, flags.
    for (number, width) in [(0x1000, 8), (SEGMENTS_AT, 8), (HEAD, 8), (0, 4)] {
        put(number, width);
    }
    for size in [64, 56, SEGMENTS.len() as u64, 64, 16, 15] {
        put(size, 2);
    }
    let mut name_at = 0;
    for (index, (name, kind)) in SECTIONS.into_iter().enumerate() {
        let (at, size) = match name {
            ".shstrtab" => (NAMES_AT, names.len() as u64),
            ".gopclntab" => (FUNCTIONS_AT as u64, length - FUNCTIONS_AT as u64),
            _ => (INFO_AT as u64, length - INFO_AT as u64),
        };
        let entry = if [2, 11].contains(&kind) { 24 } else { 0 };
        // Name, type, flags, address, offset, size, link, info, alignment, entry size.
        put(name_at, 4);
        put(kind, 4);
        for number in [6, at, at, size] {
            put(number, 8);
        }
        put(index as u64 + 1, 4);
        put(0, 4);
        put(8, 8);
        put(entry, 8);
        name_at += name.len() as u64 + 1;
    }
    for kind in SEGMENTS {
        // Type, flags, offset, address, physical address, size in the file and in memory, alignment.
        put(kind, 4);
        put(5, 4);
        for number in [0, 0, 0, length, length, 0x1000] {
            put(number, 8);
        }
    }
    bytes.extend_from_slice(&names);
    bytes.resize(INFO_AT, 0);
    bytes.extend_from_slice(b"\xff Go buildinf:\x08\x02");
    bytes.resize(FUNCTIONS_AT, 0);
    // Magic, minimum instruction size, pointer size, then enormous counts and offsets.
    bytes.extend_from_slice(b"\xf1\xff\xff\xff\0\0\x01\x08");
    bytes.extend_from_slice(&[0x3f, 0xff, 0xff, 0, 0, 0, 0, 0].repeat(8));
    bytes
}

#[test]
fn special_and_enormous_files_cost_little_and_hide_nothing() {
    let _alone = alone();
    let (folder, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(programs.path());
    let mut command = program::command(&["--listen", "127.0.0.1:0"]);
    command.args(LABEL);
    let there = programs.path().to_owned();
    // SAFETY: between fork and exec only system calls are made; paths this short are made zero-terminated on
    // the stack.
    unsafe {
        command.pre_exec(move || {
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            Ok(mount(Some(&there), PROGRAMS, none, MsFlags::MS_BIND, none)?)
        });
    }
    let daemon = Daemon::spawn(&mut command);
    let mut serving = Serving::new(&daemon);

    let name = |name: &str| folder.path().join(name).join("libssl.so.3");
    for kind in ["device", "tib", "gib", "tables", "tib-tables", "gib-tables"] {
        fs::create_dir(folder.path().join(kind)).unwrap();
    }
    let zero = name("device");
    mknod(&zero, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    let files = [
        zero,
        sparse(name("tib"), 8 << 40, b""),
        sparse(name("gib"), 2 << 30, b""),
        sparse(name("tib-tables"), 8 << 40, &greedy(8 << 40)),
        sparse(name("gib-tables"), 2 << 30, &greedy(2 << 30)),
        // The largest file that is inspected.
        sparse(name("tables"), 1 << 30, &greedy(1 << 30)),
    ];
    let mut untrusted = UntrustedProcess::start();
    untrusted.map(&files);
    Proper::start().is_seen(&mut serving, Duration::from_secs(30));
    let skipped =
        |daemon: &Daemon| daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"too_large\""]);
    serving.until("the largest files are counted as skipped", Duration::from_secs(10), |daemon| {
        skipped(daemon) >= 4.0
    });
    let peak = daemon.status("VmHWM:") >> 10;
    println!("peak {peak} MB, slowest {:?}", serving.slowest);
    assert!(peak < 150, "{peak} MB");
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
}
